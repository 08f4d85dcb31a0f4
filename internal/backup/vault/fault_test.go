package vault_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/backuptest"
	"drover/internal/backup/remote"
	"drover/internal/backup/vault"
	"drover/internal/blob"
)

// cutting cuts the connections now and then while a disk is read.
type cutting struct {
	backup.Source
	n   atomic.Int64
	cut func()
}

func (c *cutting) ReadAt(ctx context.Context, p []byte, off int64) error {
	if c.n.Add(1)%7 == 0 {
		c.cut()
	}
	return c.Source.ReadAt(ctx, p, off)
}

// A cut connection costs what was on its way, and nothing else.
func TestCut(t *testing.T) {
	w := newWorld(t, vault.Options{})
	w.create("r", nil)
	relay := w.relay()
	g := w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "h", VmUid: "vm", Read: true, Write: true})
	r := remote.New(remote.Options{Client: w.through(relay, "h"), Repository: "r", Grant: g, Retry: 30 * time.Second})
	img := backuptest.Image(3, 60<<20)
	s, err := r.Begin(t.Context(), backup.SessionOptions{VMUID: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Disk(t.Context(), backup.DiskOptions{Name: "root", Size: int64(len(img))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Store(t.Context(), d, &cutting{Source: backuptest.Bytes(img), cut: relay.cut}, backup.StoreOptions{BlockSize: backuptest.BlockSize}); err != nil {
		t.Fatal(err)
	}
	relay.cut()
	if _, err := d.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	relay.cut()
	p, err := s.Commit(t.Context(), backup.Point{VMUID: "vm", Time: time.Now(), Disks: []backup.Disk{{Name: "root", Size: int64(len(img))}}})
	if err != nil {
		t.Fatal(err)
	}
	relay.cut()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	pr, err := r.OpenPoint(t.Context(), p.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	dr, err := pr.Disk(t.Context(), "root")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(img))
	for off := 0; off < len(img); off += 7 << 20 {
		relay.cut()
		if err := dr.ReadAt(t.Context(), got[off:min(off+7<<20, len(img))], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, img) {
		t.Error("what was written across cuts is not what is read")
	}
}

// A vault that is started again has lost sessions: a writer is told, a reader goes on when its grant is there again.
func TestRestart(t *testing.T) {
	w := newWorld(t, vault.Options{})
	w.passphrase = "correct horse battery"
	recovery := w.create("r", nil)
	ctx := t.Context()
	req := &v1.VaultGrantRequest{Repository: "r", HostUid: "h", VmUid: "vm", Read: true, Write: true}
	w.grant(req)
	r := remote.New(remote.Options{Client: w.as("h"), Repository: "r", Grant: req.Grant, Retry: 30 * time.Second})
	img := backuptest.Image(3, 9<<20)
	p := backuptest.Write(t, r, "vm", img)
	s, err := r.Begin(ctx, backup.SessionOptions{VMUID: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Disk(ctx, backup.DiskOptions{Name: "root", Size: int64(len(img))})
	if err != nil {
		t.Fatal(err)
	}
	pr, err := r.OpenPoint(ctx, p.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	dr, err := pr.Disk(ctx, "root")
	if err != nil {
		t.Fatal(err)
	}
	w.stop()
	// The reader asks while nobody is there, and is answered when all is well again.
	read := make(chan error, 1)
	got := make([]byte, len(img))
	go func() { read <- dr.ReadAt(ctx, got, 0) }()
	w.start()
	select {
	case err := <-read:
		t.Fatal("a reader without a grant was answered:", err)
	case <-time.After(300 * time.Millisecond):
	}
	if _, err := w.v.Client().Grant(ctx, req); err != nil {
		t.Fatal("the repository was not opened again without a passphrase:", err)
	}
	if err := <-read; err != nil || !bytes.Equal(got, img) {
		t.Errorf("a reader after a restart: %v", err)
	}
	_, err = backup.Store(ctx, d, backuptest.Bytes(img), backup.StoreOptions{BlockSize: backuptest.BlockSize})
	if err == nil {
		_, err = d.Finish(ctx)
	}
	if !errors.Is(err, backup.ErrEnded) {
		t.Errorf("a writer after a restart: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}

	// Files with secrets are ours alone, and no answer has them.
	for _, f := range []string{"r.key", "r.json"} {
		st, err := os.Stat(filepath.Join(w.o.StateDir, f))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st, err)
		}
	}
	// Let go of, it needs the passphrase again; or the recovery key.
	c := w.v.Client()
	spec := &v1.RepositorySpec{Location: "memory:r"}
	if _, err := c.Close(ctx, &v1.VaultCloseRequest{Repository: "r", Forget: true}); err != nil {
		t.Fatal(err)
	}
	for pass, reason := range map[string]string{"": "KEY_WRONG", "wrong wrong wrong": "KEY_WRONG"} {
		_, err = c.Open(ctx, &v1.VaultOpenRequest{Repository: "r", Spec: spec, Passphrase: pass})
		want(t, err, reason)
	}
	st, err := c.Status(ctx, &v1.VaultStatusRequest{Repository: "r"})
	if err != nil || st.GetStatus().GetPhase() != v1.RepositoryPhase_REPOSITORY_PHASE_LOCKED {
		t.Errorf("status without a key: %v, %v", st, err)
	}
	if _, err := c.Open(ctx, &v1.VaultOpenRequest{Repository: "r", Spec: spec, Passphrase: recovery}); err != nil {
		t.Error("the recovery key does not open it:", err)
	}
}

func TestIdle(t *testing.T) {
	w := newWorld(t, vault.Options{Idle: 200 * time.Millisecond})
	w.create("r", nil)
	r := w.repository("r", "h", "vm")
	s, err := r.Begin(t.Context(), backup.SessionOptions{VMUID: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	c := w.v.Client()
	deadline := time.Now().Add(20 * time.Second)
	for {
		st, err := c.Status(t.Context(), &v1.VaultStatusRequest{Repository: "r"})
		if err != nil {
			t.Fatal(err)
		}
		if st.GetStatus().GetSessions() == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a session that nobody uses is still there")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, err := s.Disk(t.Context(), backup.DiskOptions{Name: "d", Size: 1}); !errors.Is(err, backup.ErrEnded) {
		t.Error(err)
	}
}

// full has no room after some puts.
type full struct {
	blob.Store
	left atomic.Int64
}

func (f *full) Create(ctx context.Context, name string) (blob.Writer, error) {
	if strings.HasPrefix(name, "data/") && f.left.Add(-1) < 0 {
		return nil, blob.ErrFull
	}
	return f.Store.Create(ctx, name)
}

func TestFull(t *testing.T) {
	w := newWorld(t, vault.Options{})
	st := &full{Store: blob.NewMemory()}
	w.stores["memory:full"] = st
	w.create("r", &v1.RepositorySpec{Location: "memory:full"})
	r := w.repository("r", "h", "vm")
	store := func(r backup.Repository, img []byte) error {
		s, err := r.Begin(t.Context(), backup.SessionOptions{VMUID: "vm"})
		if err != nil {
			return err
		}
		defer s.Close()
		d, err := s.Disk(t.Context(), backup.DiskOptions{Name: "root", Size: int64(len(img))})
		if err != nil {
			return err
		}
		if _, err := backup.Store(t.Context(), d, backuptest.Bytes(img), backup.StoreOptions{BlockSize: backuptest.BlockSize}); err != nil {
			return err
		}
		if _, err := d.Finish(t.Context()); err != nil {
			return err
		}
		_, err = s.Commit(t.Context(), backup.Point{VMUID: "vm", Time: time.Now(), Disks: []backup.Disk{{Name: "root", Size: int64(len(img))}}})
		return err
	}
	img := backuptest.Image(8, 20<<20)
	want(t, store(r, img), "REPOSITORY_FULL")
	if list, err := r.Points(t.Context(), ""); err != nil || len(list) != 0 {
		t.Errorf("points of a full repository: %v, %v", list, err)
	}
	st.left.Store(1000)
	if err := store(r, img); err != nil {
		t.Error("there is room again:", err)
	}

	w.create("q", &v1.RepositorySpec{QuotaBytes: 2 << 20})
	q := w.repository("q", "h", "vm")
	if err := store(q, img[:1<<20]); err != nil {
		t.Error("below the quota:", err)
	}
	want(t, store(q, img), "REPOSITORY_FULL")
}

// What a host may send is bounded, and nonsense is refused with a word.
func TestHostile(t *testing.T) {
	w := newWorld(t, vault.Options{})
	w.create("r", nil)
	ctx := t.Context()
	c := w.as("h")
	g := w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "h", VmUid: "vm", Read: true, Write: true})
	b, err := c.Begin(ctx, &v1.VaultBeginRequest{Repository: "r", Grant: g, VmUid: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	s := b.GetSession()
	d, err := c.Disk(ctx, &v1.VaultDiskRequest{Session: s, Name: "d", Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	n := d.GetDisk()
	id := bytes.Repeat([]byte{1}, 32)
	block := func(b *v1.VaultBlock) *v1.VaultSendRequest {
		return &v1.VaultSendRequest{Session: s, Disk: n, Blocks: []*v1.VaultBlock{b}}
	}
	for name, f := range map[string]func() error{
		"disk without a name": func() error { _, err := c.Disk(ctx, &v1.VaultDiskRequest{Session: s, Size: 1}); return err },
		"huge disk": func() error {
			_, err := c.Disk(ctx, &v1.VaultDiskRequest{Session: s, Name: "x", Size: 1 << 60})
			return err
		},
		"negative disk": func() error { _, err := c.Disk(ctx, &v1.VaultDiskRequest{Session: s, Name: "x", Size: -1}); return err },
		"disk 7":        func() error { _, err := c.Offer(ctx, &v1.VaultOfferRequest{Session: s, Disk: 7}); return err },
		"disk -1":       func() error { _, err := c.Offer(ctx, &v1.VaultOfferRequest{Session: s, Disk: -1}); return err },
		"short ids": func() error {
			_, err := c.Offer(ctx, &v1.VaultOfferRequest{Session: s, Disk: n, Blocks: []int64{0}, Ids: id[:31]})
			return err
		},
		"block -1": func() error {
			_, err := c.Offer(ctx, &v1.VaultOfferRequest{Session: s, Disk: n, Blocks: []int64{-1}, Ids: id})
			return err
		},
		"block 1000": func() error {
			_, err := c.Offer(ctx, &v1.VaultOfferRequest{Session: s, Disk: n, Blocks: []int64{1000}, Ids: id})
			return err
		},
		"odd zeros": func() error {
			_, err := c.Offer(ctx, &v1.VaultOfferRequest{Session: s, Disk: n, Zeros: []int64{1}})
			return err
		},
		"zeros beyond": func() error {
			_, err := c.Offer(ctx, &v1.VaultOfferRequest{Session: s, Disk: n, Zeros: []int64{1 << 62, 1 << 62}})
			return err
		},
		"negative zeros": func() error {
			_, err := c.Offer(ctx, &v1.VaultOfferRequest{Session: s, Disk: n, Zeros: []int64{1, -1}})
			return err
		},
		"parent beyond": func() error {
			_, err := c.Parent(ctx, &v1.VaultParentRequest{Session: s, Disk: n, Block: 10, Count: 10})
			return err
		},
		"parent count": func() error {
			_, err := c.Parent(ctx, &v1.VaultParentRequest{Session: s, Disk: n, Count: -1})
			return err
		},
		"proofs": func() error {
			_, err := c.Prove(ctx, &v1.VaultProveRequest{Session: s, Disk: n, Blocks: []int64{0}, Ids: id})
			return err
		},
		"many proofs": func() error {
			_, err := c.Prove(ctx, &v1.VaultProveRequest{Session: s, Disk: n, Blocks: make([]int64, 1000), Ids: make([]byte, 32000), Proofs: make([]byte, 32000)})
			return err
		},
		"short id":   func() error { _, err := c.Send(ctx, block(&v1.VaultBlock{Id: id[:3], RawLength: 65536})); return err },
		"raw length": func() error { _, err := c.Send(ctx, block(&v1.VaultBlock{Id: id, RawLength: 1 << 30})); return err },
		"codec": func() error {
			_, err := c.Send(ctx, block(&v1.VaultBlock{Id: id, RawLength: 65536, Codec: 9}))
			return err
		},
		"garbage": func() error {
			_, err := c.Send(ctx, block(&v1.VaultBlock{Id: id, RawLength: 65536, Codec: 1, Data: []byte("garbage")}))
			return err
		},
		"bomb": func() error {
			_, err := c.Send(ctx, block(&v1.VaultBlock{Id: id, RawLength: 65536, Codec: 2, Data: []byte("\x28\xb5\x2f\xfd\xa4\x00\x00\x00\x40\x00\x00\x00\x00")}))
			return err
		},
		"no point": func() error {
			_, err := c.Commit(ctx, &v1.VaultCommitRequest{Session: s, Point: []byte("{")})
			return err
		},
		"no id": func() error {
			_, err := c.Commit(ctx, &v1.VaultCommitRequest{Session: s, Point: []byte("{}")})
			return err
		},
		"big point": func() error {
			_, err := c.Commit(ctx, &v1.VaultCommitRequest{Session: s, Point: make([]byte, 5<<20)})
			return err
		},
		"label": func() error {
			_, err := c.Commit(ctx, &v1.VaultCommitRequest{Session: s, Point: []byte(`{"id":"00112233445566778899aabbccddeeff","vmUid":"vm","labels":{"drover/attached-to":"x"}}`)})
			return err
		},
		"reads": func() error { _, err := c.Extents(ctx, &v1.VaultExtentsRequest{Session: s, Disk: "d"}); return err },
		"no session": func() error {
			_, err := c.Touch(ctx, &v1.VaultTouchRequest{Session: strings.Repeat("0", 64)})
			return err
		},
		"big message": func() error { _, err := c.Send(ctx, block(&v1.VaultBlock{Data: make([]byte, 12<<20)})); return err },
		"many pins": func() error {
			_, err := c.Begin(ctx, &v1.VaultBeginRequest{Repository: "r", Grant: g, VmUid: "vm", Pins: make([]string, 65)})
			return err
		},
	} {
		if err := f(); err == nil {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error(), "internal fault") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for range 40 {
		if _, err = c.Begin(ctx, &v1.VaultBeginRequest{Repository: "r", Grant: g, VmUid: "vm"}); err != nil {
			break
		}
	}
	want(t, err, "SESSIONS_MANY")
	// It still works.
	if _, err := c.Finish(ctx, &v1.VaultFinishRequest{Session: s, Disk: n}); err != nil {
		t.Error(err)
	}
	_, err = c.Offer(ctx, &v1.VaultOfferRequest{Session: s, Disk: n, Blocks: []int64{0}, Ids: id})
	want(t, err, "REQUEST_INVALID")
}
