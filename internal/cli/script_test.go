package cli

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// freeAddress is a port of loopback that nobody had a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestScripts runs the scenarios in testdata/script, each against a real manager of its own, without hosts.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			address := freeAddress(t)
			socket := startManager(t, address)
			testscript.Run(t, testscript.Params{
				Files: []string{file}, UpdateScripts: *update,
				Setup: func(e *testscript.Env) error {
					e.Setenv("DROVER_SOCKET", socket)
					e.Setenv("ADDRESS", address)
					e.Setenv("HOME", e.WorkDir)
					return makeDisks(e.WorkDir)
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": checkCode, "damage": damage},
			})
		})
	}
}

// checkCode is "code N COMMAND…": the command must end with exit code N.
func checkCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND…")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var exit interface{ ExitCode() int }
	if e, ok := err.(interface{ ExitCode() int }); ok { //nolint:errorlint // exec's own
		exit, got = e, e.ExitCode()
	}
	if err != nil && exit == nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}
