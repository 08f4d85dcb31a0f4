package host

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/qemu"
	"drover/internal/resource"
)

const (
	// protectRepo stands for programs of others in tracks; their points have no ids that we keep.
	protectRepo  = "protection"
	protectSince = "-"
	// Bounds of the lifetime of points and imports, and how many points one VM may have open.
	lifeDefault = 24 * time.Hour
	lifeMost    = 7 * 24 * time.Hour
	openPoints  = 8
	// changedMost is how many extents one answer has.
	changedMost = 10_000
)

// openPoint is a consistent point that is kept for programs of others.
type openPoint struct {
	id     string
	disks  []*lentDisk
	live   *qemu.LivePoint
	off    *offRead
	ends   context.CancelCauseFunc
	wait   sync.WaitGroup
	expire time.Time
}

// lentDisk is a disk that is served under a secret name.
type lentDisk struct {
	*pointDisk
	token string
	src   *diskSource
	// chain are the bitmaps of earlier points, oldest first, which are change ids.
	chain []string
}

func newSecret() string {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

func lifetimeOf(req *v1.NodePointRequest) time.Duration {
	if d := req.GetLifetime().AsDuration(); d > 0 {
		return min(d, lifeMost)
	}
	return lifeDefault
}

// CreatePoint makes a consistent point and keeps it until it is released, its time is up, or the agent or the VM's process ends.
func (n *node) CreatePoint(ctx context.Context, req *v1.NodePointRequest) (*v1.NodePointResponse, error) {
	m, err := n.find(req.GetUid(), req.GetEpoch())
	if err != nil {
		return nil, err
	}
	address, err := n.a.lending.address(n.a)
	if err != nil {
		return nil, err
	}
	p := &openPoint{id: pointID(req.GetOperation())}
	var out *v1.ProtectionPoint
	err = m.ask(ctx, func(ctx context.Context) error {
		if old := m.points[p.id]; old != nil {
			p = old
			return nil
		}
		var err error
		out, err = m.openPoint(ctx, p, req)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a protection point of VM %s: %w", m.name(), err)
	}
	if out == nil {
		return nil, m.precondition("POINT_OPEN", "has this point already", "release it first")
	}
	for i, d := range p.disks {
		out.Disks[i].Uri = "nbds://" + address + "/" + d.token
	}
	out.Name = m.name() + "/" + p.id
	return &v1.NodePointResponse{Point: out}, nil
}

func pointID(operation string) string {
	if uidForm.MatchString(operation) {
		return operation
	}
	return resource.NewUID()
}

// openPoint is CreatePoint in the VM's actor.
func (m *machine) openPoint(ctx context.Context, p *openPoint, req *v1.NodePointRequest) (out *v1.ProtectionPoint, err error) {
	if err := m.settledRevert(); err != nil {
		return nil, err
	}
	if len(m.points) >= openPoints {
		return nil, m.precondition("TOO_MANY_POINTS", fmt.Sprintf("has %d protection points open", len(m.points)), "release one first")
	}
	if len(m.imports) > 0 {
		return nil, m.precondition("IMPORT_OPEN", "has a disk that is open for writing", "release the import first")
	}
	j := &backupJob{m: m}
	if err := m.disksOf(j); err != nil {
		return nil, err
	}
	life, ends := context.WithCancelCause(m.a.life)
	p.ends = ends
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close(context.WithoutCancel(ctx)))
		}
	}()
	out = &v1.ProtectionPoint{Id: p.id, Consistency: "off"}
	q := m.process()
	have := map[string][]qemu.Bitmap{}
	if q != nil {
		byID, err := q.Bitmaps(ctx)
		if err != nil {
			return nil, err
		}
		for _, d := range j.disks {
			have[d.name] = byID[d.id]
		}
	}
	for _, d := range j.disks {
		m.chooseChain(d, q != nil, have[d.name])
		p.disks = append(p.disks, &lentDisk{pointDisk: d, token: newSecret(), chain: slices.Clone(d.since)})
	}
	if err := m.save(); err != nil {
		return nil, err
	}
	began := m.a.clk.Now()
	if q != nil {
		err = m.openLive(ctx, life, p, j.disks, q, req, out)
	} else {
		err = m.openOff(ctx, p)
	}
	if err != nil {
		return nil, err
	}
	if p.live != nil {
		began = p.live.Time
	}
	for _, d := range p.disks {
		t := m.local.track(protectRepo, d.name)
		if d.next != "" {
			t.fold()
			t.Points = []string{protectSince}
			t.Size = d.size
		}
		out.Disks = append(out.Disks, &v1.ProtectionDisk{Name: d.name, SizeBytes: d.size, ChangeId: d.next})
	}
	if err := m.save(); err != nil {
		return nil, err
	}
	p.expire = m.a.clk.Now().Add(lifetimeOf(req))
	out.Time, out.ExpireTime = timestamppb.New(began), timestamppb.New(p.expire)
	if m.points == nil {
		m.points = map[string]*openPoint{}
	}
	m.points[p.id] = p
	for _, d := range p.disks {
		m.a.lending.put(d.token, lentExport{d.src})
	}
	m.a.actors.Go(func() { m.expire(life, p) })
	return out, nil
}

