package host_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/backuptest"
	"drover/internal/resource"
)

func vaultOf(r backup.Repository) func(context.Context, *v1.VaultTarget) (backup.Repository, func(), error) {
	return func(context.Context, *v1.VaultTarget) (backup.Repository, func(), error) { return r, func() {}, nil }
}

// stalled is a repository that takes nothing until it is let go, but what comes before a Put.
type stalled struct {
	*backuptest.Memory
	once sync.Once
	hit  chan struct{} // closed at the first Put
	free chan struct{}
}

func newStalled(m *backuptest.Memory) *stalled {
	return &stalled{Memory: m, hit: make(chan struct{}), free: make(chan struct{})}
}

func (s *stalled) Begin(ctx context.Context, o backup.SessionOptions) (backup.Session, error) {
	in, err := s.Memory.Begin(ctx, o)
	return stalledSession{in, s}, err
}

type stalledSession struct {
	backup.Session
	s *stalled
}

func (s stalledSession) Disk(ctx context.Context, o backup.DiskOptions) (backup.DiskWriter, error) {
	w, err := s.Session.Disk(ctx, o)
	return stalledWriter{w, s.s}, err
}

type stalledWriter struct {
	backup.DiskWriter
	s *stalled
}

func (w stalledWriter) Put(ctx context.Context, block int64, data []byte) error {
	w.s.once.Do(func() { close(w.s.hit) })
	select {
	case <-w.s.free:
		return w.DiskWriter.Put(ctx, block, data)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func hexID(n int) string { return fmt.Sprintf("%032x", n) }

// backup makes a point with an id, against parent.
func (b *bench) backup(uid string, req *v1.NodeBackupRequest) (backup.Point, error) {
	b.t.Helper()
	return b.backupWithin(b.t.Context(), uid, req)
}

func (b *bench) backupWithin(ctx context.Context, uid string, req *v1.NodeBackupRequest) (p backup.Point, err error) {
	b.t.Helper()
	b.mu.Lock()
	req.Epoch = b.vms[uid].GetStatus().GetEpoch()
	b.mu.Unlock()
	req.Uid, req.Operation, req.Target = uid, resource.NewUID(), &v1.VaultTarget{Vault: &v1.VaultAddress{Repository: "safe"}}
	stream, err := b.node(b.hostAddress()).Backup(ctx, req)
	if err != nil {
		return p, err
	}
	defer stream.Close()
	for stream.Receive() {
		if m := stream.Msg(); m.GetDone() {
			return p, json.Unmarshal(m.GetPoint(), &p)
		}
	}
	if err := stream.Err(); err != nil {
		return p, err
	}
	return p, fmt.Errorf("the backup ended without a point")
}

func (b *bench) mustBackup(uid string, id int, parent int, change ...func(*v1.NodeBackupRequest)) backup.Point {
	b.t.Helper()
	req := &v1.NodeBackupRequest{Point: hexID(id)}
	if parent > 0 {
		req.Parent = hexID(parent)
	}
	for _, c := range change {
		c(req)
	}
	p, err := b.backup(uid, req)
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// sum is the SHA-256 of a disk of a point.
func sum(t *testing.T, r backup.Repository, id int, disk string) string {
	t.Helper()
	p, err := r.OpenPoint(t.Context(), hexID(id))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	d, err := p.Disk(t.Context(), disk)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < d.Size(); off += int64(len(buf)) {
		n := min(int64(len(buf)), d.Size()-off)
		if err := d.ReadAt(t.Context(), buf[:n], off); err != nil {
			t.Fatal(err)
		}
		h.Write(buf[:n])
	}
	return hex.EncodeToString(h.Sum(nil))
}

const sumInGuest = "sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/%s | cut -c1-64"

// same compares a point's disks with what the guest reads.
func (b *bench) same(uid string, id int, disks map[string]string) {
	b.t.Helper()
	for name, dev := range disks {
		want := b.sh(uid, b.epoch(uid), fmt.Sprintf(sumInGuest, dev))
		if got := sum(b.t, b.vault, id, name); got != want {
			b.t.Errorf("disk %s of point %d differs from the guest's: %s, want %s", name, id, got, want)
		}
	}
}

func (b *bench) epoch(uid string) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.vms[uid].GetStatus().GetEpoch()
}

func random(dev string, seekMiB, kib int) string {
	return fmt.Sprintf("dd if=/dev/urandom of=/dev/%s bs=64k seek=%d count=%d conv=notrunc,fsync 2>/dev/null", dev, seekMiB*16, kib/64)
}

func twoDisks() *v1.VMSpec {
	spec := tinySpec()
	spec.Disks = []*v1.DiskSpec{{Name: "root", SizeBytes: 32 << 20}, {Name: "data", SizeBytes: 16 << 20}}
	return spec
}

var bothDisks = map[string]string{"root": "vda", "data": "vdb"}

func newBackupBench(t *testing.T) *bench {
	b := newBench(t)
	b.vault = &backuptest.Memory{}
	b.tiny()
	b.start()
	return b
}

func TestBackup(t *testing.T) {
	b := newBackupBench(t)
	uid := b.up("web", twoDisks())
	b.sh(uid, 1, random("vda", 1, 2048)+"; "+random("vdb", 3, 256))
	first := b.mustBackup(uid, 1, 0)
	b.same(uid, 1, bothDisks)
	if first.Consistency != "quiesced" || !strings.Contains(first.Full, "first point") || first.Read != 2304<<10 {
		t.Errorf("first: %s, full: %q, read %d KiB of 2304", first.Consistency, first.Full, first.Read>>10)
	}
	if len(first.Definition) == 0 || len(first.Files["machine.json"]) == 0 {
		t.Error("the VM's definition and machine are not in the point")
	}
	// What has changed is read, and nothing else.
	b.sh(uid, 1, random("vda", 5, 128)+"; "+random("vda", 1, 64)+"; blkdiscard -f -o 2097152 -l 65536 /dev/vda 2>/dev/null || dd if=/dev/zero of=/dev/vda bs=64k seek=32 count=1 conv=notrunc,fsync 2>/dev/null")
	second := b.mustBackup(uid, 2, 1)
	b.same(uid, 2, bothDisks)
	if second.Full != "" || second.Read > 256<<10 || second.Read < 192<<10 || second.Parent != hexID(1) {
		t.Errorf("second: full %q, read %d KiB, parent %s", second.Full, second.Read>>10, second.Parent)
	}
	// Asked again it is there.
	if again := b.mustBackup(uid, 2, 1); again.ID != second.ID || !again.Time.Equal(second.Time) {
		t.Errorf("asked again for a point: %+v", again)
	}
	// A repository that fails: what changed since is not lost.
	b.sh(uid, 1, random("vda", 9, 64))
	b.vault.(*backuptest.Memory).Fail = func(op string) error {
		if op == "commit" {
			return fmt.Errorf("no")
		}
		return nil
	}
	if _, err := b.backup(uid, &v1.NodeBackupRequest{Point: hexID(3), Parent: hexID(2)}); err == nil {
		t.Error("a commit that failed was a success")
	}
	b.vault.(*backuptest.Memory).Fail = nil
	b.sh(uid, 1, random("vdb", 1, 64))
	third := b.mustBackup(uid, 3, 2, func(r *v1.NodeBackupRequest) { r.AuditShare = 1 })
	b.same(uid, 3, bothDisks)
	if third.Full != "" || third.Lacked > 192<<10 {
		t.Errorf("after a failure: full %q, lacked %d KiB", third.Full, third.Lacked>>10)
	}
	// Over a snapshot.
	if _, err := b.snapshot("create", &v1.NodeSnapshotRequest{Uid: uid, Epoch: 1, Operation: "s1", Snapshot: "one"}); err != nil {
		t.Fatal(err)
	}
	b.sh(uid, 1, random("vda", 11, 64))
	if p := b.mustBackup(uid, 4, 3); p.Full != "" || p.Read > 192<<10 {
		t.Errorf("after a snapshot: full %q, read %d KiB", p.Full, p.Read>>10)
	}
	b.same(uid, 4, bothDisks)
	// Bitmaps survive a stop; a VM that is off is read too.
	b.sh(uid, 1, random("vda", 13, 64))
	want := b.sh(uid, 1, fmt.Sprintf(sumInGuest, "vda"))
	b.power(uid, v1.Power_POWER_OFF)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	off := b.mustBackup(uid, 5, 4)
	if off.Full != "" || off.Consistency != "off" || off.Read > 192<<10 {
		t.Errorf("off: full %q, %s, read %d KiB", off.Full, off.Consistency, off.Read>>10)
	}
	if got := sum(t, b.vault, 5, "root"); got != want {
		t.Errorf("disk of a VM that is off: %s, want %s", got, want)
	}
	b.power(uid, v1.Power_POWER_ON)
	b.ready(uid)
	b.sh(uid, 1, random("vda", 15, 64))
	if p := b.mustBackup(uid, 6, 5); p.Full != "" || p.Read > 192<<10 {
		t.Errorf("after a point of the VM off: full %q, read %d KiB", p.Full, p.Read>>10)
	}
	b.same(uid, 6, bothDisks)
	// Another point than tracking began with, and a revert: all is read.
	if p := b.mustBackup(uid, 7, 5); !strings.Contains(p.Full, "did not begin with point") {
		t.Errorf("another parent: full %q", p.Full)
	}
	if _, err := b.snapshot("revert", &v1.NodeSnapshotRequest{Uid: uid, Epoch: 1, Operation: "s2", Snapshot: "one", Spec: b.spec(uid), Generation: b.generation(uid)}); err != nil {
		t.Fatal(err)
	}
	b.ready(uid)
	p := b.mustBackup(uid, 8, 7)
	b.same(uid, 8, bothDisks)
	if !strings.Contains(p.Full, "another layer") {
		t.Errorf("after a revert: full %q", p.Full)
	}
	// QEMU ends out of order.
	b.sh(uid, 1, random("vda", 17, 64))
	if p := b.mustBackup(uid, 9, 8, func(r *v1.NodeBackupRequest) { r.Full = true }); p.Full != "asked for" {
		t.Errorf("asked for: %q", p.Full)
	}
	dead := b.qemuPID()
	if err := syscall.Kill(dead, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.await(uid, "a new QEMU", boot, func(r *v1.VMReport) bool { return r.GetStatus().GetRestarts() > 0 })
	b.ready(uid)
	p = b.mustBackup(uid, 10, 9)
	b.same(uid, 10, bothDisks)
	if !strings.Contains(p.Full, "unexpectedly") && !strings.Contains(p.Full, "is gone") {
		t.Errorf("after a crash: full %q", p.Full)
	}
	if p := b.mustBackup(uid, 11, 10); p.Full != "" {
		t.Errorf("after that: full %q", p.Full)
	}
}

func (b *bench) ready(uid string) {
	b.t.Helper()
	b.await(uid, "the guest agent", boot, func(r *v1.VMReport) bool {
		return r.GetStatus().GetPhase() == v1.VMPhase_VM_PHASE_RUNNING && r.GetStatus().GetGuest().GetAgent()
	})
}

func (b *bench) spec(uid string) *v1.VMSpec {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.vms[uid].GetSpec()
}

func (b *bench) generation(uid string) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.vms[uid].GetMeta().GetGeneration()
}

// A guest that writes a number to one disk and then to the other: a point never has the second's without the first's.
func TestBackupIsOneMoment(t *testing.T) {
	b := newBackupBench(t)
	uid := b.up("web", twoDisks())
	b.sh(uid, 1, "(i=1000; while :; do i=$((i+1)); for d in vda vdb; do echo $i | dd of=/dev/$d bs=512 conv=notrunc,sync oflag=direct 2>/dev/null || echo $i | dd of=/dev/$d bs=512 conv=notrunc,fsync 2>/dev/null; done; done) >/dev/null 2>&1 &")
	b.sh(uid, 1, "while [ $(head -c 4 /dev/vdb | tr -d '\\0' | wc -c) -lt 4 ]; do sleep 0.1; done")
	for id := 1; id <= 4; id++ {
		p := b.mustBackup(uid, id, id-1, func(r *v1.NodeBackupRequest) { r.Quiesce = v1.Quiesce_QUIESCE_NEVER })
		if p.Consistency != "crash" {
			t.Errorf("consistency: %s", p.Consistency)
		}
		r, err := b.vault.OpenPoint(t.Context(), hexID(id))
		if err != nil {
			t.Fatal(err)
		}
		n := map[string]int{}
		for name := range bothDisks {
			d, err := r.Disk(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 512)
			if err := d.ReadAt(t.Context(), buf, 0); err != nil {
				t.Fatal(err)
			}
			text, _, _ := strings.Cut(string(buf), "\n")
			n[name], _ = strconv.Atoi(text)
			d.Close()
		}
		r.Close()
		if d := n["root"] - n["data"]; d < 0 || d > 1 {
			t.Errorf("point %d has %d on the first disk and %d on the second", id, n["root"], n["data"])
		}
		t.Logf("point %d: %d and %d", id, n["root"], n["data"])
	}
}

// With the guest's memory.
func TestBackupWithMemory(t *testing.T) {
	b := newBackupBench(t)
	uid := b.up("web", twoDisks())
	p := b.mustBackup(uid, 1, 0, func(r *v1.NodeBackupRequest) { r.Memory = true })
	if p.Memory == "" || p.Consistency != "memory" || p.Disks[len(p.Disks)-1].Name != p.Memory || p.Disks[len(p.Disks)-1].Size < 1<<20 {
		t.Errorf("a point with memory: %+v", p.Disks)
	}
	b.sh(uid, 1, random("vda", 1, 64))
	if p := b.mustBackup(uid, 2, 1, func(r *v1.NodeBackupRequest) { r.Memory = true }); p.Full != "" {
		t.Errorf("a second one: full %q", p.Full)
	}
	// Saving memory has QEMU write out its bitmaps and take them back; a snapshot with memory must carry them all the same.
	if _, err := b.snapshot("create", &v1.NodeSnapshotRequest{Uid: uid, Epoch: 1, Operation: "s1", Snapshot: "one", Memory: true}); err != nil {
		t.Fatal(err)
	}
	b.sh(uid, 1, random("vda", 3, 64))
	if p := b.mustBackup(uid, 3, 2); p.Full != "" || p.Read > 256<<10 {
		t.Errorf("after a snapshot with memory: full %q, read %d", p.Full, p.Read)
	}
	b.same(uid, 3, bothDisks)
	if left, _ := filepath.Glob(filepath.Join(b.dir, "state/datastore/tmp/*")); len(left) > 0 {
		t.Errorf("scratch files are left: %v", left)
	}
}

// A start does not wait for who reads the disks of a VM that is off.
func TestStartEndsBackup(t *testing.T) {
	b := newBench(t)
	slow := newStalled(&backuptest.Memory{})
	b.vault = slow
	b.tiny()
	b.start()
	uid := b.up("web", twoDisks())
	b.sh(uid, 1, random("vda", 1, 2048))
	b.power(uid, v1.Power_POWER_OFF)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	result := make(chan error, 1)
	go func() {
		_, err := b.backup(uid, &v1.NodeBackupRequest{Point: hexID(1)})
		result <- err
	}()
	select {
	case <-slow.hit:
	case err := <-result:
		t.Fatal(err)
	}
	if _, err := b.backup(uid, &v1.NodeBackupRequest{Point: hexID(2)}); err == nil || !strings.Contains(err.Error(), "being backed up") {
		t.Errorf("a second backup at once: %v", err)
	}
	b.power(uid, v1.Power_POWER_ON)
	b.ready(uid)
	if err := <-result; err == nil || !strings.Contains(err.Error(), "was started") {
		t.Errorf("the backup: %v", err)
	}
}

// An agent that is killed while it reads leaves nothing, and the guest runs on.
func TestAgentKilledInBackup(t *testing.T) {
	b := newBench(t)
	b.vault = &backuptest.Memory{}
	b.tiny()
	kill := b.spawn()
	uid := b.up("web", twoDisks())
	b.sh(uid, 1, random("vda", 1, 2048))
	pid := b.qemuPID()
	for round := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		done := make(chan error, 1)
		go func() {
			_, err := b.backupWithin(ctx, uid, &v1.NodeBackupRequest{Point: hexID(round + 1)})
			done <- err
		}()
		// From before the guest is frozen to when it is read.
		time.Sleep([]time.Duration{20, 120, 2000}[round] * time.Millisecond)
		kill()
		cancel()
		<-done
		b.mu.Lock()
		b.status, b.hostSt = map[string]*v1.VMReport{}, nil
		b.mu.Unlock()
		kill = b.spawn()
		b.ready(uid)
		b.sh(uid, 1, "echo alive | dd of=/dev/vda bs=512 seek=8 conv=notrunc,fsync 2>/dev/null")
		if left, _ := filepath.Glob(filepath.Join(b.dir, "state/datastore/tmp/*")); len(left) > 0 {
			t.Errorf("scratch files are left: %v", left)
		}
	}
	if now := b.qemuPID(); now != pid {
		t.Errorf("QEMU is process %d, it was %d", now, pid)
	}
	b.stop()
	b.mu.Lock()
	b.status, b.hostSt = map[string]*v1.VMReport{}, nil
	b.mu.Unlock()
	b.start()
	b.ready(uid)
	p := b.mustBackup(uid, 9, 0)
	b.same(uid, 9, bothDisks)
	t.Logf("full: %s", p.Full)
}
