package vault

import (
	"context"
	"errors"
	"fmt"
	"sync"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/remote"
	"drover/internal/chunkstore"
)

// away is a repository behind another vault.
func (v *Vaults) away(a *v1.VaultAddress) (*remote.Repository, func(), error) {
	if v.o.Dial == nil {
		return nil, nil, fmt.Errorf("repository %s: this process reaches no other vaults", a.GetRepository())
	}
	c, closer, err := v.o.Dial(a)
	if err != nil {
		return nil, nil, err
	}
	return remote.New(remote.Options{Client: c, Repository: a.GetRepository(), Grant: a.GetGrant(), Clock: v.o.Clock, Log: v.o.Log}), closer, nil
}

// mirrors finds blocks in other vaults, the first that has them. It keeps few points open.
type mirrors struct {
	v         *Vaults
	addresses []*v1.VaultAddress

	mu      sync.Mutex
	readers map[mirrorDisk]*mirrorReader
	order   []mirrorDisk
}

type mirrorDisk struct {
	mirror int
	point  chunkstore.PointID
	disk   string
}

type mirrorReader struct {
	r     *remote.Repository
	p     backup.PointReader
	d     backup.DiskReader
	bs    int
	err   error
	close func()
}

const keptMirrors = 8

// Block implements chunkstore.Mirror.
func (m *mirrors) Block(ctx context.Context, point chunkstore.PointID, disk string, block int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for i := range m.addresses {
		r := m.open(ctx, mirrorDisk{i, point, disk})
		if r.err != nil {
			errs = append(errs, r.err)
			continue
		}
		p := make([]byte, r.bs)
		err := r.d.ReadAt(ctx, p, block*int64(r.bs))
		if err == nil {
			return p, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// open finds a disk's reader, or opens it. m.mu is held.
func (m *mirrors) open(ctx context.Context, k mirrorDisk) *mirrorReader {
	if r := m.readers[k]; r != nil {
		return r
	}
	if len(m.order) >= keptMirrors {
		m.drop(m.order[0])
		m.order = m.order[1:]
	}
	r := &mirrorReader{close: func() {}}
	m.readers[k] = r
	m.order = append(m.order, k)
	if r.r, r.close, r.err = m.v.away(m.addresses[k.mirror]); r.err != nil {
		r.close = func() {}
		return r
	}
	info, err := r.r.Info(ctx)
	if err == nil {
		r.bs = info.BlockSize
		r.p, err = r.r.OpenPoint(ctx, k.point.String())
	}
	if err == nil {
		r.d, err = r.p.Disk(ctx, k.disk)
	}
	r.err = err
	return r
}

func (m *mirrors) drop(k mirrorDisk) {
	r := m.readers[k]
	delete(m.readers, k)
	if r.p != nil {
		if err := r.p.Close(); err != nil {
			m.v.o.Log.Info("point of a mirror not closed", "point", k.point, "err", err)
		}
	}
	r.close()
}

func (m *mirrors) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.order {
		m.drop(k)
	}
}
