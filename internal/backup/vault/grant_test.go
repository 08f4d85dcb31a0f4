package vault_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/backuptest"
	"drover/internal/backup/remote"
	"drover/internal/backup/vault"
	"drover/internal/chunkstore/keys"
)

func TestGrants(t *testing.T) {
	w := newWorld(t, vault.Options{})
	w.create("r", nil)
	w.create("other", nil)
	ctx := t.Context()
	img := backuptest.Image(1, 2<<20)
	mine := backuptest.Write(t, w.repository("r", "host1", "vm1"), "vm1", img)
	theirs := backuptest.Write(t, w.repository("r", "host2", "vm2"), "vm2", img)

	g := w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "host1", VmUid: "vm1", Read: true, Write: true})
	open := func(host, repository, grant string) *remote.Repository {
		return remote.New(remote.Options{Client: w.as(host), Repository: repository, Grant: grant, Retry: time.Second})
	}
	_, err := open("host2", "r", g).Info(ctx)
	want(t, err, "GRANT_UNKNOWN")
	_, err = open("host1", "other", g).Info(ctx)
	want(t, err, "GRANT_UNKNOWN")
	_, err = open("host1", "r", strings.Repeat("0", 64)).Info(ctx)
	want(t, err, "GRANT_UNKNOWN")

	r := open("host1", "r", g)
	if list, err := r.Points(ctx, ""); err != nil || len(list) != 1 || list[0].ID != mine.ID {
		t.Errorf("points of one's own VM: %v, %v", list, err)
	}
	_, err = r.Points(ctx, "vm2")
	want(t, err, "GRANT_NARROW")
	_, err = r.OpenPoint(ctx, theirs.ID)
	want(t, err, "POINT_UNKNOWN")
	_, err = r.Begin(ctx, backup.SessionOptions{VMUID: "vm2"})
	want(t, err, "GRANT_NARROW")
	_, err = r.Begin(ctx, backup.SessionOptions{VMUID: "vm1", Pins: []string{theirs.ID}})
	want(t, err, "POINT_UNKNOWN")
	s, err := r.Begin(ctx, backup.SessionOptions{VMUID: "vm1", Pins: []string{mine.ID}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Disk(ctx, backup.DiskOptions{Name: "root", Size: 2 << 20, ParentPoint: theirs.ID, ParentDisk: "root", Incremental: true})
	want(t, err, "POINT_UNKNOWN")
	_, err = s.Commit(ctx, backup.Point{VMUID: "vm2"})
	want(t, err, "GRANT_NARROW")
	p, err := r.OpenPoint(ctx, mine.ID)
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Disk(ctx, "root")
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Changed(ctx, theirs.ID, "root")
	want(t, err, "POINT_UNKNOWN")

	// A grant that only writes, or only reads.
	_, err = open("host1", "r", w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "host1", VmUid: "vm1", Write: true})).OpenPoint(ctx, mine.ID)
	want(t, err, "GRANT_NARROW")
	_, err = open("host1", "r", w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "host1", VmUid: "vm1", Read: true})).Begin(ctx, backup.SessionOptions{VMUID: "vm1"})
	want(t, err, "GRANT_NARROW")

	// What is the manager's alone.
	c := w.as("host1")
	_, err = c.Forget(ctx, &v1.VaultForgetRequest{Repository: "r", Points: []string{mine.ID}})
	want(t, err, "MANAGER_ONLY")
	_, err = c.Keep(ctx, &v1.VaultKeepRequest{Repository: "r", Point: mine.ID})
	want(t, err, "MANAGER_ONLY")
	_, err = c.Grant(ctx, &v1.VaultGrantRequest{Repository: "r", Grant: strings.Repeat("a", 64), HostUid: "host1", Read: true})
	want(t, err, "MANAGER_ONLY")
	_, err = c.Open(ctx, &v1.VaultOpenRequest{Repository: "r"})
	want(t, err, "MANAGER_ONLY")
	_, err = c.Close(ctx, &v1.VaultCloseRequest{Repository: "r", Forget: true})
	want(t, err, "MANAGER_ONLY")
	_, err = c.Rekey(ctx, &v1.VaultRekeyRequest{Repository: "r"})
	want(t, err, "MANAGER_ONLY")
	_, err = c.Status(ctx, &v1.VaultStatusRequest{Repository: "r"})
	want(t, err, "MANAGER_ONLY")
	stream, err := c.Collect(ctx, &v1.VaultWorkRequest{Repository: "r"})
	if err == nil {
		for stream.Receive() {
		}
		err = stream.Err()
	}
	want(t, err, "MANAGER_ONLY")

	// Another host can't use a session that it learned of, and one that was taken back is over.
	token, err := c.Begin(ctx, &v1.VaultBeginRequest{Repository: "r", Grant: g, VmUid: "vm1"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.as("host2").Touch(ctx, &v1.VaultTouchRequest{Session: token.GetSession()})
	want(t, err, "SESSION_ENDED")
	if _, err := c.Touch(ctx, &v1.VaultTouchRequest{Session: token.GetSession()}); err != nil {
		t.Error(err)
	}
	if _, err := w.v.Client().Grant(ctx, &v1.VaultGrantRequest{Grant: g, Revoke: true}); err != nil {
		t.Fatal(err)
	}
	_, err = c.Touch(ctx, &v1.VaultTouchRequest{Session: token.GetSession()})
	want(t, err, "SESSION_ENDED")
	if _, err = s.Disk(ctx, backup.DiskOptions{Name: "x", Size: 1}); !errors.Is(err, backup.ErrEnded) {
		t.Errorf("a session of a grant that was taken back: %v", err)
	}
}

func TestGrantOfOnePoint(t *testing.T) {
	w := newWorld(t, vault.Options{})
	w.create("r", nil)
	id := "00112233445566778899aabbccddeeff"
	g := w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "h", VmUid: "vm", Write: true, Read: true, Point: id})
	r := remote.New(remote.Options{Client: w.as("h"), Repository: "r", Grant: g})
	s, err := r.Begin(t.Context(), backup.SessionOptions{VMUID: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Commit(t.Context(), backup.Point{VMUID: "vm"})
	want(t, err, "GRANT_NARROW")
	ahead := time.Now().Add(100 * time.Hour)
	for range 2 {
		p, err := s.Commit(t.Context(), backup.Point{ID: id, VMUID: "vm", Time: ahead})
		if err != nil {
			t.Fatal("the same point twice is one:", err)
		}
		if p.Time.After(time.Now().Add(time.Hour)) {
			t.Errorf("a point of the future: %v", p.Time)
		}
	}
	if list, err := r.Points(t.Context(), "vm"); err != nil || len(list) != 1 {
		t.Errorf("%d points, %v", len(list), err)
	}
}

// A host that knows only the id of another VM's block does not get the block.
func TestIDIsNoProof(t *testing.T) {
	w := newWorld(t, vault.Options{})
	w.create("r", nil)
	ctx := t.Context()
	secret := make([]byte, backuptest.BlockSize)
	backuptest.Fill(secret, 4711)
	backuptest.Write(t, w.repository("r", "host2", "vm2"), "vm2", secret)

	c := w.as("host1")
	g := w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "host1", VmUid: "vm1", Read: true, Write: true})
	info, err := c.Info(ctx, &v1.VaultInfoRequest{Repository: "r", Grant: g})
	if err != nil {
		t.Fatal(err)
	}
	id := keys.NewHasher(info.GetHash(), info.GetIdKey()).Block(secret)
	begin, err := c.Begin(ctx, &v1.VaultBeginRequest{Repository: "r", Grant: g, VmUid: "vm1"})
	if err != nil {
		t.Fatal(err)
	}
	disk := func(name string) int32 {
		d, err := c.Disk(ctx, &v1.VaultDiskRequest{Session: begin.GetSession(), Name: name, Size: backuptest.BlockSize})
		if err != nil {
			t.Fatal(err)
		}
		return d.GetDisk()
	}
	offer := func(d int32) *v1.VaultOfferResponse {
		res, err := c.Offer(ctx, &v1.VaultOfferRequest{Session: begin.GetSession(), Disk: d, Blocks: []int64{0}, Ids: id[:]})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	prove := func(d int32, key, data []byte) *v1.VaultProveResponse {
		proof := keys.NewHasher(info.GetHash(), key).Block(data)
		res, err := c.Prove(ctx, &v1.VaultProveRequest{Session: begin.GetSession(), Disk: d, Blocks: []int64{0}, Ids: id[:], Proofs: proof[:]})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	d := disk("a")
	if res := offer(d); len(res.GetProve()) != 1 || len(res.GetMissing()) != 0 {
		t.Fatalf("an id of another VM's block: %v", res)
	}
	if res := prove(d, begin.GetChallenge(), make([]byte, backuptest.BlockSize)); len(res.GetMissing()) != 1 {
		t.Error("a proof by other bytes was taken")
	}
	if res := prove(d, info.GetIdKey(), secret); len(res.GetMissing()) != 1 {
		t.Error("a proof under another key was taken")
	}
	_, err = c.Send(ctx, &v1.VaultSendRequest{Session: begin.GetSession(), Disk: d, Blocks: []*v1.VaultBlock{
		{Id: id[:], RawLength: backuptest.BlockSize, Data: make([]byte, backuptest.BlockSize)}}})
	want(t, err, "BLOCK_WRONG")
	if res := offer(d); len(res.GetProve()) != 1 {
		t.Error("what failed has counted as proof")
	}
	// Nothing of it has come into the disk.
	if _, err := c.Finish(ctx, &v1.VaultFinishRequest{Session: begin.GetSession(), Disk: d}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(ctx, &v1.VaultCommitRequest{Session: begin.GetSession(),
		Point: []byte(`{"id":"00112233445566778899aabbccddeeff","vmUid":"vm1","disks":[{"name":"a","size":65536}]}`)}); err != nil {
		t.Fatal(err)
	}
	r := remote.New(remote.Options{Client: c, Repository: "r", Grant: g})
	if got := backuptest.Read(t, r, "00112233445566778899aabbccddeeff", "a"); !bytes.Equal(got, make([]byte, len(got))) {
		t.Error("the block of another VM was read")
	}
	// Who has the bytes need not send them, and not prove them twice.
	d = disk("b")
	if res := prove(d, begin.GetChallenge(), secret); len(res.GetMissing()) != 0 {
		t.Error("a proof was not taken")
	}
	if res := offer(disk("c")); len(res.GetProve())+len(res.GetMissing()) != 0 {
		t.Errorf("a block that was proven is asked for again: %v", res)
	}
}

// A grant to read one point is for no other, also if the point is of no VM.
func TestGrantToReadOnePoint(t *testing.T) {
	w := newWorld(t, vault.Options{})
	w.create("r", nil)
	ctx := t.Context()
	img := backuptest.Image(3, 1<<20)
	one := backuptest.Write(t, w.repository("r", "h", "vm"), "vm", img)
	other := backuptest.Write(t, w.repository("r", "h", "vm"), "vm", img)
	for _, vm := range []string{"vm", ""} {
		r := remote.New(remote.Options{Client: w.as("h"), Repository: "r", Grant: w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "h", VmUid: vm, Point: one.ID, Read: true})})
		if _, err := r.OpenPoint(ctx, other.ID); !errors.Is(err, backup.ErrNotFound) {
			t.Errorf("VM %q: another point: %v", vm, err)
		}
		p, err := r.OpenPoint(ctx, one.ID)
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.Disk(ctx, "root")
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.Changed(ctx, other.ID, "root")
		want(t, err, "POINT_UNKNOWN")
		if list, err := r.Points(ctx, vm); err != nil || len(list) != 1 || list[0].ID != one.ID {
			t.Errorf("VM %q: %d points, %v", vm, len(list), err)
		}
	}
}

