package cli

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"drover/internal/httpapi"
	"drover/internal/manager"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "write golden files")

// TestMain lets this binary be the program, for scripts and for roles.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"drover": func() { os.Exit((&App{Version: "test"}).Main(context.Background(), os.Args[1:])) },
	})
}

// startManager runs a real manager and returns its socket and the address of its API. It ends with the test.
func startManager(t interface {
	Helper()
	Fatal(...any)
	TempDir() string
	Cleanup(func())
	Context() context.Context
}, listen string) (socket string) {
	t.Helper()
	// A socket's path is short, a test's directory is not.
	short, err := os.MkdirTemp("", "drv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	socket = filepath.Join(short, "m.sock")
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- httpapi.Run(ctx, manager.Config{StateDir: filepath.Join(t.TempDir(), "state"), Listen: listen, Socket: socket, Advertise: []string{"127.0.0.1"}, Logger: quiet(), Version: "test"},
			func(*manager.Manager) { close(ready) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Fatal("manager: ", err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		t.Fatal("manager: ", err)
	}
	return socket
}
