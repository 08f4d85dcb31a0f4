package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"drover/internal/guest"
)

// maxScreen bounds a picture: the guest chooses the size of its screen.
const maxScreen = 64 << 20

// maxPixels bounds what a small file can unfold to: 8192 × 8192.
const maxPixels = 64 << 20

// Screen takes a picture of the guest's screen.
func (p *Process) Screen(ctx context.Context) (_ image.Image, err error) {
	defer func() { err = p.wrap("take a picture of the screen", "", err) }()
	if err := p.hasScreen(); err != nil {
		return nil, err
	}
	m, err := memfd("screen")
	if err != nil {
		return nil, err
	}
	defer m.Close()
	// QEMU opens it only for writing, and wants a descriptor that is exactly that.
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", m.Fd()), os.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	name, err := p.passSet(ctx, "screen", w)
	if err != nil {
		return nil, err
	}
	err = p.qmp.Screendump(ctx, name, "png")
	undo, cancel := p.undoContext(ctx)
	defer cancel()
	p.dropSet(undo, name)
	if err != nil {
		return nil, err
	}
	if _, err := m.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(m, maxScreen))
	if err != nil {
		return nil, err
	}
	if size, err := png.DecodeConfig(bytes.NewReader(b)); err != nil || int64(size.Width)*int64(size.Height) > maxPixels {
		return nil, fmt.Errorf("the picture is none, or has more than %d pixels: %w", maxPixels, errors.Join(err, ErrGuest))
	}
	return png.Decode(bytes.NewReader(b))
}

// VNC opens a viewer's connection (RFC 6143) to the guest's screen, without authentication: whoever gets it must have
// been authenticated. The caller closes it.
func (p *Process) VNC(ctx context.Context) (_ net.Conn, err error) {
	defer func() { err = p.wrap("open the screen", "", err) }()
	if err := p.hasScreen(); err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "vnc"), os.NewFile(uintptr(pair[1]), "vnc-qemu")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, err
	}
	unlock, err := p.lock(ctx)
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer unlock()
	if err = p.qmp.GetFD(ctx, "vnc-client", theirs); err == nil {
		err = p.qmp.Execute(ctx, "add_client", map[string]any{"protocol": "vnc", "fdname": "vnc-client", "skipauth": true}, nil)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (p *Process) hasScreen() error {
	if !p.hardware().VGA.Present() || p.Spec().Headless {
		return fmt.Errorf("the machine has no screen: %w; use its serial console", guest.ErrUnsupported)
	}
	return nil
}
