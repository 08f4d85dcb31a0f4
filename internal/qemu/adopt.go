package qemu

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"drover/internal/guest"
	"drover/internal/qmp"
)

// Adopt takes over a machine that another agent, now gone, has started. If the machine has ended meanwhile the error
// wraps ErrNotRunning; LastSpec tells what it was and Clean tidies up. Of opt, only Dir and Log are used.
func Adopt(ctx context.Context, opt Options) (*Process, error) {
	st, err := readState(opt.Dir)
	if err != nil {
		return nil, fmt.Errorf("adopt machine in %s: %w", opt.Dir, err)
	}
	if _, err := guest.Lookup(st.Spec.Machine, st.Spec.Version); err != nil {
		return nil, err
	}
	opt.UID, opt.GID, opt.Cgroup = st.UID, st.GID, st.Cgroup
	p := newProcess(opt, *st)
	if p.fd, err = openRunning(st.PID, st.StartTime, st.BootID); err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", st.Spec.Name, err)
	}
	if p.fd == nil {
		return nil, fmt.Errorf("adopt machine %s: %w", st.Spec.Name, ErrNotRunning)
	}
	p.pid = st.PID
	if err := p.reconnect(ctx); err != nil {
		return nil, fmt.Errorf("adopt machine %s (process %d): %w", st.Spec.Name, p.pid, err)
	}
	if err := p.reconcile(ctx); err != nil {
		p.Leave()
		return nil, fmt.Errorf("adopt machine %s (process %d): %w", st.Spec.Name, p.pid, err)
	}
	return p, nil
}

func (p *Process) reconnect(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			p.fd.f.Close()
		}
	}()
	if p.stderr, err = followStderr(p.opt.Dir); err != nil {
		return err
	}
	var c conns
	defer func() {
		if err != nil {
			c.close()
			p.stderr.close()
		}
	}()
	if c.serial, err = dialUnix(ctx, filepath.Join(p.opt.Dir, conSocket)); err != nil {
		return err
	}
	if c.agent, err = dialUnix(ctx, filepath.Join(p.opt.Dir, qgaSocket)); err != nil {
		return err
	}
	client, err := qmp.Dial(ctx, filepath.Join(p.opt.Dir, qmpSocket), qmp.Options{Log: p.log})
	if err != nil {
		return err
	}
	p.serial, p.agent = c.serial, c.agent
	p.follow(client)
	return nil
}

// LastSpec reads what the machine in a directory was when its state was last written.
func LastSpec(dir string) (Spec, error) {
	st, err := readState(dir)
	if err != nil {
		return Spec{}, err
	}
	return st.Spec, nil
}

// startGrace is how long Clean waits for a QEMU that was being started when its agent died.
const startGrace = 5 * time.Second

// Clean makes sure that no process of the machine runs, and removes its sockets, state and memory; the log stays. It
// is what ends a machine that cannot or shall not be adopted, and may be repeated.
func Clean(ctx context.Context, dir string) error {
	st, err := readState(dir)
	if err != nil {
		removeRuntime(dir)
		return nil
	}
	if st.PID == 0 {
		// The agent died while QEMU was being started: it stands still and listens, or there is none.
		if err := quitUnknown(ctx, dir); err != nil {
			return fmt.Errorf("clean up machine %s: %w", st.Spec.Name, err)
		}
	}
	fd, err := openRunning(st.PID, st.StartTime, st.BootID)
	if err != nil {
		return err
	}
	if fd != nil {
		err := killAndWait(ctx, fd)
		fd.f.Close()
		if err != nil {
			return fmt.Errorf("clean up machine %s: %w", st.Spec.Name, err)
		}
	}
	removeMemory(&st.Spec)
	removeRuntime(dir)
	return nil
}

// quitUnknown ends a QEMU whose pid was never written down.
func quitUnknown(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, startGrace)
	defer cancel()
	conn, err := dialUnix(ctx, filepath.Join(dir, qmpSocket))
	if err != nil {
		return nil // nobody listens
	}
	client, err := qmp.New(ctx, conn, qmp.Options{})
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return nil // it ended
	}
	defer client.Close()
	if err := client.Quit(ctx); err != nil && !errors.Is(err, qmp.ErrGone) {
		return err
	}
	select {
	case <-client.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
