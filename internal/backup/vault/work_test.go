package vault_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/backup/backuptest"
	"drover/internal/backup/remote"
	"drover/internal/backup/vault"
	"drover/internal/blob"
	"drover/internal/pki"
)

// last reads a stream of progress to its end.
func last(t *testing.T, s *connect.ServerStreamForClient[v1.VaultProgress], err error) *v1.VaultProgress {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var p *v1.VaultProgress
	for s.Receive() {
		p = s.Msg()
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	if !p.GetDone() {
		t.Fatalf("the last message: %v", p)
	}
	return p
}

func TestWork(t *testing.T) {
	ctx := t.Context()
	away := newWorld(t, vault.Options{})
	w := newWorld(t, vault.Options{Dial: func(a *v1.VaultAddress) (droverv1connect.VaultServiceClient, func(), error) {
		c, closer, err := remote.Dial(a, away.credential(pki.Identity{Role: pki.RoleHost, Name: "puller", UID: "puller"}), away.ca.Trust())
		return c, closer, err
	}})
	st := blob.NewMemory()
	w.stores["memory:x"] = st
	w.create("here", &v1.RepositorySpec{Location: "memory:x"})
	away.create("there", nil)
	far := away.repository("there", "h", "")
	img := backuptest.Image(5, 30<<20)
	one := backuptest.Write(t, far, "vm", img)
	backuptest.Fill(img[5<<20:6<<20], 99)
	two := backuptest.Write(t, far, "vm", img)
	from := &v1.VaultAddress{Repository: "there", Address: away.addr, Role: "manager",
		Grant: away.grant(&v1.VaultGrantRequest{Repository: "there", HostUid: "puller", Read: true})}

	c := w.v.Client()
	s, err := c.Copy(ctx, &v1.VaultCopyRequest{Repository: "here", From: from, Points: []string{one.ID, two.ID}})
	if p := last(t, s, err); len(p.GetAffected()) != 0 {
		t.Errorf("points that were not copied: %v", p)
	}
	s, err = c.Copy(ctx, &v1.VaultCopyRequest{Repository: "here", From: from, Points: []string{one.ID, two.ID}})
	if p := last(t, s, err); p.GetBytes() != 0 {
		t.Errorf("copied again: %v", p)
	}
	near := w.repository("here", "h", "")
	// In a test of its own, so that its sessions end.
	t.Run("copied", func(t *testing.T) {
		if !bytes.Equal(backuptest.Read(t, near, two.ID, "root"), img) {
			t.Error("a copy is not what it was copied from")
		}
	})
	if list, err := near.Points(ctx, "vm"); err != nil || len(list) != 2 || list[0].Consistency != "crash" || list[0].Labels["policy"] != "gold" {
		t.Errorf("the copies: %v, %v", list, err)
	}

	// A quota ends a copy that passes it.
	w.create("small", &v1.RepositorySpec{QuotaBytes: 4 << 20})
	s, err = c.Copy(ctx, &v1.VaultCopyRequest{Repository: "small", From: from, Points: []string{one.ID, two.ID}})
	for err == nil && s.Receive() {
	}
	want(t, s.Err(), "REPOSITORY_FULL")
	if st, err := c.Status(ctx, &v1.VaultStatusRequest{Repository: "small"}); err != nil || st.GetStatus().GetPoints() != 0 || st.GetStatus().GetStoredBytes() > 5<<20 {
		t.Errorf("a copy over the quota of 4 MiB: %v, %v", st, err)
	}

	// Rot is found, and mended from the other vault.
	for info, err := range st.List(ctx, "data/", "") {
		if err != nil {
			t.Fatal(err)
		}
		st.Tamper(info.Name, func(b []byte) []byte {
			b[len(b)/2] ^= 0x10
			return b
		})
		break
	}
	s, err = c.Scrub(ctx, &v1.VaultWorkRequest{Repository: "here"})
	p := last(t, s, err)
	if len(p.GetDamagedPacks()) != 1 || len(p.GetAffected()) == 0 {
		t.Fatalf("a scrub of a damaged repository: %v", p)
	}
	status, err := c.Status(ctx, &v1.VaultStatusRequest{Repository: "here"})
	if err != nil || status.GetStatus().GetPhase() != v1.RepositoryPhase_REPOSITORY_PHASE_DAMAGED || len(status.GetStatus().GetAffected()) == 0 ||
		!strings.HasPrefix(status.GetStatus().GetAffected()[0], "name of vm/") {
		t.Errorf("status of a damaged repository: %v, %v", status, err)
	}
	// Also after a restart, and when that was.
	w.stop()
	w.start()
	c = w.v.Client()
	if again, err := c.Status(ctx, &v1.VaultStatusRequest{Repository: "here"}); err != nil || again.GetStatus().GetDamagedPacks() != 1 ||
		!slices.Equal(again.GetStatus().GetAffected(), status.GetStatus().GetAffected()) || again.GetStatus().GetLastScrub() == nil || !proto.Equal(again.GetStatus().GetLastScrub(), status.GetStatus().GetLastScrub()) {
		t.Errorf("status after a restart: %v, %v", again, err)
	}
	near = w.repository("here", "h", "")
	s, err = c.Scrub(ctx, &v1.VaultWorkRequest{Repository: "here", Mirrors: []*v1.VaultAddress{from}})
	if p := last(t, s, err); len(p.GetDamagedPacks()) != 0 || len(p.GetRepairedPacks()) != 1 {
		t.Fatalf("a scrub with a mirror: %v", p)
	}
	t.Run("mended", func(t *testing.T) {
		if !bytes.Equal(backuptest.Read(t, near, two.ID, "root"), img) {
			t.Error("what was mended is not what it was")
		}
	})

	// Keep, forget, collect.
	if _, err := c.Keep(ctx, &v1.VaultKeepRequest{Repository: "here", Point: two.ID, Keep: true, Labels: map[string]string{"tested": "yes"}, Files: map[string][]byte{"a.png": {1, 2}}}); err != nil {
		t.Fatal(err)
	}
	_, err = c.Forget(ctx, &v1.VaultForgetRequest{Repository: "here", Points: []string{two.ID}})
	want(t, err, "POINT_KEPT")
	pr, err := near.OpenPoint(ctx, two.ID)
	if err != nil {
		t.Fatal(err)
	}
	if pr.Point().Labels["tested"] != "yes" || !bytes.Equal(pr.(interface{ Files() map[string][]byte }).Files()["a.png"], []byte{1, 2}) {
		t.Errorf("what was kept: %v", pr.Point().Labels)
	}
	if err := pr.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Keep(ctx, &v1.VaultKeepRequest{Repository: "here", Point: two.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Forget(ctx, &v1.VaultForgetRequest{Repository: "here", Points: []string{one.ID, two.ID}}); err != nil {
		t.Fatal(err)
	}
	s, err = c.Collect(ctx, &v1.VaultWorkRequest{Repository: "here"})
	if p := last(t, s, err); p.GetFreed() == 0 {
		t.Errorf("collection freed nothing: %v", p)
	}
	status, err = c.Status(ctx, &v1.VaultStatusRequest{Repository: "here"})
	if err != nil || status.GetStatus().GetPoints() != 0 || status.GetStatus().GetLastCollect() == nil || status.GetRevision() == 0 {
		t.Errorf("status after collection: %v, %v", status, err)
	}
	if _, err := c.Rekey(ctx, &v1.VaultRekeyRequest{Repository: "here", RotateDataKey: true}); err != nil {
		t.Fatal(err)
	}
	backuptest.Write(t, near, "vm", img)
}
