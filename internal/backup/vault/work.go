package vault

import (
	"context"
	"fmt"
	"sync"

	"connectrpc.com/connect"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/chunkstore"
	"drover/internal/resource"
)

// task is work of the manager's on a repository: it ends when the repository is closed.
func (v *Vaults) task(ctx context.Context, name string) (x *vault, local *backup.Local, inner context.Context, done func(), err error) {
	if err := v.manager(ctx); err != nil {
		return nil, nil, nil, nil, err
	}
	x, local, leave, err := v.use(name)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	inner, cancel := context.WithCancelCause(ctx)
	v.mu.Lock()
	life := x.life
	v.mu.Unlock()
	stop := context.AfterFunc(life, func() { cancel(errClosed(name, nil)) })
	return x, local, inner, func() {
		stop()
		cancel(nil)
		leave()
	}, nil
}

// Collect reclaims space, and then rewrites what came in quickly with the slow codec.
func (v *Vaults) Collect(ctx context.Context, req *v1.VaultWorkRequest, stream *connect.ServerStream[v1.VaultProgress]) error {
	x, local, ctx, done, err := v.task(ctx, req.GetRepository())
	if err != nil {
		return err
	}
	defer done()
	if err := stream.Send(&v1.VaultProgress{Step: "walk the points"}); err != nil {
		return err
	}
	o := chunkstore.CollectOptions{Rate: req.GetBandwidthLimit()}
	res, err := local.Chunks().Collect(ctx, o)
	if err != nil {
		return told(x.name, err)
	}
	v.swept(x)
	// Objects that nobody can delete yet are not worth writing twice.
	if v.specOf(x).GetS3().GetObjectLock().AsDuration() == 0 {
		if err := stream.Send(&v1.VaultProgress{Progress: 0.3, Step: "compress what is new more densely", Bytes: res.Read, Freed: res.Freed}); err != nil {
			return err
		}
		moved, err := local.Chunks().Rewrite(ctx, chunkstore.RewriteOptions{Rate: req.GetBandwidthLimit()})
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			// It only saves room: what was collected stays collected.
			v.o.Log.Warn("packs not rewritten", "repository", x.name, "err", err)
		case moved.Packs > 0:
			more, err := local.Chunks().Collect(ctx, o)
			if err != nil {
				return told(x.name, err)
			}
			res.Read += more.Read
			res.Freed += more.Freed
		}
	}
	return stream.Send(&v1.VaultProgress{Progress: 1, Done: true, Bytes: res.Read, Freed: res.Freed})
}

// Scrub reads packs and checks them, and repairs what it can.
func (v *Vaults) Scrub(ctx context.Context, req *v1.VaultWorkRequest, stream *connect.ServerStream[v1.VaultProgress]) error {
	x, local, ctx, done, err := v.task(ctx, req.GetRepository())
	if err != nil {
		return err
	}
	defer done()
	if req.GetShare() < 0 || req.GetShare() > 1 {
		return invalid("share", "%v is not between 0 and 1", req.GetShare())
	}
	if err := stream.Send(&v1.VaultProgress{Step: "read packs"}); err != nil {
		return err
	}
	o := chunkstore.ScrubOptions{Share: req.GetShare(), Rate: req.GetBandwidthLimit(), ReadOnly: v.specOf(x).GetReadOnly()}
	if len(req.GetMirrors()) > 0 {
		m := &mirrors{v: v, addresses: req.GetMirrors(), readers: map[mirrorDisk]*mirrorReader{}}
		defer m.close()
		o.Mirror = m
	}
	res, err := local.Chunks().Scrub(ctx, o)
	if err != nil {
		return told(x.name, err)
	}
	out := &v1.VaultProgress{Progress: 1, Done: true, Bytes: res.Bytes, Affected: map[string]string{}}
	for _, p := range res.Damaged {
		out.DamagedPacks = append(out.DamagedPacks, p.Pack.String())
	}
	for _, p := range res.Repaired {
		out.RepairedPacks = append(out.RepairedPacks, p.Pack.String())
	}
	for _, a := range res.Affected {
		where := fmt.Sprintf("disk %s from %d, %d bytes", a.Disk, a.Offset, a.Length)
		if old := out.Affected[a.Point.String()]; old != "" {
			where = old + "; " + where
		}
		if len(where) < maxWhere {
			out.Affected[a.Point.String()] = where
		}
	}
	return stream.Send(out)
}

// maxWhere is how much is told of the damage to one point, in bytes.
const maxWhere = 4096

// Copy pulls points from another vault. Cut off, the next one goes on where it ended.
func (v *Vaults) Copy(ctx context.Context, req *v1.VaultCopyRequest, stream *connect.ServerStream[v1.VaultProgress]) error {
	x, local, ctx, done, err := v.task(ctx, req.GetRepository())
	if err != nil {
		return err
	}
	defer done()
	o := chunkstore.CopyOptions{Rate: req.GetBandwidthLimit(), Room: v.roomToCopy(ctx, x, local)}
	if rate := x.limit.Rate(); rate > 0 && (o.Rate == 0 || rate < o.Rate) {
		o.Rate = rate
	}
	for _, p := range req.GetPoints() {
		id, err := pointID(p)
		if err != nil {
			return err
		}
		o.Points = append(o.Points, id)
	}
	if len(o.Points) == 0 {
		return invalid("points", "no points are named")
	}
	if v.specOf(x).GetReadOnly() {
		return &resource.Error{Code: resource.Precondition, Kind: resource.KindRepository, Name: x.name, Reason: "REPOSITORY_READ_ONLY", Message: "it takes no new points"}
	}
	if err := v.room(ctx, x, local, 0); err != nil {
		return err
	}
	from, closer, err := v.away(req.GetFrom())
	if err != nil {
		return told(x.name, err)
	}
	defer closer()
	src, err := from.Source(ctx)
	if err != nil {
		return told(x.name, err)
	}
	// A caller who has gone is noticed by the context.
	var mu sync.Mutex
	o.Progress = func(r chunkstore.CopyResult) {
		mu.Lock()
		defer mu.Unlock()
		share := float64(r.Points+r.Had+len(r.Failed)) / float64(len(o.Points))
		_ = stream.Send(&v1.VaultProgress{Progress: min(share, 1), Step: "copy points from " + req.GetFrom().GetRepository(), Bytes: r.Bytes})
	}
	res, err := local.Chunks().Copy(ctx, src, o)
	if err != nil {
		return told(x.name, err)
	}
	mu.Lock()
	defer mu.Unlock()
	out := &v1.VaultProgress{Progress: 1, Done: true, Bytes: res.Bytes, Affected: map[string]string{}}
	for _, f := range res.Failed {
		out.Affected[f.Point.String()] = f.Err.Error()
	}
	return stream.Send(out)
}
