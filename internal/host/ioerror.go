package host

import (
	"context"
	"fmt"
	"time"

	v1 "drover/api/drover/v1"
)

// After a disk error the host looks again after ioPollMin, then twice as long each time, at most ioPollMax.
const (
	ioPollMin = time.Second
	ioPollMax = 30 * time.Second
	// ioRoom is how much room a file system must have before a VM that found it full goes on.
	ioRoom = 4 << 20
	// ioCalm is how long a VM must run before an error is a new one rather than the same again.
	ioCalm = 5 * time.Minute
)

// noteDiskErrors tells the beginning and the end of a stop by a disk error.
func (m *machine) noteDiskErrors(p processState, now time.Time) {
	switch {
	case p == procIOError && m.ioNext.IsZero():
		if now.Sub(m.ioSince) > ioCalm {
			m.ioWait.reset()
		}
		m.ioSince = now
		m.ioNext = now.Add(m.ioWait.next())
		m.event(v1.Severity_SEVERITY_ERROR, "VM_IO_ERROR", "stopped by a disk error: "+m.ioReason())
	case p == procRunning && !m.ioNext.IsZero() && now.After(m.ioNext):
		m.ioNext = time.Time{}
	}
}

// mend lets a VM that a disk error stopped go on, once there is room again. Other errors are simply tried again: the
// request is repeated by QEMU, and stops the VM again if it fails again.
func (m *machine) mend(ctx context.Context) error {
	p := m.process()
	if p == nil {
		return nil
	}
	m.ioNext = m.a.clk.Now().Add(m.ioWait.next())
	for name, made := range m.local.Made {
		room, err := free(made.Path)
		if err != nil {
			return fmt.Errorf("disk %s: %w", name, err)
		}
		if room < ioRoom {
			return nil // looked at again at ioNext
		}
	}
	if err := p.QMP().Cont(ctx); err != nil {
		return fmt.Errorf("go on after a disk error: %w", err)
	}
	st, err := p.QMP().QueryStatus(ctx)
	if err == nil && st.Running {
		m.ioNext = time.Time{}
		m.event(v1.Severity_SEVERITY_INFO, "VM_IO_RESUMED", "goes on after a disk error")
	}
	return nil
}
