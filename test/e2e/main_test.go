package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"drover/internal/lab"
)

// drover is the program under test, built from this tree.
var drover string

func TestMain(m *testing.M) {
	lab.MaybeDaemon()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if drover = os.Getenv("DROVER_BIN"); drover == "" {
		dir, err := os.MkdirTemp("", "drover-e2e")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		drover = filepath.Join(dir, "drover")
		build := exec.CommandContext(context.Background(), "go", "build", "-o", drover, "drover/cmd/drover")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build drover:", err)
			return 1
		}
	}
	return m.Run()
}
