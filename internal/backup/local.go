package backup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"drover/internal/chunkstore"
	"drover/internal/chunkstore/ledger"
)

// Labels that Local keeps for itself. A point that has attachedTo is a file that belongs to another point, and is listed nowhere.
const (
	attachedTo = "drover/attached-to"
	attachedAs = "drover/attached-as"
)

const endTimeout = 10 * time.Second

// Local is a repository on this machine. It is for concurrent use.
type Local struct {
	r *chunkstore.Repository

	mu    sync.Mutex
	known map[chunkstore.PointID]Point // without Definition and Files
}

// NewLocal uses a repository that is open. It stays the caller's.
func NewLocal(r *chunkstore.Repository) *Local {
	return &Local{r: r, known: map[chunkstore.PointID]Point{}}
}

// Chunks is the repository itself.
func (l *Local) Chunks() *chunkstore.Repository { return l.r }

// mapped gives errors of the chunk store this package's sentinels.
func mapped(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, chunkstore.ErrEnded), errors.Is(err, chunkstore.ErrClosed):
		return fmt.Errorf("%w: %w", ErrEnded, err)
	case errors.Is(err, chunkstore.ErrGone):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, chunkstore.ErrDamaged):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// ParsePointID reads a point's id: 32 hexadecimal digits.
func ParsePointID(s string) (chunkstore.PointID, error) {
	var id chunkstore.PointID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%q is no id of a restore point: it has 32 hexadecimal digits", s)
	}
	return chunkstore.PointID(b), nil
}

func newPointID() (id chunkstore.PointID, err error) {
	_, err = rand.Read(id[:])
	return id, err
}

// Info tells what it is.
func (l *Local) Info(context.Context) (Info, error) {
	return Info{ID: l.r.ID(), BlockSize: l.r.BlockSize(), Encrypted: l.r.Encrypted()}, nil
}

// Points lists points without Definition and Files.
func (l *Local) Points(ctx context.Context, vmUID string) ([]Point, error) {
	if err := l.r.Refresh(ctx); err != nil {
		return nil, mapped(err)
	}
	var out []Point
	var unknown []*ledger.Point
	l.mu.Lock()
	there := map[chunkstore.PointID]bool{}
	for _, p := range l.r.Points() {
		there[chunkstore.PointID(p.GetId())] = true
		if p.GetLabels()[attachedTo] != "" || vmUID != "" && p.GetVmUid() != vmUID {
			continue
		}
		if k, ok := l.known[chunkstore.PointID(p.GetId())]; ok {
			out = append(out, withLabels(k, p))
		} else {
			unknown = append(unknown, p)
		}
	}
	maps.DeleteFunc(l.known, func(id chunkstore.PointID, _ Point) bool { return !there[id] })
	l.mu.Unlock()
	if len(unknown) > 0 {
		s, err := l.r.Begin(ctx, chunkstore.BeginOptions{Reader: true, Purpose: "list points"})
		if err != nil {
			return nil, mapped(err)
		}
		for _, p := range unknown {
			var k Point
			k, err = l.describe(ctx, s, p)
			if errors.Is(err, chunkstore.ErrDamaged) {
				// It is there, and its disks may be read: the log knows enough to show it.
				k, err = bare(p), nil
			}
			if err != nil {
				break
			}
			out = append(out, k)
		}
		if err := errors.Join(err, closeSession(ctx, s)); err != nil {
			return nil, mapped(err)
		}
	}
	slices.SortStableFunc(out, func(a, b Point) int { return a.Time.Compare(b.Time) })
	for i := range out {
		out[i].Definition, out[i].Files = nil, nil
	}
	return out, nil
}

// describe reads a point's description.
func (l *Local) describe(ctx context.Context, s *chunkstore.Session, p *ledger.Point) (Point, error) {
	b, err := s.Description(ctx, p)
	if err != nil {
		return Point{}, err
	}
	var k Point
	if err := json.Unmarshal(b, &k); err != nil {
		return Point{}, fmt.Errorf("%w: the description of point %x: %w", chunkstore.ErrDamaged, p.GetId(), err)
	}
	k.ID = hex.EncodeToString(p.GetId())
	l.remember(k)
	return withLabels(k, p), nil
}

func (l *Local) remember(p Point) {
	id, err := ParsePointID(p.ID)
	if err != nil {
		return
	}
	p.Definition, p.Files = nil, nil
	l.mu.Lock()
	l.known[id] = p
	l.mu.Unlock()
}

// withLabels takes the log's labels: those of the description are as of the commit.
func withLabels(k Point, p *ledger.Point) Point {
	k.Labels = maps.Clone(p.GetLabels())
	return k
}

// bare is what the log alone knows of a point.
func bare(p *ledger.Point) Point {
	k := Point{ID: hex.EncodeToString(p.GetId()), VMUID: p.GetVmUid(), VM: p.GetVm(), Time: p.GetTime().AsTime(), Logical: p.GetLogical(), Added: p.GetAdded()}
	for _, d := range p.GetDisks() {
		k.Disks = append(k.Disks, Disk{Name: d.GetName(), Size: d.GetSize()})
	}
	return withLabels(k, p)
}

func closeSession(ctx context.Context, s *chunkstore.Session) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	return s.Close(ctx)
}

// Begin starts to write.
func (l *Local) Begin(ctx context.Context, o SessionOptions) (Session, error) {
	return l.BeginLocal(ctx, o)
}

