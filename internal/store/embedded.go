package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"golang.org/x/sys/unix"
)

// The one member of an embedded cluster. The peer address is a name only: nothing listens there.
const (
	memberName = "drover"
	memberPeer = "unix://drover"
	memberList = memberName + "=" + memberPeer
)

// embedded is the etcd server in this process.
type embedded struct {
	server *embed.Etcd
	lock   *os.File
}

// config is tuned for one member that serves one process: raft entries are kept in memory until a
// snapshot, so snapshots are frequent; there is no slow follower to keep entries for.
func (o *Options) config() (*embed.Config, error) {
	peer, err := url.Parse(memberPeer)
	if err != nil {
		return nil, err
	}
	c := embed.NewConfig()
	c.Name, c.Dir, c.InitialCluster = memberName, o.Dir, memberList
	c.ListenPeerUrls, c.ListenClientUrls, c.AdvertiseClientUrls = nil, nil, nil
	c.AdvertisePeerUrls = []url.URL{*peer}
	c.SnapshotCount, c.SnapshotCatchUpEntries = 1000, 100
	c.MaxSnapFiles, c.MaxWalFiles = 2, 2
	c.QuotaBackendBytes = o.QuotaBytes
	c.AutoCompactionMode = embed.CompactorModeRevision
	c.AutoCompactionRetention = strconv.FormatInt(o.KeepRevisions, 10)
	c.BackendFreelistType = "map"
	c.BootstrapDefragThresholdMegabytes = 64
	c.EnableGRPCGateway = false
	c.UnsafeNoFsync = o.unsafeNoFsync
	c.LogLevel = "warn"
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(o.Logger, slog.LevelWarn))
	return c, nil
}

func startEmbedded(ctx context.Context, o *Options) (*embedded, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory %s: %w", o.Dir, err)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	cfg, err := o.config()
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	srv, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the state store in %s: %w", o.Dir, err), lock.Close())
	}
	e := &embedded{server: srv, lock: lock}
	select {
	case <-srv.Server.ReadyNotify():
		return e, nil
	case <-srv.Server.StopNotify():
		err = errors.New("it stopped while starting")
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(fmt.Errorf("start the state store in %s: %w: %w", o.Dir, ErrUnavailable, err), e.close())
}

func (e *embedded) close() error {
	e.server.Close()
	return e.lock.Close()
}

// lockDir refuses a second process at once, where etcd would wait for the first one without end.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "drover.lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: state directory %s is in use by another process", ErrUnavailable, dir), f.Close())
	}
	return f, nil
}

func (s *Store) connectEmbedded(ctx context.Context, o *Options) error {
	e, err := startEmbedded(ctx, o)
	if err != nil {
		return err
	}
	s.embedded, s.client = e, v3client.New(e.server.Server)
	return nil
}