// chooseChain has a new bitmap begin at the point, and keeps those of earlier ones.
func (m *machine) chooseChain(d *pointDisk, running bool, have []qemu.Bitmap) {
	t := m.local.track(protectRepo, d.name)
	if t != nil {
		t.fold()
		if over := len(t.Bitmaps) - bitmapsMost + 1; over > 0 {
			t.Bitmaps = slices.Clone(t.Bitmaps[over:])
		}
		if !running {
			for _, b := range t.Bitmaps {
				have = append(have, qemu.Bitmap{Name: b, Recording: true})
			}
		}
		t.Points = []string{protectSince}
		d.since, d.why = t.since(protectSince, d.top, d.size, have)
	}
	d.grown = d.size
	if t != nil && !d.full() {
		d.grown = t.Size
	}
	if t == nil || d.full() {
		t = &track{Repo: protectRepo, Disk: d.name, Layer: d.top.ID, Node: nodeName(d.top), Size: d.size}
		m.local.setTrack(t)
	}
	d.next = newBitmap()
	t.Next, t.NextPoint = d.next, protectSince
}

func (m *machine) openLive(ctx, life context.Context, p *openPoint, disks []*pointDisk, q *qemu.Process, req *v1.NodePointRequest, out *v1.ProtectionPoint) error {
	if err := m.tidyBitmaps(ctx, q); err != nil {
		return err
	}
	o, frozen, err := m.pointOptions(disks, req.GetQuiesce())
	if err != nil {
		return err
	}
	if p.live, err = q.BeginPoint(ctx, o); err != nil {
		return err
	}
	out.Consistency = consistency(false, *frozen)
	m.watchPoint(life, p.live, q, p.ends, &p.wait)
	for _, d := range p.disks {
		d.size = p.live.Size(d.id)
		if d.src, err = openSource(ctx, p.live.Socket, p.live.Export(d.id), p.live.Live(d.id), d.since); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) openOff(ctx context.Context, p *openPoint) error {
	var err error
	if p.off, err = m.newOffRead(); err != nil {
		return err
	}
	for _, d := range p.disks {
		t := m.local.track(protectRepo, d.name)
		if err := d.store.SetBitmaps(ctx, m.uid, d.name, d.next); err != nil {
			m.log.Info("changes of a disk are not tracked", "disk", d.name, "err", err)
			m.local.dropTrack(protectRepo, d.name)
			d.next, d.since, d.chain = "", nil, nil
		}
		if d.src, err = p.off.source(ctx, d.pointDisk); err != nil && len(d.since) > 0 {
			// A bitmap that QEMU did not write out: what was tracked is lost, the disk is not.
			m.log.Info("what changed before is not known", "disk", d.name, "err", err)
			t.Bitmaps = nil
			d.since, d.chain = nil, nil
			d.src, err = p.off.source(ctx, d.pointDisk)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// expire ends a point when its time is up, or when what it stands on is gone.
func (m *machine) expire(life context.Context, p *openPoint) {
	t := m.a.clk.NewTimer(p.expire.Sub(m.a.clk.Now()))
	defer t.Stop()
	var off <-chan struct{}
	if p.off != nil {
		off = p.off.ctx.Done()
	}
	select {
	case <-t.C:
	case <-off:
	case <-life.Done():
	}
	if m.a.life.Err() != nil {
		// The actor ends too, so this is the only one at it.
		m.closeLent(p.disks)
		end, cancel := context.WithTimeout(context.WithoutCancel(life), askTimeout)
		defer cancel()
		if err := p.close(end); err != nil {
			m.log.Info("a protection point is left to the next agent", "point", p.id, "err", err)
		}
		return
	}
	err := m.ask(m.a.life, func(ctx context.Context) error { return m.releasePoint(ctx, p.id) })
	if err != nil && !errors.Is(err, errEnded) {
		m.log.Warn("a protection point was not released", "point", p.id, "err", err)
	}
}

func (m *machine) closeLent(disks []*lentDisk) {
	for _, d := range disks {
		m.a.lending.drop(d.token)
		if d.src != nil {
			_ = d.src.Close()
		}
	}
}

// releasePoint runs in the VM's actor. A point that is not there is no error.
func (m *machine) releasePoint(ctx context.Context, id string) error {
	p := m.points[id]
	if p == nil {
		return nil
	}
	delete(m.points, id)
	m.closeLent(p.disks)
	err := p.close(ctx)
	if p.off != nil {
		m.forgetReading(p.off)
	}
	m.poke()
	return err
}

// close lets go of the disks.
func (p *openPoint) close(ctx context.Context) error {
	for _, d := range p.disks {
		if d.src != nil {
			_ = d.src.Close()
		}
	}
	var err error
	if p.live != nil {
		err = p.live.Close(ctx)
	}
	if p.off != nil {
		p.off.end(nil)
	}
	p.ends(nil)
	p.wait.Wait()
	return err
}

// ReleasePoint ends a point or an import.
func (n *node) ReleasePoint(ctx context.Context, req *v1.NodePointRequest) (*v1.NodePointResponse, error) {
	m, err := n.find(req.GetUid(), req.GetEpoch())
	if err != nil {
		return nil, err
	}
	err = m.ask(ctx, func(ctx context.Context) error {
		if i := m.imports[req.GetId()]; i != nil {
			return m.releaseImport(req.GetId())
		}
		return m.releasePoint(ctx, req.GetId())
	})
	return &v1.NodePointResponse{}, err
}

// ChangedExtents tells what has changed on a disk of a point since an earlier one, or what is allocated.
func (n *node) ChangedExtents(ctx context.Context, req *v1.NodePointRequest) (*v1.NodePointResponse, error) {
	m, err := n.find(req.GetUid(), req.GetEpoch())
	if err != nil {
		return nil, err
	}
	var d *lentDisk
	err = m.ask(ctx, func(context.Context) error {
		p := m.points[req.GetId()]
		if p == nil {
			return &resource.Error{Code: resource.NotFound, Kind: resource.KindVM, Name: m.name() + "/" + req.GetId(), Reason: "NOT_FOUND",
				Message: "is not open (any more): points end with their time, with the VM's process and with the host's agent"}
		}
		i := slices.IndexFunc(p.disks, func(d *lentDisk) bool { return d.name == req.GetDisk() })
		if i < 0 {
			return &resource.Error{Code: resource.NotFound, Kind: resource.KindDisk, Name: m.name() + "/" + req.GetDisk(), Reason: "NOT_FOUND", Message: "is not in the point"}
		}
		d = p.disks[i]
		return nil
	})
	if err != nil {
		return nil, err
	}
	out, err := d.changed(ctx, req.GetSince(), req.GetOffset(), int(req.GetLimit()))
	if errors.Is(err, errUnknownChange) {
		err = m.precondition("CHANGES_UNKNOWN", "has no record of the changes to disk "+d.name+" since then", "read all of the disk: leave since empty")
	}
	return &v1.NodePointResponse{Changed: out}, err
}

var errUnknownChange = errors.New("no such change id")

func (d *lentDisk) changed(ctx context.Context, since string, off int64, limit int) (*v1.ChangedExtentsResponse, error) {
	if limit <= 0 || limit > changedMost {
		limit = changedMost
	}
	var bitmaps []string
	if since != "" && since != d.next {
		i := slices.Index(d.chain, since)
		if i < 0 {
			return nil, errUnknownChange
		}
		bitmaps = d.chain[i:]
	}
	out := &v1.ChangedExtentsResponse{}
	if since != "" && since == d.next {
		return out, nil
	}
	add := func(e backup.Extent, zero bool) bool {
		if len(out.Extents) == limit {
			out.NextOffset = e.Offset
			return false
		}
		out.Extents = append(out.Extents, &v1.ChangedExtent{Offset: e.Offset, Length: e.Length, Zero: zero})
		return true
	}
	// parts tells which of a range is zeros now; with all it leaves those out.
	parts := func(from, to int64, all bool) (bool, error) {
		for at := from; at < to; {
			list, err := d.src.Extents(ctx, at, min(sourceWindow, to-at))
			if err != nil {
				return false, err
			}
			for _, e := range list {
				at = e.Offset + e.Length
				if e.Zero && !all {
					continue
				}
				if !add(e, e.Zero) {
					return false, nil
				}
			}
		}
		return true, nil
	}
	if len(bitmaps) == 0 {
		_, err := parts(max(off, 0), d.src.Size(), false)
		return out, err
	}
	for e, err := range d.src.dirty(ctx, bitmaps, d.grown) {
		if err != nil {
			return nil, err
		}
		from, to := max(e.Offset, off), e.Offset+e.Length
		if from >= to {
			continue
		}
		if more, err := parts(from, to, true); err != nil || !more {
			return out, err
		}
	}
	return out, nil
}
