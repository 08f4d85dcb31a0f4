package vault

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/chunkstore"
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

// Collect reclaims space.
func (v *Vaults) Collect(ctx context.Context, req *v1.VaultWorkRequest, stream *connect.ServerStream[v1.VaultProgress]) error {
	x, local, ctx, done, err := v.task(ctx, req.GetRepository())
	if err != nil {
		return err
	}
	defer done()
	if err := stream.Send(&v1.VaultProgress{Step: "walk the points"}); err != nil {
		return err
	}
	res, err := local.Chunks().Collect(ctx, chunkstore.CollectOptions{Rate: req.GetBandwidthLimit()})
	if err != nil {
		return told(x.name, err)
	}
	v.mu.Lock()
	x.collected = v.o.Clock.Now()
	v.mu.Unlock()
	return stream.Send(&v1.VaultProgress{Progress: 1, Done: true, Bytes: res.Read, Freed: res.Freed})
}

// Scrub reads packs and checks them.
func (v *Vaults) Scrub(ctx context.Context, req *v1.VaultWorkRequest, stream *connect.ServerStream[v1.VaultProgress]) error {
	return connect.NewError(connect.CodeUnimplemented, errors.New("scrub"))
}

// Copy pulls points.
func (v *Vaults) Copy(ctx context.Context, req *v1.VaultCopyRequest, stream *connect.ServerStream[v1.VaultProgress]) error {
	return connect.NewError(connect.CodeUnimplemented, errors.New("copy"))
}
