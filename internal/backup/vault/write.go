package vault

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/chunkstore"
	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/pack"
	"drover/internal/resource"
)

// Limits of what one request, or one session, may ask for.
const (
	maxPins    = 64
	maxDisks   = 256
	maxName    = 128
	maxPurpose = 256
	maxDisk    = 1 << 47  // twice the largest disk of a VM
	maxParent  = 16 << 10 // ids
	maxOffer   = 16 << 10
	maxSend    = 1024
	maxBytes   = 8 << 20 // of blocks, raw
	maxPoint   = 4 << 20
	maxLabels  = 64
)

// skew is how far a host's clock may be ahead of ours.
const skew = 5 * time.Minute

// disk is one that is being written.
type disk struct {
	o      backup.DiskOptions
	w      *backup.LocalWriter
	blocks int64

	mu       sync.Mutex
	leaves   map[int64][]chunkstore.ID // of the parent
	order    []int64
	finished *v1.VaultFinishResponse
}

const keptLeaves = 16

// Begin starts to write.
func (v *Vaults) Begin(ctx context.Context, req *v1.VaultBeginRequest) (*v1.VaultBeginResponse, error) {
	g, who, err := v.granted(ctx, req.GetRepository(), req.GetGrant())
	if err == nil {
		err = g.may(true)
	}
	if err == nil {
		err = g.vmOK(req.GetVmUid())
	}
	if err != nil {
		return nil, err
	}
	if len(req.GetPins()) > maxPins || len(req.GetPurpose()) > maxPurpose {
		return nil, invalid("pins", "at most %d points, and a purpose of %d bytes", maxPins, maxPurpose)
	}
	x, local, done, err := v.use(req.GetRepository())
	if err != nil {
		return nil, err
	}
	defer done()
	if v.specOf(x).GetReadOnly() {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindRepository, Name: x.name, Reason: "REPOSITORY_READ_ONLY", Message: "it takes no new points"}
	}
	if err := local.Chunks().Refresh(ctx); err != nil {
		return nil, told(x.name, err)
	}
	for _, p := range req.GetPins() {
		if err := v.mayRead(local, g, p); err != nil {
			return nil, err
		}
	}
	if err := v.room(ctx, x, local, 0); err != nil {
		return nil, err
	}
	w, err := local.BeginLocal(ctx, backup.SessionOptions{Purpose: req.GetPurpose(), VMUID: req.GetVmUid(), Pins: req.GetPins()})
	if err != nil {
		return nil, told(x.name, err)
	}
	challenge := make([]byte, 32)
	if _, err := rand.Read(challenge); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	s := &session{vault: x, grant: g, peer: who, purpose: req.GetPurpose(), local: local, write: w, blockBS: int64(local.Chunks().BlockSize()), done: map[string][]byte{}}
	s.hasher(challenge)
	token, err := v.add(s)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return &v1.VaultBeginResponse{Session: token, Challenge: challenge}, nil
}

func (v *Vaults) specOf(x *vault) *v1.RepositorySpec {
	v.mu.Lock()
	defer v.mu.Unlock()
	return x.spec
}

// mayRead says whether a grant covers a point.
func (v *Vaults) mayRead(local *backup.Local, g *grant, point string) error {
	id, err := pointID(point)
	if err != nil {
		return err
	}
	p, ok := local.Chunks().Point(id)
	if !ok || g.vm != "" && p.GetVmUid() != g.vm || !g.sees(point) {
		// The same answer for one that is another's.
		return &resource.Error{Code: resource.NotFound, Kind: resource.KindPoint, Name: g.repository + "/" + point, Reason: "POINT_UNKNOWN", Message: "there is no such point"}
	}
	return nil
}

// writing finds a session that writes.
func (v *Vaults) writing(ctx context.Context, token string) (*session, func(), error) {
	s, leave, err := v.enter(ctx, token)
	if err != nil {
		return nil, nil, err
	}
	if s.write == nil {
		leave()
		return nil, nil, invalid("session", "this session reads")
	}
	return s, leave, nil
}

