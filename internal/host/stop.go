package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/qemu"
)

// quitTimeout is how long QEMU may take to put what it has in flight into the images before it is killed.
const quitTimeout = 5 * time.Second

// cleanTimeout bounds the removal of a process's leftovers.
const cleanTimeout = 30 * time.Second

// pressPower begins a graceful stop.
func (m *machine) pressPower(ctx context.Context) error {
	p := m.process()
	if p == nil {
		return nil
	}
	if err := p.QMP().SystemPowerdown(ctx); err != nil {
		return fmt.Errorf("press the power button: %w", err)
	}
	m.stage, m.stopSince = stopACPI, m.a.clk.Now()
	return nil
}

// kill ends QEMU. What the guest has given to its disks is kept; what it has not is lost, as with a power cut.
func (m *machine) kill(ctx context.Context, why string) error {
	run := m.local.Run
	if run != nil && !run.Stopping {
		run.Stopping = true
		if err := m.save(); err != nil {
			return err
		}
	}
	p := m.process()
	if p == nil {
		return nil
	}
	m.log.Info("ending QEMU", "pid", p.PID(), "why", why)
	quit, cancel := context.WithTimeout(ctx, quitTimeout)
	defer cancel()
	_, err := p.Quit(quit)
	if err == nil {
		return nil
	}
	m.log.Warn("QEMU does not quit, killing it", "pid", p.PID(), "err", err)
	if _, err := p.Kill(ctx); err != nil {
		return fmt.Errorf("end QEMU: %w", err)
	}
	return nil
}

// clean removes what a process leaves: sockets, memory, TAPs, cgroup. It also ends a process that could not be adopted.
func (m *machine) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	m.console.drained(ctx)
	m.release()
	if err := errors.Join(qemu.Clean(ctx, m.run_), m.removeTAPs(ctx), m.a.removeCgroup(m.uid)); err != nil {
		return err
	}
	asked := m.local.Run != nil && m.local.Run.Stopping || m.stage != stopNone
	if m.local.Run != nil && asked {
		m.event(v1.Severity_SEVERITY_INFO, "VM_STOPPED", "stopped")
	}
	m.local.Run, m.lost, m.stage = nil, false, stopNone
	m.ioNext = time.Time{}
	if m.local.Boot != m.a.boot {
		m.local.Boot = m.a.boot
	}
	return m.save()
}

// wipe removes everything of the VM but its record, which goes when the manager knows.
func (m *machine) wipe(ctx context.Context) error {
	m.endInstant("")
	if err := m.removeDisks(ctx); err != nil {
		return fmt.Errorf("remove the disks: %w", err)
	}
	snaps, err := filepath.Glob(filepath.Join(m.dir, "snap-*"))
	if err != nil {
		return err
	}
	for _, path := range append(snaps, m.run_, m.seedPath(), filepath.Join(m.dir, firmwareVars), m.journalPath(), m.memoryPath(),
		m.pointMemory(), m.pointMemory()+".new", m.pointRecord(), m.baseSocket()) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	m.local.Gone = true
	if err := m.save(); err != nil {
		return err
	}
	m.event(v1.Severity_SEVERITY_INFO, "VM_DELETED", "nothing of it is left on this host")
	return nil
}
