package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/guest"
	"drover/internal/nbd"
)

// pattern is an export whose bytes say where they are; it may be told to fail, and counts reads.
type pattern struct {
	size  int64
	fail  atomic.Bool
	slow  atomic.Int64 // nanoseconds for each read
	reads atomic.Int64
}

func (p *pattern) Size() int64 { return p.size }

func (p *pattern) ReadAt(_ context.Context, b []byte, off int64) error {
	if p.fail.Load() {
		return errors.New("the vault is away")
	}
	p.reads.Add(1)
	time.Sleep(time.Duration(p.slow.Load()))
	p.at(b, off)
	return nil
}

func (p *pattern) at(b []byte, off int64) {
	for i := range b {
		b[i] = byte((off+int64(i))/4096) | 1
	}
}

// serveBase serves an export on a socket that QEMU's user may open, until the returned function is called.
func serveBase(t *testing.T, path string, x nbd.Export) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chown(path, testUID, testUID), os.Chmod(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	s := nbd.NewServer(nbd.ServerOptions{Lookup: func(_ context.Context, name string, _ nbd.Peer) (nbd.Export, func(), error) {
		if name != "base" {
			return nil, nil, nbd.ErrNoExport
		}
		return x, func() {}, nil
	}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// TestRemoteBase starts a machine over a base that is not here, has the base fail and go away, and streams it in.
func TestRemoteBase(t *testing.T) {
	r := newRig(t, guest.Q35, diskModules...)
	ctx := testContext(t)
	sock := filepath.Join(filepath.Dir(r.spec.Memory.Path), "nbd")
	base := &pattern{size: 64 << 20}
	stop := serveBase(t, sock, base)
	top := r.image(t, "root-1", Qcow2, "64M")
	r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Slot: 0, Layers: []Layer{
		{ID: "root-0", Format: Raw, Shared: true, Remote: &RemoteBase{Socket: sock, Export: "base"}}, top,
	}}}
	p := r.start(t, Attach{})
	sh := boot(t, p)
	sum := func(mib int) string {
		return sh.run(t, "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip="+strconv.Itoa(mib)+" count=1 2>/dev/null | od -An -tx1 -N1 -j 8192 | tr -d ' '")
	}
	want := func(mib int) string {
		b := make([]byte, 1)
		base.at(b, int64(mib)<<20+8192)
		return fmt.Sprintf("%02x", b[0])
	}
	if got := sum(3); got != want(3) {
		t.Fatalf("the guest reads %q of the base, want %q", got, want(3))
	}
	sh.run(t, "echo guest | dd of=/dev/vda bs=4k seek=1 conv=fsync 2>/dev/null")

	// Reads fail: the machine stands still, and goes on when they don't.
	base.fail.Store(true)
	sh.n++
	if _, err := fmt.Fprintf(sh.conn, "%d echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=40 count=1 2>/dev/null | od -An -tx1 -N1 -j 8192 | tr -d ' '\n", sh.n); err != nil {
		t.Fatal(err)
	}
	await(t, "the stop", func() bool {
		st, err := p.QMP().QueryStatus(ctx)
		return err == nil && st.Status == "io-error"
	})
	base.fail.Store(false)
	if err := p.QMP().Cont(ctx); err != nil {
		t.Fatal(err)
	}
	if got, _ := sh.until(t, fmt.Sprintf("@%d", sh.n)); strings.TrimSpace(got) != want(40) {
		t.Fatalf("after a stop the guest reads %q, want %q", got, want(40))
	}

	// The server goes in the middle of a stream and comes back: the stream goes on, or is begun again.
	base.slow.Store(int64(20 * time.Millisecond))
	streamed := make(chan error, 1)
	go func() { streamed <- p.Stream(ctx, "root", 0, nil) }()
	n := base.reads.Load()
	await(t, "the stream", func() bool { return base.reads.Load() > n+3 })
	stop()
	os.Remove(sock)
	// While it is away a read never brings anything: it waits, and then the machine stands still.
	sh.n++
	if _, err := fmt.Fprintf(sh.conn, "%d echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=63 count=1 2>/dev/null | od -An -tx1 -N1 -j 8192 | tr -d ' '\n", sh.n); err != nil {
		t.Fatal(err)
	}
	await(t, "the stop without a server", func() bool {
		st, err := p.QMP().QueryStatus(ctx)
		return err == nil && st.Status == "io-error"
	})
	base.slow.Store(0)
	serveBase(t, sock, base)
	// It may stop again until QEMU has come back to the server, as a host finds out.
	await(t, "a machine that goes on", func() bool {
		if err := p.QMP().Cont(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		st, err := p.QMP().QueryStatus(ctx)
		return err == nil && st.Running
	})
	if got, _ := sh.until(t, fmt.Sprintf("@%d", sh.n)); strings.TrimSpace(got) != want(63) {
		t.Fatalf("after the server was away the guest reads %q, want %q", got, want(63))
	}
	if err := <-streamed; err != nil {
		t.Logf("the stream ended (%v) and is begun again", err)
		if err := p.Stream(ctx, "root", 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	if l := p.Spec().Disks[0].Layers; len(l) != 1 || l[0].ID != "root-1" {
		t.Fatalf("layers after the stream: %v", l)
	}
	nodes, err := p.QMP().QueryNamedBlockNodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.NodeName == "root-0" {
			t.Error("the base is still in the graph")
		}
	}
	if err := p.Stream(ctx, "root", 0, nil); err != nil {
		t.Errorf("a stream of a disk that is whole: %v", err)
	}
	if got := sh.run(t, "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=4k skip=1 count=1 2>/dev/null | head -n 1"); got != "guest" {
		t.Errorf("what the guest wrote is %q", got)
	}
	if _, err := p.Quit(ctx); err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(r.dir, "raw")
	if out, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", top.Path, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	got, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]byte, base.size)
	base.at(all, 0)
	clear(all[4096:8192])
	copy(all[4096:], "guest\n")
	copy(got[4096+6:8192], make([]byte, 4090))
	copy(all[4096+6:8192], make([]byte, 4090))
	if !bytes.Equal(got, all) {
		t.Error("the disk on its own is not the base with what the guest wrote")
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("no sign of %s", what)
}

// TestUserNet: a NIC on a network of QEMU's own has DHCP, a forwarded port, and nothing else.
func TestUserNet(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	r := newRig(t, guest.Q35, "virtio_pci", "virtio_net")
	r.spec.NICs = []NIC{{ID: "net0", Slot: 0, Adapter: guest.VirtioNet, MAC: "52:54:00:00:00:01", User: &UserNet{Forward: []Forward{{Host: port, Guest: 80}}}}}
	p := r.start(t, Attach{})
	sh := boot(t, p)
	sh.run(t, "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0")
	sh.run(t, "(while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nhello' | nc -l -p 80; done) >/dev/null 2>&1 &")
	ok := false
	for range 100 {
		c := http.Client{Timeout: 2 * time.Second}
		if res, err := c.Get("http://127.0.0.1:" + strconv.Itoa(port)); err == nil {
			b := make([]byte, 5)
			n, _ := res.Body.Read(b)
			res.Body.Close()
			if ok = strings.HasPrefix("hello", string(b[:n])); ok {
				break
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !ok {
		t.Error("the forwarded port does not answer")
	}
}
