package cli

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// keys reads a terminal until its context ends: a plain read would wait for a key that may never be pressed.
type keys struct {
	f          *os.File
	wake, poke *os.File
	stop       func() bool
}

// keysOf makes a reader. The caller must close it after its last Read.
func keysOf(ctx context.Context, f *os.File) (*keys, error) {
	wake, poke, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	k := &keys{f: f, wake: wake, poke: poke}
	k.stop = context.AfterFunc(ctx, func() { poke.Close() })
	return k, nil
}

// Read is io.EOF once the context has ended.
func (k *keys) Read(b []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(k.f.Fd()), Events: unix.POLLIN}, {Fd: int32(k.wake.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case fds[1].Revents != 0:
			return 0, io.EOF
		case fds[0].Revents != 0:
			return k.f.Read(b)
		}
	}
}

func (k *keys) close() {
	k.stop()
	k.poke.Close()
	k.wake.Close()
}