// Disk begins a disk.
func (v *Vaults) Disk(ctx context.Context, req *v1.VaultDiskRequest) (*v1.VaultDiskResponse, error) {
	s, leave, err := v.writing(ctx, req.GetSession())
	if err != nil {
		return nil, err
	}
	defer leave()
	if n := len(req.GetName()); n == 0 || n > maxName || req.GetSize() < 0 || req.GetSize() > maxDisk || len(req.GetParentDisk()) > maxName {
		return nil, invalid("name", "a disk has a name of 1 to %d bytes and a size of 0 to %d", maxName, int64(maxDisk))
	}
	if !plainName(req.GetName()) {
		return nil, invalid("name", "%q is no name of a disk: letters, digits and what is between them", clip(req.GetName()))
	}
	if req.GetParentPoint() != "" {
		if err := v.mayRead(s.local, s.grant, req.GetParentPoint()); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	n := len(s.disks)
	s.mu.Unlock()
	if n >= maxDisks {
		return nil, &resource.Error{Code: resource.Exhausted, Reason: "DISKS_MANY", Message: fmt.Sprintf("a session writes at most %d disks", maxDisks)}
	}
	o := backup.DiskOptions{Name: req.GetName(), Size: req.GetSize(), ParentPoint: req.GetParentPoint(), ParentDisk: req.GetParentDisk(), Incremental: req.GetIncremental()}
	w, err := s.write.DiskLocal(ctx, o)
	if err != nil {
		return nil, told(s.vault.name, err)
	}
	d := &disk{o: o, w: w, blocks: (o.Size + s.blockBS - 1) / s.blockBS, leaves: map[int64][]chunkstore.ID{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.disks) >= maxDisks {
		return nil, &resource.Error{Code: resource.Exhausted, Reason: "DISKS_MANY", Message: fmt.Sprintf("a session writes at most %d disks", maxDisks)}
	}
	s.disks = append(s.disks, d)
	return &v1.VaultDiskResponse{Disk: int32(len(s.disks) - 1)}, nil
}

// on finds a session and a disk of it that is not finished.
func (v *Vaults) on(ctx context.Context, token string, n int32) (*session, *disk, func(), error) {
	s, leave, err := v.writing(ctx, token)
	if err != nil {
		return nil, nil, nil, err
	}
	s.mu.Lock()
	var d *disk
	if n >= 0 && int(n) < len(s.disks) {
		d = s.disks[n]
	}
	s.mu.Unlock()
	if d == nil {
		leave()
		return nil, nil, nil, invalid("disk", "the session has no disk %d", n)
	}
	return s, d, leave, nil
}

func (d *disk) open() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.finished != nil {
		return invalid("disk", "disk %q is finished", d.o.Name)
	}
	return nil
}

// Parent tells ids of the disk that is written against.
func (v *Vaults) Parent(ctx context.Context, req *v1.VaultParentRequest) (*v1.VaultParentResponse, error) {
	s, d, leave, err := v.on(ctx, req.GetSession(), req.GetDisk())
	if err != nil {
		return nil, err
	}
	defer leave()
	n := int64(req.GetCount())
	if req.GetBlock() < 0 || n < 0 || n > maxParent || req.GetBlock() > d.blocks-n {
		return nil, invalid("count", "blocks %d+%d of %d, at most %d at once", req.GetBlock(), n, d.blocks, maxParent)
	}
	ids, err := d.w.Chunks().ParentIDs(ctx, req.GetBlock(), int(n))
	if err != nil {
		return nil, told(s.vault.name, err)
	}
	out := make([]byte, 0, 32*len(ids))
	for i := range ids {
		out = append(out, ids[i][:]...)
	}
	return &v1.VaultParentResponse{Ids: out}, nil
}

// parentID is the id of the parent at a block; zero if it has none.
func (d *disk) parentID(ctx context.Context, block int64) (chunkstore.ID, error) {
	if d.o.ParentPoint == "" {
		return chunkstore.ID{}, nil
	}
	const fan = chunkstore.Fanout
	n := block / fan
	d.mu.Lock()
	defer d.mu.Unlock()
	leaf, ok := d.leaves[n]
	if !ok {
		var err error
		if leaf, err = d.w.Chunks().ParentIDs(ctx, n*fan, fan); err != nil {
			return chunkstore.ID{}, err
		}
		if len(d.order) >= keptLeaves {
			delete(d.leaves, d.order[0])
			d.order = d.order[1:]
		}
		d.leaves[n] = leaf
		d.order = append(d.order, n)
	}
	return leaf[block%fan], nil
}

func (d *disk) fits(block int64) error {
	if block < 0 || block >= d.blocks {
		return invalid("blocks", "disk %q has no block %d", d.o.Name, block)
	}
	return nil
}

// Offer takes what the host may have without showing more than an id.
func (v *Vaults) Offer(ctx context.Context, req *v1.VaultOfferRequest) (*v1.VaultOfferResponse, error) {
	s, d, leave, err := v.on(ctx, req.GetSession(), req.GetDisk())
	if err != nil {
		return nil, err
	}
	defer leave()
	if n := len(req.GetBlocks()); n > maxOffer || len(req.GetIds()) != 32*n || len(req.GetZeros())%2 != 0 || len(req.GetZeros()) > 2*maxOffer {
		return nil, invalid("ids", "%d blocks with %d bytes of ids and %d numbers of zeros: at most %d each", n, len(req.GetIds()), len(req.GetZeros()), maxOffer)
	}
	if err := d.open(); err != nil {
		return nil, err
	}
	if err := v.pages(ctx, s, req.GetBlocks()); err != nil {
		return nil, err
	}
	w := d.w.Chunks()
	for z := req.GetZeros(); len(z) > 0; z = z[2:] {
		if z[0] < 0 || z[1] < 0 || z[1] > d.blocks || z[0] > d.blocks-z[1] {
			return nil, invalid("zeros", "disk %q has no blocks %d+%d", d.o.Name, z[0], z[1])
		}
		if err := w.Zero(ctx, z[0], z[1]); err != nil {
			return nil, told(s.vault.name, err)
		}
	}
	res := &v1.VaultOfferResponse{}
	for i, block := range req.GetBlocks() {
		if err := d.fits(block); err != nil {
			return nil, err
		}
		id := pack.ID(req.GetIds()[32*i:][:32])
		free := id.Zero() || s.grant.all() || s.knows(id)
		if !free {
			parent, err := d.parentID(ctx, block)
			if err != nil {
				return nil, told(s.vault.name, err)
			}
			free = parent == id
		}
		switch {
		case free:
			have, err := w.PutID(ctx, block, id)
			if err != nil {
				return nil, told(s.vault.name, err)
			}
			if !have {
				res.Missing = append(res.Missing, int32(i))
			}
		case s.write.Chunks().Has(id):
			res.Prove = append(res.Prove, int32(i))
		default:
			res.Missing = append(res.Missing, int32(i))
		}
	}
	return res, nil
}

// Prove takes blocks whose bytes the host has shown to have.
func (v *Vaults) Prove(ctx context.Context, req *v1.VaultProveRequest) (*v1.VaultProveResponse, error) {
	s, d, leave, err := v.on(ctx, req.GetSession(), req.GetDisk())
	if err != nil {
		return nil, err
	}
	defer leave()
	n := len(req.GetBlocks())
	if n > maxSend || int64(n)*s.blockBS > maxBytes || len(req.GetIds()) != 32*n || len(req.GetProofs()) != 32*n {
		return nil, invalid("proofs", "%d blocks with %d bytes of ids and %d of proofs: at most %d blocks", n, len(req.GetIds()), len(req.GetProofs()), min(maxSend, maxBytes/s.blockBS))
	}
	if err := d.open(); err != nil {
		return nil, err
	}
	h := s.prover.Get().(*keys.Hasher)
	defer s.prover.Put(h)
	res := &v1.VaultProveResponse{}
	for i, block := range req.GetBlocks() {
		if err := d.fits(block); err != nil {
			return nil, err
		}
		id := pack.ID(req.GetIds()[32*i:][:32])
		data, ok, err := s.write.Chunks().Block(ctx, id)
		if err != nil && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err == nil && ok {
			proof := h.Block(data)
			if ok = subtle.ConstantTimeCompare(proof[:], req.GetProofs()[32*i:][:32]) == 1; ok {
				if ok, err = d.w.Chunks().PutID(ctx, block, id); err != nil {
					return nil, told(s.vault.name, err)
				}
			}
		}
		if err != nil || !ok {
			// A block that can't be read here is stored anew.
			res.Missing = append(res.Missing, int32(i))
			continue
		}
		s.learn(id)
	}
	return res, nil
}

// Send stores blocks.
func (v *Vaults) Send(ctx context.Context, req *v1.VaultSendRequest) (*v1.VaultSendResponse, error) {
	s, d, leave, err := v.on(ctx, req.GetSession(), req.GetDisk())
	if err != nil {
		return nil, err
	}
	defer leave()
	n := len(req.GetBlocks())
	if n > maxSend || int64(n)*s.blockBS > maxBytes {
		return nil, invalid("blocks", "%d blocks: at most %d", n, min(maxSend, maxBytes/s.blockBS))
	}
	if err := d.open(); err != nil {
		return nil, err
	}
	var bytes int64
	for _, b := range req.GetBlocks() {
		bytes += int64(len(b.GetData()))
	}
	if err := v.room(ctx, s.vault, s.local, bytes); err != nil {
		return nil, err
	}
	if err := v.pace(ctx, s, bytes); err != nil {
		return nil, err
	}
	ids := make([]pack.ID, 0, n)
	for _, b := range req.GetBlocks() {
		if err := d.fits(b.GetBlock()); err != nil {
			return nil, err
		}
		if len(b.GetId()) != 32 || b.GetCodec() < 0 || b.GetCodec() > int32(pack.MinLZ) || int64(b.GetRawLength()) != s.blockBS || int64(len(b.GetData())) > s.blockBS {
			return nil, invalid("blocks", "block %d: an id of %d bytes, codec %d, %d bytes for %d", b.GetBlock(), len(b.GetId()), b.GetCodec(), len(b.GetData()), b.GetRawLength())
		}
		id := pack.ID(b.GetId())
		err := d.w.Chunks().PutStored(ctx, b.GetBlock(), id, pack.Codec(b.GetCodec()), int(b.GetRawLength()), b.GetData())
		if errors.Is(err, chunkstore.ErrDamaged) {
			// Not the repository's damage: the host's.
			return nil, &resource.Error{Code: resource.Invalid, Reason: "BLOCK_WRONG", Message: err.Error()}
		}
		if err != nil {
			return nil, told(s.vault.name, err)
		}
		ids = append(ids, id)
	}
	s.learn(ids...)
	return &v1.VaultSendResponse{}, nil
}

// Finish makes a disk ready. A second time it tells the same.
func (v *Vaults) Finish(ctx context.Context, req *v1.VaultFinishRequest) (*v1.VaultFinishResponse, error) {
	s, d, leave, err := v.on(ctx, req.GetSession(), req.GetDisk())
	if err != nil {
		return nil, err
	}
	defer leave()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.finished != nil {
		return d.finished, nil
	}
	r, err := d.w.Finish(ctx)
	if err != nil {
		return nil, told(s.vault.name, err)
	}
	d.finished = &v1.VaultFinishResponse{Read: r.Read, Stored: r.Stored, Packed: r.Packed}
	d.leaves = nil
	return d.finished, nil
}

// Commit makes the point. The same point a second time is the same answer.
func (v *Vaults) Commit(ctx context.Context, req *v1.VaultCommitRequest) (*v1.VaultCommitResponse, error) {
	s, leave, err := v.writing(ctx, req.GetSession())
	if err != nil {
		return nil, err
	}
	defer leave()
	if n := len(req.GetPoint()); n > maxPoint {
		return nil, invalid("point", "a point's description has at most %d bytes, not %d", maxPoint, n)
	}
	var p backup.Point
	if err := json.Unmarshal(req.GetPoint(), &p); err != nil {
		return nil, invalid("point", "not a point: %v", err)
	}
	if _, err := pointID(p.ID); err != nil {
		return nil, err
	}
	if s.grant.point != "" && p.ID != s.grant.point {
		return nil, &resource.Error{Code: resource.Denied, Reason: "GRANT_NARROW", Message: "the grant is for another point"}
	}
	if err := s.grant.vmOK(p.VMUID); err != nil {
		return nil, err
	}
	if err := s.grant.describe(&p); err != nil {
		return nil, err
	}
	s.mu.Lock()
	done := s.done[p.ID]
	s.mu.Unlock()
	if done != nil {
		return &v1.VaultCommitResponse{Point: done}, nil
	}
	if now := v.o.Clock.Now(); p.Time.After(now.Add(skew)) || s.outdated(p.Time) {
		v.o.Log.Warn("a host's clock is ahead, or behind the VM's last point: the point gets our time", "repository", s.vault.name, "host", s.peer, "point", p.ID, "time", p.Time)
		p.Time = now.UTC().Round(0)
	}
	p, err = s.write.Commit(ctx, p)
	if err != nil {
		return nil, told(s.vault.name, err)
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.done[p.ID] = b
	s.mu.Unlock()
	s.settle()
	return &v1.VaultCommitResponse{Point: b}, nil
}
