package main

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// procs reaps every child, as process 1 must, and hands the status to whoever started it.
type procs struct {
	mu   sync.Mutex
	wait map[int]chan syscall.WaitStatus
}

func newProcs() *procs { return &procs{wait: map[int]chan syscall.WaitStatus{}} }

// start runs path; the status arrives on the channel once.
func (p *procs) start(path string, argv []string, attr *os.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	// The lock is held over the fork so that reap cannot see the child's end before it is registered.
	p.mu.Lock()
	defer p.mu.Unlock()
	files := make([]uintptr, len(attr.Files))
	for i, f := range attr.Files {
		files[i] = f.Fd()
	}
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Dir: attr.Dir, Env: attr.Env, Files: files, Sys: attr.Sys})
	if err != nil {
		return 0, nil, err
	}
	ch := make(chan syscall.WaitStatus, 1)
	p.wait[pid] = ch
	return pid, ch, nil
}

func (p *procs) reap() {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGCHLD)
	for range sig {
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			p.mu.Lock()
			ch := p.wait[pid]
			delete(p.wait, pid)
			p.mu.Unlock()
			if ch != nil {
				ch <- ws
			}
		}
	}
}

// console keeps an interactive shell on the serial console, for ever.
func (m *machine) console() {
	for {
		tty, err := os.OpenFile("/dev/console", os.O_RDWR|syscall.O_NOCTTY, 0)
		if t, e := os.OpenFile("/dev/ttyS0", os.O_RDWR|syscall.O_NOCTTY, 0); e == nil {
			if tty != nil {
				tty.Close()
			}
			tty, err = t, nil
		}
		if err != nil {
			m.printf("console: %v", err)
			select {}
		}
		env := append(os.Environ(), "PS1="+m.host()+":\\w# ")
		_, done, err := m.procs.start("/bin/sh", []string{"-sh"}, &os.ProcAttr{Dir: "/root", Env: env,
			Files: []*os.File{tty, tty, tty}, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}})
		tty.Close()
		if err != nil {
			m.printf("shell: %v", err)
			select {}
		}
		<-done
	}
}