// BeginLocal is Begin with more to it.
func (l *Local) BeginLocal(ctx context.Context, o SessionOptions) (*LocalSession, error) {
	b := chunkstore.BeginOptions{Purpose: o.Purpose}
	for _, p := range o.Pins {
		id, err := ParsePointID(p)
		if err != nil {
			return nil, err
		}
		b.Pins = append(b.Pins, id)
	}
	s, err := l.r.Begin(ctx, b)
	if err != nil {
		return nil, mapped(err)
	}
	return &LocalSession{l: l, s: s, ctx: ctx, disks: map[string]finished{}}, nil
}

// LocalSession is a Session of Local.
type LocalSession struct {
	l   *Local
	s   *chunkstore.Session
	ctx context.Context // of Begin: values only

	mu    sync.Mutex
	disks map[string]finished
}

type finished struct {
	disk  *ledger.Disk
	stats chunkstore.Stats
}

// Chunks is the session itself.
func (s *LocalSession) Chunks() *chunkstore.Session { return s.s }

// Disk begins a disk.
func (s *LocalSession) Disk(ctx context.Context, o DiskOptions) (DiskWriter, error) {
	return s.DiskLocal(ctx, o)
}

// DiskLocal is Disk with more to it.
func (s *LocalSession) DiskLocal(ctx context.Context, o DiskOptions) (*LocalWriter, error) {
	c := chunkstore.DiskOptions{Name: o.Name, Size: o.Size, Incremental: o.Incremental}
	if o.ParentPoint != "" {
		var err error
		if c.Parent, err = s.l.disk(o.ParentPoint, o.ParentDisk); err != nil {
			return nil, err
		}
	}
	w, err := s.s.Disk(ctx, c)
	if err != nil {
		return nil, mapped(err)
	}
	return &LocalWriter{s: s, w: w, name: o.Name, size: o.Size}, nil
}

// disk finds a disk of a point in the log.
func (l *Local) disk(point, disk string) (*ledger.Disk, error) {
	id, err := ParsePointID(point)
	if err != nil {
		return nil, err
	}
	p, ok := l.r.Point(id)
	if !ok {
		return nil, fmt.Errorf("point %s: %w", point, ErrNotFound)
	}
	for _, d := range p.GetDisks() {
		if d.GetName() == disk {
			return d, nil
		}
	}
	return nil, fmt.Errorf("disk %q of point %s: %w", disk, point, ErrNotFound)
}

// Commit makes the point. Its sizes are filled in.
func (s *LocalSession) Commit(ctx context.Context, p Point) (Point, error) {
	if p.ID == "" {
		id, err := newPointID()
		if err != nil {
			return p, err
		}
		p.ID = id.String()
	}
	id, err := ParsePointID(p.ID)
	if err != nil {
		return p, err
	}
	q := &ledger.Point{Id: id[:], VmUid: p.VMUID, Vm: p.VM, Time: timestamppb.New(p.Time), Labels: p.Labels}
	// What a host read of its disk, only the host knows: blocks as in the parent never came here.
	told := p.Read
	p.Logical, p.Read, p.Lacked, p.Added = 0, 0, 0, 0
	s.mu.Lock()
	for _, d := range p.Disks {
		f, ok := s.disks[d.Name]
		if !ok || f.disk.GetSize() != d.Size {
			s.mu.Unlock()
			return p, fmt.Errorf("commit point %s: disk %q of %d bytes was not finished in this session", p.ID, d.Name, d.Size)
		}
		q.Disks = append(q.Disks, f.disk)
		p.Logical += d.Size
		p.Read += f.stats.Read
		p.Lacked += f.stats.Stored
		p.Added += f.stats.Packed + f.stats.Pages
	}
	s.mu.Unlock()
	p.Read = max(p.Read, told)
	q.Logical, q.Added = p.Logical, p.Added
	b, err := json.Marshal(p)
	if err != nil {
		return p, fmt.Errorf("commit point %s: %w", p.ID, err)
	}
	if q.Description, err = s.s.Describe(ctx, b); err != nil {
		return p, mapped(err)
	}
	if err := s.s.Commit(ctx, q); err != nil {
		return p, mapped(err)
	}
	s.l.remember(p)
	return p, nil
}

// Close ends the session.
func (s *LocalSession) Close() error { return mapped(closeSession(s.ctx, s.s)) }

// LocalWriter is a DiskWriter of Local.
type LocalWriter struct {
	s    *LocalSession
	w    *chunkstore.DiskWriter
	name string
	size int64
}

// Chunks is the writer itself. Finish is called here.
func (w *LocalWriter) Chunks() *chunkstore.DiskWriter { return w.w }

// Put stores a block.
func (w *LocalWriter) Put(ctx context.Context, block int64, data []byte) error {
	if bs := int64(w.s.l.r.BlockSize()); block < 0 || block > w.size/bs || int64(len(data)) != min(bs, w.size-block*bs) {
		return fmt.Errorf("disk %s: block %d of %d bytes does not fit %d bytes in blocks of %d", w.name, block, len(data), w.size, bs)
	}
	return mapped(w.w.Put(ctx, block, data))
}

// Zero makes blocks zeros.
func (w *LocalWriter) Zero(ctx context.Context, block, count int64) error {
	return mapped(w.w.Zero(ctx, block, count))
}

// Finish makes the disk ready for Commit.
func (w *LocalWriter) Finish(ctx context.Context) (DiskResult, error) {
	d, stats, err := w.w.Finish(ctx)
	if err != nil {
		return DiskResult{}, mapped(err)
	}
	w.s.mu.Lock()
	w.s.disks[w.name] = finished{disk: d, stats: stats}
	w.s.mu.Unlock()
	return DiskResult{Read: stats.Read, Stored: stats.Stored, Packed: stats.Packed}, nil
}
