package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// readyFD is where the process tells its starter that it serves, or why not.
const readyFD = 3

// Serve is the process: it makes the TUN device args[0], of MTU args[2], and is configured over the Unix socket args[1] in WireGuard's own protocol
// (https://www.wireguard.com/xplatform/). It ends with ctx, or when somebody deletes the device. It has no peers until it is told.
func Serve(ctx context.Context, args []string, log *slog.Logger) (err error) {
	ready := os.NewFile(readyFD, "ready")
	defer func() {
		if err != nil {
			_, _ = ready.WriteString(err.Error())
		}
		ready.Close()
	}()
	if len(args) != 3 {
		return fmt.Errorf("tunnel: got %d arguments; want device, socket and MTU", len(args))
	}
	name, socket := args[0], args[1]
	mtu, err := strconv.Atoi(args[2])
	if err != nil {
		return fmt.Errorf("tunnel: MTU %q is no number", args[2])
	}
	t, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return fmt.Errorf("tunnel: create device %s: %w", name, err)
	}
	log = log.With("device", name)
	dev := device.NewDevice(t, conn.NewDefaultBind(), &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf:   func(format string, args ...any) { log.Error("wireguard", "text", fmt.Sprintf(format, args...)) },
	})
	defer dev.Close()
	// The device is ours, so the socket is nobody's that lives.
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("tunnel: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("tunnel: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("tunnel: %w", err), l.Close())
	}
	var handlers sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	handlers.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			handlers.Go(func() {
				dev.IpcHandle(c)
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	if _, err := ready.WriteString("ok"); err != nil {
		log.Warn("tell the starter", "error", err)
	}
	ready.Close()
	select {
	case <-ctx.Done():
	case <-dev.Wait():
		log.Error("the device is gone")
	}
	l.Close()
	mu.Lock()
	for c := range open {
		c.Close()
	}
	mu.Unlock()
	handlers.Wait()
	return nil
}
