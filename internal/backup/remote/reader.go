package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/pack"
	"drover/internal/rpc"
)

// extentWindow is how much of a disk is asked for at once.
const extentWindow = 16 << 30

// maxDisk bounds what a vault may say of a disk's size, in bytes.
const maxDisk = 1 << 60

// pointReader reads a point in a session that is opened again when the vault has lost it: a VM that runs from a point outlives its vault's restart.
type pointReader struct {
	r     *Repository
	info  *v1.VaultInfoResponse
	id    string
	ctx   context.Context // of OpenPoint: its life
	stop  context.CancelFunc
	work  sync.WaitGroup
	point backup.Point
	files map[string][]byte
	tools sync.Pool // *tools

	mu    sync.Mutex
	token string
}

// OpenPoint starts to read a point. ctx bounds the reader's life.
func (r *Repository) OpenPoint(ctx context.Context, id string) (backup.PointReader, error) {
	info, err := r.about(ctx)
	if err != nil {
		return nil, err
	}
	p := &pointReader{r: r, info: info, id: id, ctx: ctx}
	p.tools.New = func() any { return &tools{hasher: keys.NewHasher(info.GetHash(), info.GetIdKey())} }
	res, err := p.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("open point %s of repository %s: %w", id, r.o.Repository, err)
	}
	p.files = res.GetFiles()
	if err := json.Unmarshal(res.GetPoint(), &p.point); err != nil {
		return nil, errors.Join(fmt.Errorf("open point %s of repository %s: what the vault answered: %w", id, r.o.Repository, err), r.endSession(ctx, p.token))
	}
	for _, d := range p.point.Disks {
		if d.Size < 0 || d.Size > maxDisk {
			return nil, errors.Join(fmt.Errorf("open point %s of repository %s: %w: disk %q has %d bytes", id, r.o.Repository, backup.ErrDamaged, d.Name, d.Size), r.endSession(ctx, p.token))
		}
	}
	life, stop := context.WithCancel(ctx)
	p.stop = stop
	p.work.Go(func() { r.touch(life, p.session) })
	return p, nil
}

func (p *pointReader) open(ctx context.Context) (*v1.VaultOpenPointResponse, error) {
	res, err := call(ctx, p.r, p.r.o.Client.OpenPoint, &v1.VaultOpenPointRequest{Repository: p.r.o.Repository, Grant: p.r.o.Grant, Point: p.id})
	if err == nil {
		p.token = res.GetSession()
	}
	return res, err
}

func (p *pointReader) session() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.token
}