// What a host that was taken says of a point is not what is restored, trusted or shown.
func TestHostilePoint(t *testing.T) {
	w := newWorld(t, vault.Options{})
	w.create("r", nil)
	ctx := t.Context()
	img := backuptest.Image(4, 1<<20)
	last := backuptest.Write(t, w.repository("r", "h", "vm"), "vm", img)
	id := "00112233445566778899aabbccddee00"
	commit := func(g *v1.VaultGrantRequest, change func(p *backup.Point)) (backup.Point, error) {
		g.Repository, g.HostUid, g.VmUid, g.Write, g.Read = "r", "h", "vm", true, true
		r := remote.New(remote.Options{Client: w.as("h"), Repository: "r", Grant: w.grant(g), Retry: time.Second})
		s, err := r.Begin(ctx, backup.SessionOptions{VMUID: "vm"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		d, err := s.Disk(ctx, backup.DiskOptions{Name: "root", Size: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Finish(ctx); err != nil {
			t.Fatal(err)
		}
		p := backup.Point{VMUID: "vm", VM: "web", Time: time.Now(), Disks: []backup.Disk{{Name: "root", Size: 1 << 20}}}
		change(&p)
		return s.Commit(ctx, p)
	}
	for name, change := range map[string]func(p *backup.Point){
		"a test that never was":   func(p *backup.Point) { p.Labels = map[string]string{"test.passed": "true"} },
		"a VM that is a path":     func(p *backup.Point) { p.VM = "../../etc/cron.d/x" },
		"a VM that is a terminal": func(p *backup.Point) { p.VM = "\x1b]0;x\a" },
		"a file that is a path":   func(p *backup.Point) { p.Files = map[string][]byte{"../x": {1}} },
		"a disk twice":            func(p *backup.Point) { p.Disks = append(p.Disks, p.Disks[0]) },
		"a label of many lines":   func(p *backup.Point) { p.Labels = map[string]string{"a": "b\nc"} },
		"a label without end":     func(p *backup.Point) { p.Labels = map[string]string{"a": strings.Repeat("b", 1000)} },
		"less than nothing":       func(p *backup.Point) { p.Read = -1 },
	} {
		_, err := commit(&v1.VaultGrantRequest{}, change)
		if want(t, err, "REQUEST_INVALID"); t.Failed() {
			t.Fatal(name)
		}
	}
	p, err := commit(&v1.VaultGrantRequest{Point: id, Definition: []byte(`{"spec":{}}`), Vm: "web", Labels: map[string]string{"policy": "gold"}}, func(p *backup.Point) {
		p.ID, p.VM, p.Time = id, "other", time.Now().Add(-100*24*time.Hour)
		p.Definition = []byte(`{"spec":{"nics":[{"name":"a","network":"management"}]}}`)
		p.Labels = map[string]string{"policy": "none", "test.passed": "true"}
		p.Full = "\x1b[2J" + strings.Repeat("x", 10_000)
	})
	if err != nil {
		t.Fatal(err)
	}
	if p.VM != "web" || string(p.Definition) != `{"spec":{}}` || len(p.Labels) != 1 || p.Labels["policy"] != "gold" {
		t.Errorf("what the host said was believed: %+v", p)
	}
	if len(p.Full) > 5000 || strings.Contains(p.Full, "\x1b") {
		t.Errorf("a reason that is no text: %.20q, %d bytes", p.Full, len(p.Full))
	}
	if !p.Time.After(last.Time) {
		t.Errorf("a point of the past: %v, after one of %v", p.Time, last.Time)
	}
	for _, name := range []string{"a/b", "..", "a\nb"} {
		c := w.as("h")
		b, err := c.Begin(ctx, &v1.VaultBeginRequest{Repository: "r", VmUid: "vm", Grant: w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "h", VmUid: "vm", Write: true})})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Disk(ctx, &v1.VaultDiskRequest{Session: b.GetSession(), Name: name, Size: 1})
		want(t, err, "REQUEST_INVALID")
	}
}

// Pages fill a repository as well as blocks do, and cost a host nothing: they count, also those that never come into a point.
func TestQuotaOfPages(t *testing.T) {
	w := newWorld(t, vault.Options{})
	w.create("r", &v1.RepositorySpec{QuotaBytes: 4 << 20})
	ctx := t.Context()
	r := w.repository("r", "h", "vm")
	backuptest.Write(t, r, "vm", backuptest.Image(5, 1<<20))
	g := w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "h", VmUid: "vm", Read: true, Write: true})
	c := w.as("h")
	info, err := c.Info(ctx, &v1.VaultInfoRequest{Repository: "r", Grant: g})
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, backuptest.BlockSize)
	block[0] = 1
	id := keys.NewHasher(info.GetHash(), info.GetIdKey()).Block(block)
	var stop error
	for round := 0; round < 20 && stop == nil; round++ {
		b, err := c.Begin(ctx, &v1.VaultBeginRequest{Repository: "r", Grant: g, VmUid: "vm"})
		if stop = err; err != nil {
			break
		}
		d, err := c.Disk(ctx, &v1.VaultDiskRequest{Session: b.GetSession(), Name: "a", Size: 1 << 40})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Send(ctx, &v1.VaultSendRequest{Session: b.GetSession(), Disk: d.GetDisk(), Blocks: []*v1.VaultBlock{{Id: id[:], RawLength: backuptest.BlockSize, Data: block}}}); err != nil {
			t.Fatal(err)
		}
		req := &v1.VaultOfferRequest{Session: b.GetSession(), Disk: d.GetDisk()}
		for k := range int64(100) {
			req.Blocks, req.Ids = append(req.Blocks, (k+1)*256+int64(round)), append(req.Ids, id[:]...)
		}
		_, stop = c.Offer(ctx, req)
		if _, err := c.End(ctx, &v1.VaultEndRequest{Session: b.GetSession()}); err != nil {
			t.Fatal(err)
		}
	}
	want(t, stop, "REPOSITORY_FULL")
	// What came of it is garbage, and room once it is collected.
	work, err := w.v.Client().Collect(ctx, &v1.VaultWorkRequest{Repository: "r"})
	if err != nil {
		t.Fatal(err)
	}
	for work.Receive() {
	}
	if err := work.Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Begin(ctx, &v1.VaultBeginRequest{Repository: "r", Grant: g, VmUid: "vm"}); err != nil {
		t.Error("after a collection:", err)
	}
}
