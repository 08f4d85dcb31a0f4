package host_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
)

// foreign runs a program of others.
func foreign(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// caDir is a directory as libnbd and QEMU want it.
func (b *bench) caDir() string {
	dir := b.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca-cert.pem"), b.ca.Trust().PEM(), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return dir
}

func (b *bench) ask(uid string) *v1.NodePointRequest {
	return &v1.NodePointRequest{Uid: uid, Epoch: b.epoch(uid), Operation: resource.NewUID()}
}

func TestProtectionPoints(t *testing.T) {
	b := newBackupBench(t)
	uid := b.up("web", twoDisks())
	node := b.node(b.hostAddress())
	ctx := t.Context()
	dir := b.caDir()
	tls := "?tls-certificates=" + url.QueryEscape(dir)
	create := func() *v1.ProtectionPoint {
		t.Helper()
		res, err := node.CreatePoint(ctx, b.ask(uid))
		if err != nil {
			t.Fatal(err)
		}
		return res.GetPoint()
	}
	changed := func(p *v1.ProtectionPoint, disk int, since string) string {
		t.Helper()
		req := b.ask(uid)
		req.Id, req.Disk, req.Since = p.GetId(), p.GetDisks()[disk].GetName(), since
		var out []string
		for {
			req.Limit = 1 // one at a time, so that going on is tried too
			res, err := node.ChangedExtents(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range res.GetChanged().GetExtents() {
				s := fmt.Sprintf("%d+%d", e.GetOffset()>>16, e.GetLength()>>16)
				if e.GetZero() {
					s += "z"
				}
				out = append(out, s)
			}
			if req.Offset = res.GetChanged().GetNextOffset(); req.Offset == 0 {
				return strings.Join(out, " ")
			}
		}
	}
	b.sh(uid, 1, random("vda", 1, 128))
	want := b.sh(uid, 1, fmt.Sprintf(sumInGuest, "vda"))
	first := create()
	b.sh(uid, 1, random("vda", 3, 64)+"; "+random("vda", 1, 64))
	uri := first.GetDisks()[0].GetUri()
	copied := filepath.Join(t.TempDir(), "copy")
	if info := foreign(t, "nbdinfo", uri+tls); !strings.Contains(info, "TLS") || !strings.Contains(info, "export-size: 33554432") {
		t.Errorf("nbdinfo: %s", info)
	}
	if m := foreign(t, "nbdinfo", "--map", uri+tls); !strings.Contains(m, "data") || !strings.Contains(m, "hole,zero") {
		t.Errorf("nbdinfo --map: %s", m)
	}
	foreign(t, "nbdcopy", uri+tls, copied)
	if got := fileSum(t, copied); got != want {
		t.Errorf("nbdcopy: %s, want %s", got, want)
	}
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	foreign(t, "qemu-img", "convert", "--object", "tls-creds-x509,id=t,endpoint=client,verify-peer=on,dir="+dir, "--image-opts",
		fmt.Sprintf("driver=nbd,server.type=inet,server.host=%s,server.port=%s,export=%s,tls-creds=t", u.Hostname(), u.Port(), strings.TrimPrefix(u.Path, "/")), "-O", "raw", copied)
	if got := fileSum(t, copied); got != want {
		t.Errorf("qemu-img: %s, want %s", got, want)
	}
	// Without the secret there is nothing.
	if out, err := exec.Command("nbdinfo", strings.Replace(uri, u.Path, "/"+strings.Repeat("0", 64), 1)+tls).CombinedOutput(); err == nil {
		t.Errorf("a wrong name: %s", out)
	}
	// What was written since may count as allocated; it reads as zeros.
	if got := changed(first, 0, ""); got != "16+2 48+1" && got != "16+2" {
		t.Errorf("allocated at the first point: %s", got)
	}
	// A second point, while the first is open.
	second := create()
	if got := changed(second, 0, first.GetDisks()[0].GetChangeId()); got != "16+1 48+1" {
		t.Errorf("changed between the points: %q", got)
	}
	if got := changed(second, 1, first.GetDisks()[1].GetChangeId()); got != "" {
		t.Errorf("changed on the other disk: %q", got)
	}
	req := b.ask(uid)
	req.Id, req.Disk, req.Since = second.GetId(), "root", "nothing"
	if _, err := node.ChangedExtents(ctx, req); err == nil || !strings.Contains(err.Error(), "no record") {
		t.Errorf("an unknown change id: %v", err)
	}
	// A backup beside them, and what may not be.
	b.mustBackup(uid, 1, 0)
	b.same(uid, 1, bothDisks)
	if _, err := b.snapshot("create", &v1.NodeSnapshotRequest{Uid: uid, Epoch: 1, Operation: "s1", Snapshot: "one"}); err == nil || !strings.Contains(err.Error(), "protection point") || !strings.Contains(err.Error(), "open until") {
		t.Errorf("a snapshot of disks that are read: %v", err)
	}
	release := func(id string) {
		t.Helper()
		req := b.ask(uid)
		req.Id = id
		if _, err := node.ReleasePoint(ctx, req); err != nil {
			t.Fatal(err)
		}
	}
	release(first.GetId())
	release(second.GetId())
	release(second.GetId())
	if out, err := exec.Command("nbdinfo", uri+tls).CombinedOutput(); err == nil {
		t.Errorf("a point that was released: %s", out)
	}
	// One whose time is up.
	short := b.ask(uid)
	short.Lifetime = durationpb.New(time.Second)
	if _, err := node.CreatePoint(ctx, short); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err := b.snapshot("create", &v1.NodeSnapshotRequest{Uid: uid, Epoch: 1, Operation: resource.NewUID(), Snapshot: "two"}); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("a point whose time is up is still there: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	// Over a snapshot, and when the VM is off.
	b.sh(uid, 1, random("vda", 5, 64))
	b.power(uid, v1.Power_POWER_OFF)
	b.awaitPhase(uid, boot, v1.VMPhase_VM_PHASE_OFF)
	off := create()
	if off.GetConsistency() != "off" {
		t.Errorf("consistency of a VM that is off: %s", off.GetConsistency())
	}
	if got := changed(off, 0, second.GetDisks()[0].GetChangeId()); got != "80+1" {
		t.Errorf("changed until it was off: %q", got)
	}
	foreign(t, "nbdcopy", off.GetDisks()[0].GetUri()+tls, copied)
	imp := b.ask(uid)
	imp.Disk, imp.Import = "root", true
	if _, err := node.OpenImport(ctx, imp); err == nil {
		t.Error("an import of a disk that is read")
	}
	release(off.GetId())
	// In the other direction.
	if err := os.WriteFile(copied, []byte(strings.Repeat("imported", 4<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	imp.Operation = resource.NewUID()
	res, err := node.OpenImport(ctx, imp)
	if err != nil {
		t.Fatal(err)
	}
	foreign(t, "nbdcopy", copied, res.GetImport().GetUri()+tls)
	b.power(uid, v1.Power_POWER_ON)
	b.await(uid, "why it does not start", boot, func(r *v1.VMReport) bool {
		return strings.Contains(r.GetStatus().GetMessage(), "open for writing")
	})
	release(strings.TrimPrefix(res.GetImport().GetName(), "web/"))
	b.ready(uid)
	if got := b.sh(uid, 1, fmt.Sprintf(sumInGuest, "vda")); got != fileSum(t, copied) {
		t.Errorf("the guest does not see what was imported: %s", got)
	}
	if p := b.mustBackup(uid, 2, 1); p.Full != "disk root: it was open for writing by an import" {
		t.Errorf("a backup after an import: full %q", p.Full)
	}
	b.same(uid, 2, bothDisks)
}
