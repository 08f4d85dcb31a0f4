package vault

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"

	"connectrpc.com/connect"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/chunkstore"
	"drover/internal/chunkstore/pack"
	"drover/internal/resource"
)

// Limits of what a reader may ask for at once.
const (
	maxBlocks  = 1024
	maxWindow  = 64 << 30 // bytes of disk whose extents are told
	maxExtents = 100_000
	pointsEach = 1 << 20 // bytes of points in one message of Points
)

// Info tells what hosts need to know to make ids.
func (v *Vaults) Info(ctx context.Context, req *v1.VaultInfoRequest) (*v1.VaultInfoResponse, error) {
	if _, _, err := v.granted(ctx, req.GetRepository(), req.GetGrant()); err != nil {
		return nil, err
	}
	_, local, done, err := v.use(req.GetRepository())
	if err != nil {
		return nil, err
	}
	defer done()
	r := local.Chunks()
	hash, key := r.IDKey()
	return &v1.VaultInfoResponse{Id: r.ID(), BlockSize: int32(r.BlockSize()), Encrypted: r.Encrypted(), Hash: hash, IdKey: key}, nil
}

// Points lists the points that the grant covers; the manager needs none.
func (v *Vaults) Points(ctx context.Context, req *v1.VaultPointsRequest, stream *connect.ServerStream[v1.VaultPointsResponse]) error {
	vm, sees := req.GetVmUid(), func(string) bool { return true }
	if req.GetGrant() != "" || v.manager(ctx) != nil {
		g, _, err := v.granted(ctx, req.GetRepository(), req.GetGrant())
		if err != nil {
			return err
		}
		if g.vm != "" && vm == "" {
			vm = g.vm
		}
		if err := g.vmOK(vm); err != nil {
			return err
		}
		sees = g.sees
	}
	x, local, done, err := v.use(req.GetRepository())
	if err != nil {
		return err
	}
	defer done()
	list, err := local.Points(ctx, vm)
	if err != nil {
		return told(x.name, err)
	}
	list = slices.DeleteFunc(list, func(p backup.Point) bool { return !sees(p.ID) })
	msg, size := &v1.VaultPointsResponse{}, 0
	for i, p := range list {
		b, err := json.Marshal(p)
		if err != nil {
			return err
		}
		msg.Points = append(msg.Points, b)
		if id, err := backup.ParsePointID(p.ID); err == nil && local.Chunks().Kept(id) {
			msg.Kept = append(msg.Kept, p.ID)
		}
		if size += len(b); size > pointsEach || i == len(list)-1 {
			if err := stream.Send(msg); err != nil {
				return err
			}
			msg, size = &v1.VaultPointsResponse{}, 0
		}
	}
	return nil
}

// OpenPoint starts to read a point.
func (v *Vaults) OpenPoint(ctx context.Context, req *v1.VaultOpenPointRequest) (*v1.VaultOpenPointResponse, error) {
	g, who, err := v.granted(ctx, req.GetRepository(), req.GetGrant())
	if err == nil {
		err = g.may(false)
	}
	if err != nil {
		return nil, err
	}
	x, local, done, err := v.use(req.GetRepository())
	if err != nil {
		return nil, err
	}
	defer done()
	if err := local.Chunks().Refresh(ctx); err != nil {
		return nil, told(x.name, err)
	}
	if err := v.mayRead(local, g, req.GetPoint()); err != nil {
		return nil, err
	}
	p, err := local.OpenLocal(ctx, req.GetPoint())
	if err != nil {
		return nil, told(x.name, err)
	}
	files, err := p.Files(ctx)
	if err != nil {
		v.o.Log.Warn("what is kept with a point can't be read", "repository", x.name, "point", req.GetPoint(), "err", err)
	}
	b, err := json.Marshal(p.Point())
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	s := &session{vault: x, grant: g, peer: who, purpose: "read point " + req.GetPoint(), local: local, read: p, opened: map[string]*backup.LocalDisk{},
		blockBS: int64(local.Chunks().BlockSize())}
	token, err := v.add(s)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return &v1.VaultOpenPointResponse{Session: token, Point: b, Files: files}, nil
}

