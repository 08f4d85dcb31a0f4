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
	"drover/internal/unwind"
)

// adoptTimeout is how long a QEMU may take to answer a new agent before it counts as lost.
const adoptTimeout = 15 * time.Second

// adopt finds the QEMU of an earlier agent. It is called before the actor runs.
func (m *machine) adopt(ctx context.Context) {
	m.resumeInstant()
	run := m.local.Run
	if run == nil || run.Boot != m.a.boot {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	p, err := qemu.Adopt(ctx, qemu.Options{Dir: m.run_, Log: m.log})
	if err != nil {
		m.lost, m.exit = true, "it ended while no agent was there"
		if !errors.Is(err, qemu.ErrNotRunning) {
			m.exit = err.Error()
		}
		m.log.Warn("the VM's QEMU is not taken over", "err", err)
		return
	}
	m.hold(p)
	m.log.Info("took over running QEMU", "pid", p.PID())
}

// startQEMU starts the VM. On failure nothing is left.
func (m *machine) startQEMU(ctx context.Context, vm *v1.VM, w wish) (err error) {
	began := m.a.clk.Now()
	if err := m.importsOpen(); err != nil {
		return err
	}
	m.endReading(errStarted)
	var u unwind.Stack
	defer u.Undo(ctx, &err)
	if err := m.a.ensureUser(m); err != nil {
		return err
	}
	if err := m.writeSeed(vm); err != nil {
		return fmt.Errorf("cloud-init seed: %w", err)
	}
	spec, err := m.qemuSpec(vm)
	if err != nil {
		return err
	}
	cgroup, err := m.a.makeCgroup(&u, m.uid)
	if err != nil {
		m.log.Warn("QEMU runs in the agent's own cgroup", "err", err)
	}
	attach := qemu.Attach{TAPs: map[string][]*os.File{}}
	defer func() {
		for _, files := range attach.TAPs {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	for _, n := range vm.GetSpec().GetNics() {
		f, err := m.tap(ctx, &u, vm.GetSpec(), n)
		if err != nil {
			return err
		}
		attach.TAPs[m.qemuNIC(n).ID] = []*os.File{f}
	}
	done, err := m.incoming(&spec, &attach)
	if err != nil {
		return err
	}
	defer done()
	// Written down before it exists: if the agent dies now, the next one looks for the process.
	run := &runRecord{Boot: m.a.boot, Epoch: w.epoch, Started: began, Accel: string(spec.Accel)}
	if err := run.setSpec(vm.GetSpec()); err != nil {
		return err
	}
	m.local.Run, m.local.Halt = run, nil
	m.local.Starts++
	if err := m.save(); err != nil {
		return err
	}
	u.Push("forget the process of VM "+vm.GetMeta().GetName(), func(context.Context) error {
		m.local.Run = nil
		return m.save()
	})
	if err := os.MkdirAll(filepath.Dir(m.run_), 0o711); err != nil {
		return err
	}
	p, err := qemu.Start(ctx, spec, attach, qemu.Options{
		Binary: m.a.cfg.QEMU, Dir: m.run_, UID: m.local.User, GID: m.local.User, Cgroup: cgroup, OOM: 200, Log: m.log,
	})
	if err != nil {
		return err
	}
	u.Push("end QEMU", func(ctx context.Context) error {
		run.Stopping = true
		m.release()
		return qemu.Clean(ctx, m.run_)
	})
	m.hold(p)
	m.local.Frozen = false
	if err := m.inspectTracks(ctx, p); err != nil {
		m.log.Warn("what is tracked of changes to disks was not looked at", "err", err)
	}
	if w.power != v1.Power_POWER_PAUSED {
		if err := p.QMP().Cont(ctx); err != nil {
			return fmt.Errorf("let the CPUs run: %w", err)
		}
	}
	u.Commit()
	m.started(spec, began)
	return nil
}

func (m *machine) started(spec qemu.Spec, began time.Time) {
	m.lastState = procRunning
	m.stage = stopNone
	m.ioNext = time.Time{}
	if m.local.Restore != "" {
		m.dropPointMemory()
		m.local.Restore = ""
		m.note()
	}
	m.settled()
	m.event(v1.Severity_SEVERITY_INFO, "VM_STARTED", fmt.Sprintf("started with %s in %s", spec.Accel, m.a.clk.Now().Sub(began).Round(time.Millisecond)))
}

// userBase is where the numeric users of VMs begin; above what distributions and directories give to people, below
// 2^31, which some file systems take for negative. Each state directory has its own block of userBlock.
const (
	userBase  = 1 << 30
	userBlock = 1 << 12
)

// ensureUser gives the VM a numeric user of its own on this host.
func (a *agent) ensureUser(m *machine) error {
	if m.local.User != 0 {
		return nil
	}
	var block uint32
	for _, b := range []byte(a.tag())[:4] {
		block = block<<4 | uint32(b&0x0f)
	}
	base := uint32(userBase) + block*userBlock
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.users) == 0 {
		a.users = map[uint32]string{}
	}
	for n := range uint32(userBlock) {
		if _, taken := a.users[base+n]; !taken {
			a.users[base+n] = m.uid
			m.local.User = base + n
			return nil
		}
	}
	return errors.New("no user id left for another VM on this host")
}

// resume lets a stopped VM go on.
func (m *machine) resume(ctx context.Context) error {
	p := m.process()
	if p == nil {
		return nil
	}
	if err := p.QMP().Cont(ctx); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	return nil
}

func (m *machine) pause(ctx context.Context) error {
	p := m.process()
	if p == nil {
		return nil
	}
	if err := p.QMP().Stop(ctx); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	return nil
}

// usersInUse fills the table of users from the records.
func (a *agent) usersInUse(ms map[string]*machine) {
	a.users = map[uint32]string{}
	for _, m := range ms {
		if m.local.User != 0 {
			a.users[m.local.User] = m.uid
		}
	}
}
