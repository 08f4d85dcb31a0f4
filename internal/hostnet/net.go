package hostnet

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrNotFound says that a link or namespace does not exist.
var ErrNotFound = errors.New("not found")

// ErrForeign says that something of that name exists which is not ours, or not
// of the kind asked for. It is left alone.
var ErrForeign = errors.New("exists and is not Drover's")

// Net is a network namespace. It is held open: the namespace lives at least as
// long as the Net. Close it.
type Net struct {
	name string
	ns   netns.NsHandle
	h    *netlink.Handle
}

// Current is the namespace that the calling thread is in: the process's own,
// unless called within Do.
func Current() (*Net, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open current network namespace: %w", err)
	}
	return newNet("", ns)
}

// Open opens the namespace of that name, as made by Create or "ip netns add".
func Open(name string) (*Net, error) {
	if err := checkNamespaceName(name); err != nil {
		return nil, err
	}
	ns, err := netns.GetFromPath(namespacePath(name))
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("network namespace %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	return newNet(name, ns)
}

func newNet(name string, ns netns.NsHandle) (*Net, error) {
	var h *netlink.Handle
	err := onThread(func() (err error) {
		h, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("netlink socket in namespace %q: %w", name, err)
	}
	return &Net{name: name, ns: ns, h: h}, nil
}

// Close releases the namespace. It does not delete it.
func (n *Net) Close() error {
	n.h.Close()
	return n.ns.Close()
}

// Name is the name that the namespace was opened by; empty for Current.
func (n *Net) Name() string { return n.name }

// Inode identifies the namespace among all that live now.
func (n *Net) Inode() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(n.ns), &st); err != nil {
		return 0, fmt.Errorf("stat network namespace %q: %w", n.name, err)
	}
	return st.Ino, nil
}

// Do runs fn on a thread that is in the namespace. Sockets, TAPs and processes
// made by fn belong to the namespace and stay in it; goroutines that fn starts
// do not run in it. A process started in fn must not use Pdeathsig: the thread
// may end when fn has returned.
func (n *Net) Do(fn func() error) error {
	return onThread(func() error {
		old, err := netns.Get()
		if err != nil {
			return fmt.Errorf("remember network namespace: %w", err)
		}
		defer old.Close()
		if err := netns.Set(n.ns); err != nil {
			return fmt.Errorf("enter network namespace %q: %w", n.name, err)
		}
		return restoring(old, fn)
	})
}

// errStuck marks a thread that could not be brought back.
var errStuck = errors.New("thread cannot leave a network namespace")

func restoring(old netns.NsHandle, fn func() error) (err error) {
	defer func() {
		if e := netns.Set(old); e != nil {
			err = errors.Join(err, errStuck, e)
		}
	}()
	return fn()
}

// onThread runs fn on a locked thread that is not the process's main thread: what
// others read in /proc/PID/ns is always the process's own namespace. A panic in
// fn is passed on to the caller. The thread ends with fn if it is stuck.
func onThread(fn func() error) error {
	type result struct {
		err error
		p   any
	}
	ch := make(chan result, 1)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Hold the main thread until another one has done the work.
			done := make(chan struct{})
			go func() { defer close(done); run() }()
			<-done
			runtime.UnlockOSThread()
			return
		}
		var r result
		defer func() {
			r.p = recover()
			if r.p == nil && !errors.Is(r.err, errStuck) {
				runtime.UnlockOSThread()
			}
			ch <- r
		}()
		r.err = fn()
	}
	go run()
	r := <-ch
	if r.p != nil {
		panic(r.p)
	}
	return r.err
}

// Start starts cmd in the namespace. See Do about Pdeathsig.
func (n *Net) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Run starts cmd in the namespace and waits for it.
func (n *Net) Run(cmd *exec.Cmd) error {
	if err := n.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}
