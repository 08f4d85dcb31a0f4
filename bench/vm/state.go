package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"drover/bench/report"
)

// build compiles one of the project's commands; it runs in the project's directory, as `make` does.
func build(ctx context.Context, out, pkg string) error {
	goTool, err := exec.LookPath("go")
	if err != nil {
		goTool = "/usr/local/go/bin/go"
	}
	if out, err := exec.CommandContext(ctx, goTool, "build", "-o", out, pkg).CombinedOutput(); err != nil {
		return fmt.Errorf("build %s (this must run in the project's directory): %w\n%s", pkg, err, out)
	}
	return nil
}

func stateProgram(dir string) string { return filepath.Join(dir, "state") }

// state has bench/state measure a manager with many VMs in its state, and takes over its rows.
func state(ctx context.Context, dir string, rep *report.Report) error {
	file := filepath.Join(dir, "state.json")
	cmd := exec.CommandContext(ctx, stateProgram(dir), "-out", file)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var rows []struct {
		Name, Unit  string
		Ours, Limit float64 // its limit is what we call a goal; 0: none
	}
	if err := json.Unmarshal(b, &rows); err != nil {
		return fmt.Errorf("results of bench/state: %w", err)
	}
	if len(rows) == 0 {
		return fmt.Errorf("bench/state wrote no results")
	}
	for _, r := range rows {
		x := report.Row{Name: "state: " + r.Name, Unit: r.Unit, Ours: r.Ours, Better: report.Less}
		if r.Limit > 0 {
			x.Goal = &r.Limit
		}
		rep.Add(x)
	}
	return nil
}