// reading finds a session that reads, and a disk of its point.
func (v *Vaults) reading(ctx context.Context, token, name string) (*session, *backup.LocalDisk, func(), error) {
	s, leave, err := v.enter(ctx, token)
	if err != nil {
		return nil, nil, nil, err
	}
	if s.read == nil {
		leave()
		return nil, nil, nil, invalid("session", "this session writes")
	}
	s.mu.Lock()
	d := s.opened[name]
	s.mu.Unlock()
	if d != nil {
		return s, d, leave, nil
	}
	if d, err = s.read.DiskLocal(ctx, name); err != nil {
		leave()
		return nil, nil, nil, told(s.vault.name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.opened[name]; o != nil {
		return s, o, leave, nil
	}
	s.opened[name] = d
	return s, d, leave, nil
}

// Extents tells data from zeros. It may tell of less than was asked for.
func (v *Vaults) Extents(ctx context.Context, req *v1.VaultExtentsRequest) (*v1.VaultExtentsResponse, error) {
	s, d, leave, err := v.reading(ctx, req.GetSession(), req.GetDisk())
	if err != nil {
		return nil, err
	}
	defer leave()
	off, n := req.GetOffset(), req.GetLength()
	if off < 0 || n < 0 || off > d.Size() {
		return nil, invalid("offset", "disk %q has no bytes %d+%d", clip(req.GetDisk()), off, n)
	}
	list, err := d.Extents(ctx, off, min(n, maxWindow, d.Size()-off))
	if err != nil {
		return nil, told(s.vault.name, err)
	}
	return &v1.VaultExtentsResponse{Extents: extents(list[:min(len(list), maxExtents)])}, nil
}

func extents(list []backup.Extent) []*v1.VaultExtent {
	out := make([]*v1.VaultExtent, 0, len(list))
	for _, e := range list {
		out = append(out, &v1.VaultExtent{Offset: e.Offset, Length: e.Length, Zero: e.Zero})
	}
	return out
}

// Changed tells what may differ from another point of the same VM.
func (v *Vaults) Changed(ctx context.Context, req *v1.VaultChangedRequest) (*v1.VaultExtentsResponse, error) {
	s, d, leave, err := v.reading(ctx, req.GetSession(), req.GetDisk())
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := v.mayRead(s.local, s.grant, req.GetSincePoint()); err != nil {
		return nil, err
	}
	from, to := req.GetOffset(), d.Size()
	if req.GetLength() > 0 && req.GetLength() < to-from {
		to = from + req.GetLength()
	}
	if from < 0 || req.GetLength() < 0 {
		return nil, invalid("offset", "disk %q has no bytes %d+%d", clip(req.GetDisk()), from, req.GetLength())
	}
	list, err := d.Changed(ctx, req.GetSincePoint(), req.GetSinceDisk())
	if err != nil {
		return nil, told(s.vault.name, err)
	}
	out := list[:0]
	for _, e := range list {
		lo, hi := max(e.Offset, from), min(e.Offset+e.Length, to)
		if lo < hi {
			out = append(out, backup.Extent{Offset: lo, Length: hi - lo, Zero: e.Zero})
		}
	}
	if len(out) > maxExtents {
		// More than one message holds: the rest is said to have changed, which it may have.
		last := out[maxExtents-1].Offset
		out = append(out[:maxExtents-1], backup.Extent{Offset: last, Length: to - last})
	}
	return &v1.VaultExtentsResponse{Extents: extents(out)}, nil
}

// Blocks reads blocks as they are stored.
func (v *Vaults) Blocks(ctx context.Context, req *v1.VaultBlocksRequest) (*v1.VaultBlocksResponse, error) {
	s, d, leave, err := v.reading(ctx, req.GetSession(), req.GetDisk())
	if err != nil {
		return nil, err
	}
	defer leave()
	runs := req.GetRuns()
	blocks := (d.Size() + s.blockBS - 1) / s.blockBS
	var count int64
	if len(runs)%2 != 0 || len(runs) > 2*maxBlocks {
		return nil, invalid("runs", "%d numbers", len(runs))
	}
	for i := 0; i < len(runs); i += 2 {
		if runs[i] < 0 || runs[i+1] <= 0 || runs[i+1] > maxBlocks || runs[i] > blocks-runs[i+1] {
			return nil, invalid("runs", "disk %q has no blocks %d+%d", clip(req.GetDisk()), runs[i], runs[i+1])
		}
		count += runs[i+1]
	}
	if most := min(maxBlocks, max(maxBytes/s.blockBS, 1)); count > most {
		return nil, invalid("runs", "%d blocks: at most %d at once", count, most)
	}
	res := &v1.VaultBlocksResponse{Blocks: make([]*v1.VaultBlock, 0, count)}
	var bytes int64
	var mu sync.Mutex
	for i := 0; i < len(runs); i += 2 {
		err := d.Chunks().Blocks(ctx, runs[i], int(runs[i+1]), func(block int64, id chunkstore.ID, codec pack.Codec, raw int, payload []byte) error {
			mu.Lock()
			defer mu.Unlock()
			res.Blocks = append(res.Blocks, &v1.VaultBlock{Block: block, Id: id[:], Codec: int32(codec), RawLength: int32(raw), Data: slices.Clone(payload)})
			bytes += int64(len(payload))
			return nil
		})
		if err != nil {
			return nil, told(s.vault.name, err)
		}
	}
	if err := v.pace(ctx, s, bytes); err != nil {
		return nil, err
	}
	return res, nil
}

// Forget lets go of points.
func (v *Vaults) Forget(ctx context.Context, req *v1.VaultForgetRequest) (*v1.VaultForgetResponse, error) {
	if err := v.manager(ctx); err != nil {
		return nil, err
	}
	for _, p := range req.GetPoints() {
		if _, err := pointID(p); err != nil {
			return nil, err
		}
	}
	x, local, done, err := v.use(req.GetRepository())
	if err != nil {
		return nil, err
	}
	defer done()
	if err := local.Forget(ctx, req.GetReason(), req.GetPoints()...); err != nil {
		return nil, told(x.name, err)
	}
	return &v1.VaultForgetResponse{}, nil
}

// maxFile is what may be kept with a point, each.
const maxFile = 4 << 20

// Keep protects a point, labels it and keeps files with it.
func (v *Vaults) Keep(ctx context.Context, req *v1.VaultKeepRequest) (*v1.VaultKeepResponse, error) {
	if err := v.manager(ctx); err != nil {
		return nil, err
	}
	id, err := pointID(req.GetPoint())
	if err != nil {
		return nil, err
	}
	for k := range req.GetLabels() {
		if backup.ReservedLabel(k) {
			return nil, invalid("labels", "%q is not for use", clip(k))
		}
	}
	for name, data := range req.GetFiles() {
		if len(name) == 0 || len(name) > maxName || len(data) > maxFile {
			return nil, invalid("files", "%q of %d bytes: a name has at most %d, a file %d", clip(name), len(data), maxName, maxFile)
		}
	}
	x, local, done, err := v.use(req.GetRepository())
	if err != nil {
		return nil, err
	}
	defer done()
	if err := local.Chunks().Refresh(ctx); err != nil {
		return nil, told(x.name, err)
	}
	if _, ok := local.Chunks().Point(id); !ok {
		return nil, &resource.Error{Code: resource.NotFound, Kind: resource.KindPoint, Name: x.name + "/" + req.GetPoint(), Reason: "POINT_UNKNOWN", Message: "there is no such point"}
	}
	for name, data := range req.GetFiles() {
		if err := local.Attach(ctx, req.GetPoint(), name, data); err != nil {
			return nil, told(x.name, err)
		}
	}
	if err := local.Chunks().Keep(ctx, id, req.GetKeep(), req.GetLabels()); err != nil {
		return nil, told(x.name, err)
	}
	return &v1.VaultKeepResponse{}, nil
}

// Rekey changes the passphrase, or starts a new data key.
func (v *Vaults) Rekey(ctx context.Context, req *v1.VaultRekeyRequest) (*v1.VaultRekeyResponse, error) {
	if err := v.manager(ctx); err != nil {
		return nil, err
	}
	if n := len([]rune(req.GetPassphrase())); n > 0 && n < minPassphrase {
		return nil, invalid("passphrase", "a passphrase has at least %d characters, not %d", minPassphrase, n)
	}
	x, local, done, err := v.use(req.GetRepository())
	if err != nil {
		return nil, err
	}
	defer done()
	if req.GetPassphrase() != "" {
		if err := local.Chunks().SetPassphrase(ctx, req.GetPassphrase()); err != nil {
			return nil, told(x.name, err)
		}
	}
	if req.GetRotateDataKey() {
		if err := local.Chunks().Rotate(ctx); err != nil {
			return nil, told(x.name, err)
		}
	}
	return &v1.VaultRekeyResponse{}, nil
}