// read asks in the session, and opens it anew if it is gone. A vault that has just started knows no grants until its manager has come by: that is
// waited for like one that does not answer.
func read[Res any](ctx context.Context, p *pointReader, f func(token string) (Res, error)) (Res, error) {
	return again(ctx, p.r, func() (Res, error) {
		token := p.session()
		res, err := f(token)
		if reason(err) != ReasonEnded {
			return res, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.token == token {
			// One try only: the loop around this tries again.
			res, oerr := p.r.o.Client.OpenPoint(ctx, &v1.VaultOpenPointRequest{Repository: p.r.o.Repository, Grant: p.r.o.Grant, Point: p.id})
			if oerr != nil {
				var none Res
				if r := reason(oerr); r == ReasonGrant || r == ReasonClosed {
					return none, fmt.Errorf("the vault has started anew and waits for its manager: %s", oerr)
				}
				return none, oerr
			}
			p.token = res.GetSession()
			p.r.o.Log.Info("point opened again", "repository", p.r.o.Repository, "point", p.id)
		}
		var none Res
		return none, errAgain
	})
}

var errAgain = errors.New("the session was opened again")

func reason(err error) string {
	if err == nil {
		return ""
	}
	return rpc.Detail(rpc.FromError(err)).GetReason()
}

func (p *pointReader) Point() backup.Point { return p.point }

// Files are what was put beside the point later: results of tests.
func (p *pointReader) Files() map[string][]byte { return p.files }

func (p *pointReader) Close() error {
	p.stop()
	p.work.Wait()
	return p.r.endSession(p.ctx, p.session())
}

func (p *pointReader) Disk(_ context.Context, name string) (backup.DiskReader, error) {
	for _, d := range p.point.Disks {
		if d.Name == name {
			return &diskReader{p: p, name: name, size: d.Size, bs: int64(p.info.GetBlockSize())}, nil
		}
	}
	return nil, fmt.Errorf("disk %s of point %s: %w", name, p.id, backup.ErrNotFound)
}

type diskReader struct {
	p    *pointReader
	name string
	size int64
	bs   int64
}

func (d *diskReader) Size() int64  { return d.size }
func (d *diskReader) Close() error { return nil }

func (d *diskReader) Extents(ctx context.Context, off, n int64) ([]backup.Extent, error) {
	var out []backup.Extent
	for end := min(off+n, d.size); off < end; {
		part := min(extentWindow, end-off)
		res, err := read(ctx, d.p, func(token string) (*v1.VaultExtentsResponse, error) {
			return d.p.r.o.Client.Extents(ctx, &v1.VaultExtentsRequest{Session: token, Disk: d.name, Offset: off, Length: part})
		})
		if err != nil {
			return nil, fmt.Errorf("disk %s: extents from %d: %w", d.name, off, err)
		}
		at := off
		for _, e := range res.GetExtents() {
			if e.GetOffset() != at || e.GetLength() <= 0 || e.GetLength() > off+part-at {
				return nil, fmt.Errorf("disk %s: extents from %d: the vault's answer has a gap", d.name, off)
			}
			at += e.GetLength()
			out = join(out, backup.Extent{Offset: e.GetOffset(), Length: e.GetLength(), Zero: e.GetZero()})
		}
		if at == off {
			return nil, fmt.Errorf("disk %s: extents from %d: no answer", d.name, off)
		}
		off = at // the vault may tell less than was asked for
	}
	return out, nil
}

func join(list []backup.Extent, e backup.Extent) []backup.Extent {
	if k := len(list); k > 0 && list[k-1].Zero == e.Zero && list[k-1].Offset+list[k-1].Length == e.Offset {
		list[k-1].Length += e.Length
		return list
	}
	return append(list, e)
}

func (d *diskReader) Changed(ctx context.Context, point, disk string) ([]backup.Extent, error) {
	var out []backup.Extent
	for off := int64(0); off < d.size; off += extentWindow {
		res, err := read(ctx, d.p, func(token string) (*v1.VaultExtentsResponse, error) {
			return d.p.r.o.Client.Changed(ctx, &v1.VaultChangedRequest{Session: token, Disk: d.name, SincePoint: point, SinceDisk: disk, Offset: off, Length: min(extentWindow, d.size-off)})
		})
		if err != nil {
			return nil, fmt.Errorf("disk %s: changes from %d: %w", d.name, off, err)
		}
		at, end := off, off+min(extentWindow, d.size-off)
		for _, e := range res.GetExtents() {
			if e.GetOffset() < at || e.GetLength() <= 0 || e.GetLength() > end-e.GetOffset() {
				return nil, fmt.Errorf("disk %s: changes from %d: %w: the vault's answer is out of order", d.name, off, backup.ErrDamaged)
			}
			at = e.GetOffset() + e.GetLength()
			out = join(out, backup.Extent{Offset: e.GetOffset(), Length: e.GetLength(), Zero: e.GetZero()})
		}
	}
	return out, nil
}

// ReadAt reads the blocks around the range.
func (d *diskReader) ReadAt(ctx context.Context, p []byte, off int64) error {
	clear(p)
	n := min(int64(len(p)), d.size-off)
	if n <= 0 {
		return nil
	}
	return d.Bulk(ctx, []backup.Extent{{Offset: off, Length: n}}, func(at int64, data []byte) error {
		copy(p[at-off:], data)
		return nil
	})
}

// Bulk asks for batches of blocks, several on their way at once.
func (d *diskReader) Bulk(ctx context.Context, parts []backup.Extent, each func(off int64, data []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	most := max(batchBytes/d.bs, 1)
	places := make(chan struct{}, d.p.r.o.InFlight)
	var work sync.WaitGroup
	var runs []int64
	var count int64
	var list []backup.Extent // of the batch: what each is wanted of
	ask := func() bool {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return false
		}
		batch, wanted := runs, list
		work.Go(func() {
			defer func() { <-places }()
			if err := d.fetch(ctx, batch, wanted, each); err != nil {
				cancel(err)
			}
		})
		runs, list, count = nil, nil, 0
		return true
	}
	last := int64(-1)
gather:
	for _, e := range parts {
		e.Length = min(e.Length, d.size-e.Offset)
		if e.Length <= 0 {
			continue
		}
		list = append(list, e)
		end := (e.Offset + e.Length + d.bs - 1) / d.bs
		for b := e.Offset / d.bs; b < end; {
			if b == last && count > 0 {
				b++ // two parts in one block, which is asked for already
				continue
			}
			n := min(end-b, most-count)
			runs = append(runs, b, n)
			count += n
			b += n
			last = b - 1
			if count == most {
				if !ask() {
					break gather
				}
				if rest := b * d.bs; rest < e.Offset+e.Length {
					list = append(list, e)
				}
			}
		}
	}
	if count > 0 {
		ask()
	}
	work.Wait()
	return context.Cause(ctx)
}

// fetch reads runs of blocks, and hands over what of them lies in the parts that are wanted.
func (d *diskReader) fetch(ctx context.Context, runs []int64, wanted []backup.Extent, each func(off int64, data []byte) error) error {
	res, err := read(ctx, d.p, func(token string) (*v1.VaultBlocksResponse, error) {
		return d.p.r.o.Client.Blocks(ctx, &v1.VaultBlocksRequest{Session: token, Disk: d.name, Runs: runs})
	})
	if err != nil {
		return fmt.Errorf("disk %s of point %s: blocks from %d: %w", d.name, d.p.id, runs[0], err)
	}
	got := make(map[int64]*v1.VaultBlock, len(res.GetBlocks()))
	for _, b := range res.GetBlocks() {
		got[b.GetBlock()] = b
	}
	t := d.p.tools.Get().(*tools)
	defer d.p.tools.Put(t)
	for ; len(runs) > 0; runs = runs[2:] {
		for b := runs[0]; b < runs[0]+runs[1]; b++ {
			data := t.zeros(d.bs)
			if x := got[b]; x != nil {
				if data, err = t.open(x, int(d.bs)); err != nil {
					return fmt.Errorf("disk %s of point %s: block at %d: %w", d.name, d.p.id, b*d.bs, err)
				}
			}
			from, to := b*d.bs, min((b+1)*d.bs, d.size)
			for _, e := range wanted {
				lo, hi := max(e.Offset, from), min(e.Offset+e.Length, to)
				if lo >= hi {
					continue
				}
				if err := each(lo, data[lo-from:hi-from]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// tools unpack and check blocks; one goroutine has them at a time.
type tools struct {
	hasher  *keys.Hasher
	decoder pack.Decoder
	plain   []byte
	none    []byte
}

func (t *tools) zeros(n int64) []byte {
	if int64(len(t.none)) != n {
		t.none = make([]byte, n)
	}
	return t.none
}

// open returns a block's bytes, good until the next call.
func (t *tools) open(b *v1.VaultBlock, size int) ([]byte, error) {
	if b.GetRawLength() != int32(size) || len(b.GetId()) != 32 || b.GetCodec() < 0 || b.GetCodec() > 255 {
		return nil, fmt.Errorf("%w: the vault sent a block of %d bytes, not %d, with an id of %d", backup.ErrDamaged, b.GetRawLength(), size, len(b.GetId()))
	}
	if len(t.plain) != size {
		t.plain = make([]byte, size)
	}
	if err := t.decoder.Decode(t.plain, pack.Codec(b.GetCodec()), b.GetData()); err != nil {
		return nil, fmt.Errorf("%w: %w", backup.ErrDamaged, err)
	}
	if t.hasher.Block(t.plain) != pack.ID(b.GetId()) {
		return nil, fmt.Errorf("%w: a block's bytes are not those of its id %x", backup.ErrDamaged, b.GetId())
	}
	return t.plain, nil
}
