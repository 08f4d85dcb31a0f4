package host_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/resource"
)

// shelf is a repository of points whose disks are raw files, which outlives agents that are killed. While there is a file "down" in
// it, it does not answer; while there is "slow", it takes its time.
type shelf struct {
	backup.Repository
	dir string
}

// repoIn is the shelf of a bench that has one, else other.
func repoIn(dir string, other backup.Repository) backup.Repository {
	dir = filepath.Join(dir, "shelf")
	if _, err := os.Stat(dir); err != nil {
		return other
	}
	return shelf{dir: dir}
}

var errDown = errors.New("nobody answers at the vault's address")

func (s shelf) up() error {
	if _, err := os.Stat(filepath.Join(s.dir, "down")); err == nil {
		return errDown
	}
	return nil
}

func (s shelf) OpenPoint(_ context.Context, id string) (backup.PointReader, error) {
	if err := s.up(); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(s.dir, id+".json"))
	if err != nil {
		return nil, backup.ErrNotFound
	}
	r := &shelfPoint{s: s}
	return r, json.Unmarshal(b, &r.point)
}

type shelfPoint struct {
	s     shelf
	point backup.Point
}

func (r *shelfPoint) Point() backup.Point { return r.point }
func (r *shelfPoint) Close() error        { return nil }

func (r *shelfPoint) Disk(_ context.Context, name string) (backup.DiskReader, error) {
	f, err := backup.OpenFile(filepath.Join(r.s.dir, r.point.ID+"."+name))
	if err != nil {
		return nil, backup.ErrNotFound
	}
	return shelfDisk{f, r.s}, nil
}

type shelfDisk struct {
	*backup.FileSource
	s shelf
}

func (d shelfDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.s.up(); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(d.s.dir, "slow")); err == nil {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Duration(len(p)>>20+1) * 20 * time.Millisecond):
		}
	}
	if over := off + int64(len(p)) - d.Size(); over > 0 {
		clear(p[int64(len(p))-over:])
		p = p[:int64(len(p))-over]
	}
	return d.FileSource.ReadAt(ctx, p, off)
}

func (d shelfDisk) Extents(ctx context.Context, off, n int64) ([]backup.Extent, error) {
	if err := d.s.up(); err != nil {
		return nil, err
	}
	return d.FileSource.Extents(ctx, off, n)
}

func (shelfDisk) Changed(context.Context, string, string) ([]backup.Extent, error) {
	return nil, errors.New("not here")
}

