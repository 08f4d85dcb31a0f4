package vault_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
	"drover/internal/backup/vault"
	"drover/internal/pki"
)

// FuzzRequests sends what a hostile host may: any message under a session of its own. Nothing panics, and what is refused has a reason.
func FuzzRequests(f *testing.F) {
	seed := func(kind byte, m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(kind, b)
	}
	id := []byte(strings.Repeat("\x01", 32))
	seed(0, &v1.VaultOfferRequest{Blocks: []int64{0, 3}, Ids: append(id, make([]byte, 32)...), Zeros: []int64{1, 2}})
	seed(1, &v1.VaultSendRequest{Blocks: []*v1.VaultBlock{{Block: 1, Id: id, Codec: 1, RawLength: 65536, Data: []byte("\x80\x80\x04x")}}})
	seed(2, &v1.VaultProveRequest{Blocks: []int64{0}, Ids: id, Proofs: id})
	seed(3, &v1.VaultCommitRequest{Point: []byte(`{"id":"00112233445566778899aabbccddeeff","vmUid":"vm","disks":[{"name":"d","size":1}]}`)})
	seed(4, &v1.VaultParentRequest{Block: 1, Count: 2})
	seed(5, &v1.VaultDiskRequest{Name: "x", Size: 1 << 20, ParentPoint: "00112233445566778899aabbccddeeff", ParentDisk: "d", Incremental: true})
	seed(6, &v1.VaultBlocksRequest{Disk: "root", Runs: []int64{0, 4, 7, 1}})
	seed(7, &v1.VaultExtentsRequest{Disk: "root", Offset: 1, Length: 1 << 40})
	seed(8, &v1.VaultChangedRequest{Disk: "root", SincePoint: "x", Offset: 1 << 62, Length: 1 << 62})

	w := newWorld(f, vault.Options{})
	w.create("r", nil)
	g := w.grant(&v1.VaultGrantRequest{Repository: "r", HostUid: "h", VmUid: "vm", Read: true, Write: true})
	ctx := vault.WithPeer(context.Background(), pki.Identity{Role: pki.RoleHost, Name: "h", UID: "h"})
	begin := func() *v1.VaultBeginResponse {
		b, err := w.v.Begin(ctx, &v1.VaultBeginRequest{Repository: "r", Grant: g, VmUid: "vm"})
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	b := begin()
	const point = "ffeeddccbbaa99887766554433221100"
	d, err := w.v.Disk(ctx, &v1.VaultDiskRequest{Session: b.GetSession(), Name: "root", Size: 1<<20 + 1})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := w.v.Finish(ctx, &v1.VaultFinishRequest{Session: b.GetSession(), Disk: d.GetDisk()}); err != nil {
		f.Fatal(err)
	}
	if _, err := w.v.Commit(ctx, &v1.VaultCommitRequest{Session: b.GetSession(), Point: []byte(`{"id":"` + point + `","vmUid":"vm","disks":[{"name":"root","size":1048577}]}`)}); err != nil {
		f.Fatal(err)
	}
	r, err := w.v.OpenPoint(ctx, &v1.VaultOpenPointRequest{Repository: "r", Grant: g, Point: point})
	if err != nil {
		f.Fatal(err)
	}
	if d, err = w.v.Disk(ctx, &v1.VaultDiskRequest{Session: b.GetSession(), Name: "d", Size: 1<<20 + 1, ParentPoint: point, ParentDisk: "root"}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		parse := func(m proto.Message) bool { return proto.Unmarshal(data, m) == nil }
		var err error
		switch kind % 9 {
		case 0:
			if m := (&v1.VaultOfferRequest{}); parse(m) {
				m.Session, m.Disk = b.GetSession(), d.GetDisk()
				_, err = w.v.Offer(ctx, m)
			}
		case 1:
			if m := (&v1.VaultSendRequest{}); parse(m) {
				m.Session, m.Disk = b.GetSession(), d.GetDisk()
				_, err = w.v.Send(ctx, m)
			}
		case 2:
			if m := (&v1.VaultProveRequest{}); parse(m) {
				m.Session, m.Disk = b.GetSession(), d.GetDisk()
				_, err = w.v.Prove(ctx, m)
			}
		case 3:
			if m := (&v1.VaultCommitRequest{}); parse(m) {
				m.Session = b.GetSession()
				_, err = w.v.Commit(ctx, m)
				if err != nil && strings.Contains(err.Error(), "was not finished") {
					err = nil
				}
			}
		case 4:
			if m := (&v1.VaultParentRequest{}); parse(m) {
				m.Session, m.Disk = b.GetSession(), d.GetDisk()
				_, err = w.v.Parent(ctx, m)
			}
		case 5:
			if m := (&v1.VaultDiskRequest{}); parse(m) {
				m.Session = b.GetSession()
				_, err = w.v.Disk(ctx, m)
				if err != nil && strings.Contains(err.Error(), "incremental to nothing") {
					err = nil
				}
			}
		case 6:
			if m := (&v1.VaultBlocksRequest{}); parse(m) {
				m.Session = r.GetSession()
				_, err = w.v.Blocks(ctx, m)
			}
		case 7:
			if m := (&v1.VaultExtentsRequest{}); parse(m) {
				m.Session = r.GetSession()
				_, err = w.v.Extents(ctx, m)
			}
		case 8:
			if m := (&v1.VaultChangedRequest{}); parse(m) {
				m.Session = r.GetSession()
				_, err = w.v.Changed(ctx, m)
			}
		}
		if err != nil && reasonOf(told(err)) == "" {
			t.Errorf("refused without a reason: %v", err)
		}
	})
}
