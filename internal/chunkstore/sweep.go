package chunkstore

import (
	"context"
	"fmt"
	"time"

	"drover/internal/chunkstore/pack"
	"drover/internal/clock"
)

const (
	// sweepWindow is what is read at once, and sweepGap what is read in vain rather than asked for in two requests.
	sweepWindow = 2 << 20
	sweepGap    = 256 << 10
)

// stretch is a run of records that are read at once.
type stretch struct {
	first, last int // places in the list of records
	off         int64
	size        int
}

// stretches cuts a list of records, in their order, into windows.
func stretches(entries []pack.Entry, records []uint16) []stretch {
	var out []stretch
	for i, n := range records {
		e := &entries[n]
		off, end := int64(e.Offset), int64(e.Offset)+int64(recordSize(e))
		if k := len(out) - 1; k >= 0 && end-out[k].off <= sweepWindow && off-(out[k].off+int64(out[k].size)) <= sweepGap {
			out[k].last, out[k].size = i, int(end-out[k].off)
			continue
		}
		out = append(out, stretch{first: i, last: i, off: off, size: int(end - off)})
	}
	return out
}

// sweeper reads packs from end to end. It is not for concurrent use.
type sweeper struct {
	r   *Repository
	sc  *scratch
	buf []byte
	// whole is the pack in memory; nil: it is read.
	whole []byte
}

func (r *Repository) sweeper() *sweeper { return &sweeper{r: r, sc: r.scratch()} }

func (w *sweeper) close() { w.r.release(w.sc) }

// records reads records of a pack, which are in their order, in windows; nil: all of them. each gets a record's bytes, which it
// may use as it likes until it returns. An error of each ends it.
func (w *sweeper) records(ctx context.Context, f *footer, records []uint16, each func(number int, b []byte) error) error {
	if records == nil {
		records = make([]uint16, len(f.entries))
		for i := range records {
			records[i] = uint16(i)
		}
	}
	for _, s := range stretches(f.entries, records) {
		b, err := w.window(ctx, f, s)
		if err != nil {
			return err
		}
		for _, n := range records[s.first : s.last+1] {
			e := &f.entries[n]
			at := int(int64(e.Offset) - s.off)
			if err := each(int(n), b[at:at+recordSize(e)]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *sweeper) window(ctx context.Context, f *footer, s stretch) ([]byte, error) {
	if w.whole != nil {
		return w.whole[s.off : s.off+int64(s.size)], nil
	}
	if cap(w.buf) < s.size {
		w.buf = make([]byte, max(s.size, sweepWindow))
	}
	b := w.buf[:s.size]
	if err := w.r.store.ReadAt(ctx, packName(f.kind, f.id), b, s.off); err != nil {
		return nil, fmt.Errorf("pack %s: %w", f.id, err)
	}
	return b, nil
}

// plain opens a record and decompresses it. The result is good until the next call.
func (w *sweeper) plain(f *footer, number int, b []byte) ([]byte, error) {
	payload, err := f.open(number, b)
	if err != nil {
		return nil, err
	}
	e := &f.entries[number]
	if e.Codec == pack.Raw && int(e.Raw) == len(payload) {
		return payload, nil
	}
	plain := w.sc.room(int(e.Raw))
	if err := w.sc.decompress(plain, e.Codec, payload); err != nil {
		return nil, fmt.Errorf("pack %s, record %d: %w", f.id, number, err)
	}
	return plain, nil
}

// room is the scratch's room for a block, with what was in it.
func (sc *scratch) room(size int) []byte {
	if cap(sc.plain) < size {
		sc.plain = make([]byte, size)
	}
	return sc.plain[:size]
}

// pace keeps a sweep below a rate. The zero rate is none.
type pace struct {
	clock clock.Clock
	rate  int64 // bytes a second
	start time.Time
	done  int64
}

func newPace(c clock.Clock, rate int64) *pace { return &pace{clock: c, rate: rate, start: c.Now()} }

// spend waits until so many more bytes are due. A clock that jumps makes it wait a second at most.
func (p *pace) spend(ctx context.Context, n int64) error {
	if p.rate <= 0 {
		return ctx.Err()
	}
	p.done += n
	due := p.start.Add(time.Duration(float64(p.done) / float64(p.rate) * float64(time.Second)))
	now := p.clock.Now()
	wait := due.Sub(now)
	if wait < -time.Second || wait > time.Second {
		// Behind, or the clock was set: begin anew from here.
		p.start, p.done = now, 0
		wait = min(max(wait, 0), time.Second)
	}
	if wait <= 0 {
		return ctx.Err()
	}
	t := p.clock.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