// shelve makes a point with a disk root that begins with a word, and has known words at each MiB.
func (b *bench) shelve(id, word string, size int64, change ...func(*backup.Point)) {
	b.t.Helper()
	dir := filepath.Join(b.dir, "shelf")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	p := backup.Point{ID: id, VM: "web", Time: time.Now(), Disks: []backup.Disk{{Name: "root", Size: size}}}
	for _, c := range change {
		c(&p)
	}
	text, err := json.Marshal(p)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, id+".json"), text, 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	data := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for at := size / 8; at < size/2; at++ { // the rest is holes
		data[at] = byte(r.Uint32())
	}
	for at := int64(0); at < size; at += 1 << 20 {
		copy(data[at:], word+"\n")
	}
	f, err := backup.CreateFile(filepath.Join(dir, id+".root"), size)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	for at := int64(0); at < size; at += 64 << 10 {
		if part := data[at:min(at+64<<10, size)]; !allZero(part) {
			if err := f.WriteAt(b.t.Context(), part, at); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

func allZero(p []byte) bool {
	for _, x := range p {
		if x != 0 {
			return false
		}
	}
	return true
}

func (b *bench) shelfIs(state string, on bool) {
	b.t.Helper()
	path := filepath.Join(b.dir, "shelf", state)
	err := os.RemoveAll(path)
	if on {
		err = os.WriteFile(path, nil, 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func restoreRequest(uid, point string) *v1.NodeRestoreRequest {
	return &v1.NodeRestoreRequest{
		Operation: resource.NewUID(), Uid: uid, Epoch: 1, Point: point, Source: &v1.VaultTarget{Vault: &v1.VaultAddress{Repository: "shelf"}},
		Disks: []*v1.NodeRestoreDisk{{From: "root", To: "root"}}, Files: true,
	}
}

// restore runs a restore to its end, telling each message.
func (b *bench) restore(ctx context.Context, req *v1.NodeRestoreRequest, each func(*v1.NodeRestoreProgress)) error {
	b.t.Helper()
	stream, err := b.node(b.hostAddress()).Restore(ctx, req)
	if err != nil {
		return err
	}
	defer stream.Close()
	done := false
	for stream.Receive() {
		done = stream.Msg().GetDone()
		if each != nil {
			each(stream.Msg())
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if !done {
		return errors.New("it ended without saying done")
	}
	return nil
}

// ready is a restore that goes on after it is ready; the function waits for its end.
func (b *bench) restoreReady(req *v1.NodeRestoreRequest) (wait func() error) {
	b.t.Helper()
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		told := false
		ended <- b.restore(b.t.Context(), req, func(p *v1.NodeRestoreProgress) {
			if p.GetReady() && !told {
				told = true
				close(ready)
			}
		})
	}()
	select {
	case <-ready:
	case err := <-ended:
		b.t.Fatalf("it ended before it was ready: %v", err)
	case <-time.After(boot):
		b.t.Fatal("it is not ready")
	}
	return func() error {
		select {
		case err := <-ended:
			return err
		case <-time.After(2 * boot):
			return errors.New("no end of it")
		}
	}
}

const restoreSize = 64 << 20

func offSpec() *v1.VMSpec {
	spec := tinySpec()
	spec.Power = v1.Power_POWER_OFF
	spec.Disks = []*v1.DiskSpec{{Name: "root", SizeBytes: restoreSize}}
	return spec
}

func (b *bench) wordAt(uid string, mib string) string {
	return b.sh(uid, 1, "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip="+mib+" count=1 2>/dev/null | head -n 1")
}

func TestRestore(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.shelve("p1", "first", restoreSize)
	b.shelve("p2", "second", restoreSize)
	b.start()
	uid := b.vm("web", offSpec())
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	req := restoreRequest(uid, "p1")
	if err := b.restore(t.Context(), req, nil); err != nil {
		t.Fatal(err)
	}
	// The same again does nothing, and a point that is not there changes nothing.
	if err := b.restore(t.Context(), req, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.restore(t.Context(), restoreRequest(uid, "p9"), nil); err == nil {
		t.Fatal("a point that is not there was restored")
	}
	wrong := restoreRequest(uid, "p1")
	wrong.Disks[0].To = "data"
	if err := b.restore(t.Context(), wrong, nil); err == nil || !strings.Contains(err.Error(), "no disk data") {
		t.Fatalf("a disk that the VM does not have: %v", err)
	}
	// One that is cancelled changes nothing, and leaves nothing.
	b.shelfIs("slow", true)
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	if err := b.restore(ctx, restoreRequest(uid, "p2"), nil); err == nil {
		t.Fatal("it was over before it was cancelled")
	}
	b.shelfIs("slow", false)
	b.await(uid, "off", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetPhase() == v1.VMPhase_VM_PHASE_OFF })
	b.power(uid, v1.Power_POWER_ON)
	b.await(uid, "the guest agent", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetGuest().GetAgent() })
	if got := b.wordAt(uid, "60"); got != "first" {
		t.Errorf("the restored disk has %q", got)
	}
	if left, _ := filepath.Glob(filepath.Join(b.dir, "state/datastore/tmp/*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	if err := b.restore(t.Context(), restoreRequest(uid, "p2"), nil); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("a VM that runs: %v", err)
	}
}

// TestInstantRestore: the VM runs while its disk comes, the repository goes away and comes back, and nothing is lost.
func TestInstantRestore(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.shelve("p1", "first", restoreSize)
	b.start()
	uid := b.vm("web", offSpec())
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	b.shelfIs("slow", true)
	req := restoreRequest(uid, "p1")
	req.Instant, req.BandwidthLimit = true, 3<<20 // long enough for what follows
	began := time.Now()
	wait := b.restoreReady(req)
	t.Logf("ready after %v", time.Since(began))
	b.power(uid, v1.Power_POWER_ON)
	b.await(uid, "the guest agent", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetGuest().GetAgent() })
	if _, err := b.snapshot("create", &v1.NodeSnapshotRequest{Operation: resource.NewUID(), Uid: uid, Epoch: 1, Snapshot: "s1"}); err == nil || !strings.Contains(err.Error(), "restored") {
		t.Errorf("a snapshot meanwhile: %v", err)
	}
	b.shelfIs("down", true)
	b.sh(uid, 1, "echo guest | dd of=/dev/vda bs=512 conv=notrunc,sync,fsync 2>/dev/null")
	// Reads of the base wait, and stop the VM in the end; then all goes on by itself.
	read := make(chan string, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 2*boot)
		defer cancel()
		res, err := b.node(b.hostAddress()).Exec(ctx, &v1.NodeExecRequest{Uid: uid, Epoch: 1, Exec: &v1.ExecRequest{
			Path: "/bin/busybox", Args: []string{"sh", "-c", "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=50 count=1 2>/dev/null | head -n 1"},
			Timeout: durationpb.New(2 * boot),
		}})
		read <- fmt.Sprint(strings.TrimSpace(string(res.GetStdout())), err)
	}()
	b.await(uid, "a word about the repository", boot, func(r *v1.VMReport) bool { return strings.Contains(r.GetStatus().GetMessage(), "does not answer") })
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_IO_ERROR)
	b.shelfIs("down", false)
	b.shelfIs("slow", false)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_RUNNING)
	if got := <-read; got != "first<nil>" && got != "first <nil>" {
		t.Errorf("a read that waited brought %q", got)
	}
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	b.await(uid, "no message any more", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetMessage() == "" })
	if err := os.RemoveAll(filepath.Join(b.dir, "shelf", "p1.root")); err != nil {
		t.Fatal(err)
	}
	if got, want := b.sh(uid, 1, readWord), "guest"; got != want {
		t.Errorf("the disk begins with %q, want %q", got, want)
	}
	b.power(uid, v1.Power_POWER_OFF)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	b.power(uid, v1.Power_POWER_ON)
	b.await(uid, "the guest agent", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetGuest().GetAgent() })
	for _, mib := range []string{"1", "20", "63"} {
		if got := b.wordAt(uid, mib); got != "first" {
			t.Errorf("without the repository, MiB %s has %q", mib, got)
		}
	}
}

