package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Store is a connection to the state. Its methods are safe for concurrent use.
type Store struct {
	client   *clientv3.Client
	embedded *embedded // nil over an external cluster
	log      *slog.Logger
	timeout  time.Duration
}

// Open connects, and starts the embedded server if Dir is given. The caller owns the Store and closes it.
// An external cluster must answer one linearizable read before Open returns.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	s := &Store{log: o.Logger, timeout: o.RequestTimeout}
	var err error
	if o.Dir != "" {
		err = s.connectEmbedded(ctx, &o)
	} else {
		err = s.connectExternal(&o)
	}
	if err != nil {
		return nil, err
	}
	if _, err := s.Revision(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the state store: %w", err), s.Close())
	}
	return s, nil
}

func (s *Store) connectExternal(o *Options) error {
	c, err := clientv3.New(clientv3.Config{
		Endpoints:            o.Endpoints,
		TLS:                  o.TLS,
		DialTimeout:          5 * time.Second,
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		PermitWithoutStream:  true,
		Logger:               newZap(o.Logger, slog.LevelError),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		})},
	})
	if err != nil {
		return fmt.Errorf("connect to etcd at %v: %w: %w", o.Endpoints, ErrUnavailable, err)
	}
	s.client = c
	return nil
}

// Close ends watches and the embedded server. It waits for the server's goroutines.
func (s *Store) Close() error {
	err := s.client.Close()
	if errors.Is(err, context.Canceled) {
		err = nil // the client in this process reports its own cancellation
	}
	if s.embedded != nil {
		err = errors.Join(err, s.embedded.close())
	}
	return err
}

// Done is closed when the embedded server has stopped, on Close or by a failure that it logged; never over an
// external cluster.
func (s *Store) Done() <-chan struct{} {
	if s.embedded == nil {
		return nil
	}
	return s.embedded.server.Server.StopNotify()
}

// bound gives one request the request timeout, or what the caller has left if that is less.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.timeout)
}

// Revision is the store's current revision, read from the leader.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	r, err := s.client.Get(ctx, prefix, clientv3.WithCountOnly())
	if err != nil {
		return 0, translate(ctx, err)
	}
	return r.Header.Revision, nil
}

// Compact drops history before rev; a watcher that resumes from before it gets Reset.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	if _, err := s.client.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil && !errors.Is(translate(ctx, err), ErrCompacted) {
		return fmt.Errorf("compact the state store to revision %d: %w", rev, translate(ctx, err))
	}
	return nil
}

// Reclaim compacts to the current revision, gives the freed space of the embedded server back to the file
// system and, if the quota had been hit, lets writes in again. Requests wait while it runs: about a second
// per 100 MB. Over an external cluster defragmentation is its operator's.
func (s *Store) Reclaim(ctx context.Context) error {
	rev, err := s.Revision(ctx)
	if err != nil {
		return err
	}
	if err := s.Compact(ctx, rev); err != nil {
		return err
	}
	if s.embedded == nil {
		return nil
	}
	// Not through the client: the maintenance service of an in-process client has no health server and panics.
	if err := s.embedded.server.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("defragment the state store: %w", err)
	}
	if _, err := s.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		return fmt.Errorf("clear the state store's alarm: %w", translate(ctx, err))
	}
	return nil
}
