package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"drover/bench/report"
	"drover/internal/hostnet"

	"golang.org/x/sys/unix"
)

// inside runs the measurements, as the first process of its namespaces.
func inside(ctx context.Context, o *options, dir string) error {
	if err := ownNamespaces(); err != nil {
		return err
	}
	rep := &report.Report{W: os.Stdout}
	if o.wants("start") || o.wants("batch") {
		if err := starts(ctx, o, dir, rep); err != nil {
			return fmt.Errorf("starts: %w", err)
		}
	}
	if o.wants("memory") {
		if err := memory(ctx, o, dir, rep); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
	}
	if o.wants("state") {
		if err := state(ctx, dir, rep); err != nil {
			return fmt.Errorf("state: %w", err)
		}
	}
	if o.testSeconds > 0 {
		rep.Add(report.Row{Name: "make test", Unit: "s", Ours: o.testSeconds, Goal: report.Ptr(720.0), Better: report.Less})
	}
	where := report.Machine(time.Now())
	if err := rep.Table(where); err != nil {
		return err
	}
	if o.out == "" {
		return nil
	}
	return rep.Write(o.out, where)
}

func starts(ctx context.Context, o *options, dir string, rep *report.Report) error {
	ctx, r, err := newRig(ctx, o, dir, "real")
	if err != nil {
		return err
	}
	defer r.close()
	if o.wants("start") {
		if err := r.single(ctx, o, rep); err != nil {
			return err
		}
	}
	if o.wants("batch") {
		return r.together(ctx, o, rep)
	}
	return nil
}

// ownNamespaces sets up /proc, which shows other processes than before, and loopback. Mounts stay in here.
func ownNamespaces() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	n, err := hostnet.Current()
	if err != nil {
		return err
	}
	return errors.Join(n.SetUp("lo", true), n.Close())
}
