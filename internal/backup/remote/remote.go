package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/backup"
	"drover/internal/chunkstore/keys"
	"drover/internal/clock"
	"drover/internal/pki"
	"drover/internal/rpc"
)

// Options are for New.
type Options struct {
	Client droverv1connect.VaultServiceClient
	// Repository is its name at the vault, and Grant what the manager gave.
	Repository, Grant string
	Clock             clock.Clock
	Log               *slog.Logger
	// Retry is how long a vault that does not answer is asked again; 0: 2 minutes.
	Retry time.Duration
	// InFlight is how many batches are on their way at once; 0: 6. Each takes up to 8 MiB.
	InFlight int
}

// Repository is a repository behind a vault.
type Repository struct {
	o Options

	mu   sync.Mutex
	info *v1.VaultInfoResponse
}

// New uses a vault. Nothing is asked before the first call.
func New(o Options) *Repository {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = clock.Real()
	}
	if o.Retry <= 0 {
		o.Retry = 2 * time.Minute
	}
	if o.InFlight <= 0 {
		o.InFlight = 6
	}
	return &Repository{o: o}
}

// Dial makes a client of the vault at an address. Nothing is sent before the first call; close ends its connections.
func Dial(address *v1.VaultAddress, credential *pki.Credential, trust *pki.Trust) (c droverv1connect.VaultServiceClient, closer func(), err error) {
	peer := pki.Identity{Role: pki.Role(address.GetRole()), UID: address.GetUid(), Name: address.GetHost()}
	if peer.Role == pki.RoleManager {
		peer = pki.Identity{Role: pki.RoleManager}
	}
	conf, err := pki.ClientConfig(pki.ClientOptions{Credential: credential, Trust: trust, Peer: peer})
	if err != nil {
		return nil, nil, fmt.Errorf("vault of repository %s at %s: %w", address.GetRepository(), address.GetAddress(), err)
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	t := &http.Transport{
		DialContext: d.DialContext, TLSClientConfig: conf, TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true,
		// Large frames: blocks are 64 KiB and more. A peer that is gone is noticed within half a minute.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second, MaxReadFrameSize: 1 << 20,
			MaxReceiveBufferPerConnection: 64 << 20, MaxReceiveBufferPerStream: 16 << 20},
	}
	c = droverv1connect.NewVaultServiceClient(&http.Client{Transport: t}, "https://"+address.GetAddress(), ClientOptions()...)
	return c, t.CloseIdleConnections, nil
}

// ClientOptions are what clients of a vault are made with: blocks are compressed already.
func ClientOptions() []connect.ClientOption {
	return append(rpc.ClientOptions(), connect.WithAcceptCompression("gzip", nil, nil))
}

// call asks, and asks again while the vault does not answer.
func call[Req, Res any](ctx context.Context, r *Repository, f func(context.Context, *Req) (*Res, error), req *Req) (*Res, error) {
	return again(ctx, r, func() (*Res, error) { return f(ctx, req) })
}

func again[Res any](ctx context.Context, r *Repository, f func() (Res, error)) (Res, error) {
	var since time.Time
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		res, err := f()
		switch {
		case err == nil:
			return res, nil
		case ctx.Err() != nil:
			return res, context.Cause(ctx)
		case !transient(err):
			return res, translate(err)
		}
		now := r.o.Clock.Now()
		if since.IsZero() {
			since = now
			r.o.Log.Info("vault does not answer", "repository", r.o.Repository, "err", err)
		}
		if now.Sub(since) > r.o.Retry {
			return res, fmt.Errorf("the vault of repository %s has not answered for %v: %w", r.o.Repository, r.o.Retry, rpc.FromError(err))
		}
		t := r.o.Clock.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return res, context.Cause(ctx)
		}
	}
}

// Reasons that a vault gives, as in resource.Error.
const (
	ReasonEnded   = "SESSION_ENDED"
	ReasonGrant   = "GRANT_UNKNOWN"
	ReasonClosed  = "VAULT_CLOSED"
	ReasonMissing = "POINT_UNKNOWN"
	ReasonDamaged = "REPOSITORY_DAMAGED"
)

// transient reports whether the call may succeed if it is made again: the connection broke, or the vault says so.
func transient(err error) bool {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return true
	}
	if ce.Code() == connect.CodeUnavailable {
		return true
	}
	return !connect.IsWireError(err) && ce.Code() != connect.CodeInvalidArgument && ce.Code() != connect.CodeResourceExhausted && ce.Code() != connect.CodeUnimplemented
}

// translate gives what the vault said one of backup's sentinels, if one fits.
func translate(err error) error {
	err = rpc.FromError(err)
	switch rpc.Detail(err).GetReason() {
	case ReasonEnded:
		return fmt.Errorf("%w: %w", backup.ErrEnded, err)
	case ReasonMissing:
		return fmt.Errorf("%w: %w", backup.ErrNotFound, err)
	case ReasonDamaged:
		return fmt.Errorf("%w: %w", backup.ErrDamaged, err)
	}
	return err
}

// Info tells what it is.
func (r *Repository) Info(ctx context.Context) (backup.Info, error) {
	i, err := r.about(ctx)
	if err != nil {
		return backup.Info{}, err
	}
	return backup.Info{ID: i.GetId(), BlockSize: int(i.GetBlockSize()), Encrypted: i.GetEncrypted()}, nil
}

// about asks once: none of it changes.
func (r *Repository) about(ctx context.Context) (*v1.VaultInfoResponse, error) {
	r.mu.Lock()
	i := r.info
	r.mu.Unlock()
	if i != nil {
		return i, nil
	}
	i, err := call(ctx, r, r.o.Client.Info, &v1.VaultInfoRequest{Repository: r.o.Repository, Grant: r.o.Grant})
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", r.o.Repository, err)
	}
	bs := i.GetBlockSize()
	if bs < keys.MinBlockSize || bs > keys.MaxBlockSize || bs&(bs-1) != 0 || len(i.GetIdKey()) != 32 || i.GetHash() != keys.BLAKE3 && i.GetHash() != keys.SHA256 {
		return nil, fmt.Errorf("repository %s: its vault tells of blocks of %d bytes with ids by %q and a key of %d bytes: this version can't use it", r.o.Repository, bs, i.GetHash(), len(i.GetIdKey()))
	}
	r.mu.Lock()
	r.info = i
	r.mu.Unlock()
	return i, nil
}

// Points lists points, oldest first. Definition and Files are left out.
func (r *Repository) Points(ctx context.Context, vmUID string) ([]backup.Point, error) {
	return again(ctx, r, func() ([]backup.Point, error) {
		stream, err := r.o.Client.Points(ctx, &v1.VaultPointsRequest{Repository: r.o.Repository, Grant: r.o.Grant, VmUid: vmUID})
		if err != nil {
			return nil, err
		}
		var out []backup.Point
		for stream.Receive() {
			for _, b := range stream.Msg().GetPoints() {
				var p backup.Point
				if err := json.Unmarshal(b, &p); err != nil {
					_ = stream.Close()
					return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("a point as the vault tells it: %w", err))
				}
				out = append(out, p)
			}
		}
		return out, errors.Join(stream.Err(), stream.Close())
	})
}
