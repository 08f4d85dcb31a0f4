package osimage

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// testOptions keeps builds in the user's cache, so that only the first run of the tests pays for them.
func testOptions(t testing.TB) Options {
	return Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), CacheDir: os.Getenv("DROVER_IMAGE_CACHE")}
}

// testGuest is a QEMU process, its console, its monitor and its guest agent.
type testGuest struct {
	t       testing.TB
	cmd     *exec.Cmd
	started time.Time
	exited  chan struct{}
	qmp     *lineConn
	agent   *lineConn
	port    string // of the host, on loopback, forwarded to the guest's port

	mu    sync.Mutex
	text  bytes.Buffer
	moved chan struct{} // closed and replaced when text grows
}

// startGuest runs QEMU without KVM. machine is given with its options; forward is the guest's TCP port to reach, over a NIC of the given model.
func startGuest(t testing.TB, machine, nic string, forward int, args ...string) *testGuest {
	t.Helper()
	return startGuestStdin(t, nil, machine, nic, forward, args...)
}

// startGuestStdin is startGuest with something to type on the console.
func startGuestStdin(t testing.TB, in *os.File, machine, nic string, forward int, args ...string) *testGuest {
	t.Helper()
	dir := t.TempDir()
	g := &testGuest{t: t, exited: make(chan struct{}), moved: make(chan struct{})}
	qmp, agent := listen(t, dir, "qmp"), listen(t, dir, "agent")
	serial := "virtio-serial-pci"
	if strings.HasPrefix(machine, "microvm") {
		serial = "virtio-serial-device"
	}
	base := []string{"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", machine + ",accel=tcg", "-cpu", "max",
		"-serial", "stdio", "-chardev", "socket,id=qmp,path=" + qmp.Addr().String(), "-mon", "chardev=qmp,mode=control",
		"-device", serial, "-chardev", "socket,id=agent,path=" + agent.Addr().String(), "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
		"-netdev", fmt.Sprintf("user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:0-:%d", forward), "-device", nic + ",netdev=n0,mac=52:54:00:12:34:56"}
	g.cmd = exec.Command("qemu-system-x86_64", append(base, args...)...)
	if in != nil {
		g.cmd.Stdin = in
	}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	g.cmd.Stderr = g
	g.started = time.Now()
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() { io.Copy(g, out); close(read) }()
	go func() { <-read; g.cmd.Wait(); close(g.exited) }()
	t.Cleanup(func() {
		g.cmd.Process.Kill()
		<-g.exited
		if t.Failed() {
			t.Logf("console:\n%s", g.console())
		}
	})
	g.qmp, g.agent = accept(t, qmp), accept(t, agent)
	g.qmp.line(10 * time.Second)
	g.command(`{"execute":"qmp_capabilities"}`)
	usernet := g.command(`{"execute":"human-monitor-command","arguments":{"command-line":"info usernet"}}`)
	if m := regexp.MustCompile(`HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)`).FindStringSubmatch(usernet); m != nil {
		g.port = m[1]
	} else {
		t.Fatalf("no forwarded port in %s", usernet)
	}
	return g
}

func listen(t testing.TB, dir, name string) net.Listener {
	l, err := net.Listen("unix", filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func accept(t testing.TB, l net.Listener) *lineConn {
	t.Helper()
	l.(*net.UnixListener).SetDeadline(time.Now().Add(20 * time.Second))
	c, err := l.Accept()
	if err != nil {
		t.Fatalf("QEMU did not connect: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return &lineConn{t: t, c: c, r: bufio.NewReader(c)}
}

func (g *testGuest) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.text.Write(b)
	close(g.moved)
	g.moved = make(chan struct{})
	return len(b), nil
}

func (g *testGuest) console() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.String()
}

// await waits until the console shows a match and gives it, with the time since QEMU's start.
func (g *testGuest) await(pattern string, limit time.Duration) (string, time.Duration) {
	g.t.Helper()
	re := regexp.MustCompile(pattern)
	end := time.After(limit)
	for {
		g.mu.Lock()
		m, moved := re.FindString(g.text.String()), g.moved
		g.mu.Unlock()
		if m != "" {
			return m, time.Since(g.started)
		}
		select {
		case <-moved:
		case <-g.exited:
			g.t.Fatalf("QEMU ended before the console showed %q", pattern)
		case <-end:
			g.t.Fatalf("the console does not show %q after %v", pattern, limit)
		}
	}
}

func (g *testGuest) awaitExit(limit time.Duration) {
	g.t.Helper()
	select {
	case <-g.exited:
	case <-time.After(limit):
		g.t.Fatalf("QEMU still runs after %v", limit)
	}
	if s := g.cmd.ProcessState; !s.Success() {
		g.t.Errorf("QEMU ended with %v", s)
	}
}

// command sends one to the monitor and gives the reply, past any events.
func (g *testGuest) command(js string) string {
	g.t.Helper()
	g.qmp.send(js + "\n")
	for {
		l := g.qmp.line(20 * time.Second)
		if strings.Contains(l, `"error"`) {
			g.t.Fatalf("%s: %s", js, l)
		}
		if strings.Contains(l, `"return"`) {
			return l
		}
	}
}

// ask sends a guest agent command and decodes what it returns.
func (g *testGuest) ask(out any, js string) {
	g.t.Helper()
	g.agent.send(js + "\n")
	l := g.agent.line(30 * time.Second)
	var r struct {
		Return json.RawMessage
		Error  json.RawMessage
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(l, "\xff")), &r); err != nil || r.Error != nil {
		g.t.Fatalf("agent: %s: %s %v", js, l, err)
	}
	if out != nil {
		if err := json.Unmarshal(r.Return, out); err != nil {
			g.t.Fatalf("agent: %s: %s: %v", js, l, err)
		}
	}
}

// get reads a page of the guest.
func (g *testGuest) get(path string) string {
	g.t.Helper()
	c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get("http://127.0.0.1:" + g.port + path)
	if err != nil {
		g.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != 200 {
		g.t.Fatalf("GET %s: %s, %v: %s", path, r.Status, err, b)
	}
	return string(b)
}

func (g *testGuest) getJSON(path string) map[string]any {
	g.t.Helper()
	m := map[string]any{}
	if s := g.get(path); json.Unmarshal([]byte(s), &m) != nil {
		g.t.Fatalf("GET %s: not JSON: %s", path, s)
	}
	return m
}

type lineConn struct {
	t testing.TB
	c net.Conn
	r *bufio.Reader
}

func (l *lineConn) send(s string) {
	l.t.Helper()
	l.c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(l.c, s); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lineConn) line(limit time.Duration) string {
	l.t.Helper()
	l.c.SetReadDeadline(time.Now().Add(limit))
	s, err := l.r.ReadString('\n')
	if err != nil {
		l.t.Fatalf("no answer on %s: %v (got %q)", l.c.LocalAddr(), err, s)
	}
	return strings.TrimSpace(s)
}