// TestInstantRestoreKills: the agent is killed, then QEMU, in the middle.
func TestInstantRestoreKills(t *testing.T) {
	b := newBench(t)
	b.tiny()
	b.shelve("p1", "first", restoreSize)
	kill := b.spawn()
	uid := b.vm("web", offSpec())
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	b.shelfIs("slow", true)
	req := restoreRequest(uid, "p1")
	req.Instant, req.BandwidthLimit = true, 2<<20
	wait := b.restoreReady(req)
	b.power(uid, v1.Power_POWER_ON)
	b.await(uid, "the guest agent", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetGuest().GetAgent() })
	b.sh(uid, 1, "echo guest | dd of=/dev/vda bs=512 conv=notrunc,sync,fsync 2>/dev/null")
	if got := b.sh(uid, 1, readWord); got != "guest" {
		t.Errorf("the disk begins with %q", got)
	}
	pid := b.qemuPID()
	kill()
	if err := wait(); err == nil {
		t.Fatal("the call outlived the agent")
	}
	b.forget()
	b.spawn()
	b.await(uid, "the guest agent", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetGuest().GetAgent() })
	if got := b.qemuPID(); got != pid {
		t.Errorf("QEMU is %d, was %d", got, pid)
	}
	if got := b.wordAt(uid, "55"); got != "first" {
		t.Errorf("after a kill of the agent the disk has %q", got)
	}
	if got := b.sh(uid, 1, readWord); got != "guest" {
		t.Errorf("after a kill of the agent the disk begins with %q", got)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.await(uid, "another start", boot, func(r *v1.VMReport) bool {
		return r.GetStatus().GetRestarts() == 1 && r.GetStatus().GetGuest().GetAgent()
	})
	if got := b.sh(uid, 1, readWord); got != "guest" {
		t.Errorf("after a kill of QEMU the disk begins with %q", got)
	}
	b.shelfIs("slow", false)
	// The manager asks again, and is told of the end.
	if err := b.restore(t.Context(), req, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(b.dir, "shelf")); err != nil {
		t.Fatal(err)
	}
	if got := b.wordAt(uid, "63"); got != "first" {
		t.Errorf("without the repository the disk has %q", got)
	}
}

// forget has the next words of a host be waited for.
func (b *bench) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hostSt, b.status = nil, map[string]*v1.VMReport{}
}
