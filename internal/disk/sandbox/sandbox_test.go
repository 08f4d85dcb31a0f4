package sandbox

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func output(t *testing.T, b Box, argv ...string) (string, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	err = b.Run(t.Context(), IO{Out: w}, nil, argv...)
	w.Close()
	out, rerr := io.ReadAll(r)
	if rerr != nil {
		t.Fatal(rerr)
	}
	return string(out), err
}

func TestToolIsConfined(t *testing.T) {
	out, err := output(t, Box{}, "sh", "-c", "id -u; id -G; echo $$; cat /proc/net/dev | tail -n +3 | cut -d: -f1; grep -E 'NoNewPrivs|CapEff|CapPrm' /proc/self/status; ulimit -v; env | wc -l")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out), " ")
	want := "70999 70999 1 lo CapPrm: 0000000000000000 CapEff: 0000000000000000 NoNewPrivs: 1 2097152"
	if !strings.HasPrefix(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestToolCannotOpenWhatItWasNotGiven(t *testing.T) {
	f := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := output(t, Box{}, "cat", f); err == nil || out != "" || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("cat of a private file: %q, %v", out, err)
	}
}

func TestLimits(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (Box{}).Share(f, true); err != nil {
		t.Fatal(err)
	}
	err = Box{MaxFile: 1 << 20}.Run(t.Context(), IO{}, []*os.File{f}, "dd", "if=/dev/zero", "of="+FD(0), "bs=64k", "count=100")
	if err == nil {
		t.Error("a tool wrote more than its file limit")
	}
	if st, _ := f.Stat(); st.Size() > 1<<20 {
		t.Errorf("the file has %d bytes", st.Size())
	}
	if _, err := output(t, Box{Timeout: 200 * time.Millisecond}, "sleep", "60"); err == nil || !strings.Contains(err.Error(), "longer than 200ms") {
		t.Errorf("timeout: %v", err)
	}
}

func TestNothingSurvivesCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	done := make(chan error, 1)
	go func() {
		// The grandchild leaves the session and keeps the pipe open for as long as it lives.
		done <- Box{}.Run(ctx, IO{Out: w}, nil, "sh", "-c", "setsid sleep 300 & echo up; wait")
		w.Close()
	}()
	b := make([]byte, 3)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "up\n" {
		t.Fatalf("start: %q, %v", b, err)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("a cancelled tool reported success")
	}
	// Ends only when every process that held the pipe is gone.
	if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != nil {
		t.Errorf("a process outlived the sandbox: %v", err)
	}
}

func TestGraphStatesBacking(t *testing.T) {
	n := &Node{File: 0, Format: "qcow2", Backing: &Node{File: 1, Format: "qcow2", Backing: &Node{File: 2, Format: "raw"}}}
	want := `json:{"backing":{"backing":{"driver":"raw","file":{"driver":"file","filename":"/proc/self/fd/5"}},"driver":"qcow2","file":{"driver":"file","filename":"/proc/self/fd/4"}},"driver":"qcow2","file":{"driver":"file","filename":"/proc/self/fd/3"}}`
	if got := n.Filename(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	alone := &Node{Format: "qcow2"}
	if got := alone.Filename(); !strings.Contains(got, `"backing":null`) {
		t.Errorf("a lone image doesn't forbid backing: %s", got)
	}
}
