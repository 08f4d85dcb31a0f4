package chunkstore

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"

	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

// RewriteOptions are for Rewrite.
type RewriteOptions struct {
	// Limit is how many bytes of packs are rewritten at most; 0: all.
	Limit int64
	Rate  int64 // bytes a second; 0: as fast as it goes
	// Level of zstd, from 1 to 4 (zstd.EncoderLevel); 0: 2.
	Level int
	// Workers is how many packs are compressed at once; 0: 1, which leaves the rest of the machine to others.
	Workers int
}

// Rewrite compresses packs anew that were written with the fast codec, oldest first: for idle time. What it replaces goes away
// with the next collection. It may be cut off at any moment, and goes on where it was.
func (r *Repository) Rewrite(ctx context.Context, o RewriteOptions) (MoveResult, error) {
	if err := r.Refresh(ctx); err != nil {
		return MoveResult{}, err
	}
	var loads []load
	var seen int64
	r.ledger.View(func(s *ledger.State) {
		seen = s.Seq
		young := youngest(s)
		for id, p := range s.Packs {
			if p.Live() && !p.Meta && !p.Dense && p.Added < young {
				loads = append(loads, load{id: id, state: p})
			}
		}
	})
	slices.SortFunc(loads, func(a, b load) int {
		return cmp.Or(cmp.Compare(a.state.Added, b.state.Added), slices.Compare(a.id[:], b.id[:]))
	})
	if o.Limit > 0 {
		size := int64(0)
		for i := range loads {
			if size += loads[i].state.Size; size >= o.Limit {
				loads = loads[:i+1]
				break
			}
		}
	}
	return r.move(ctx, moveOptions{purpose: "rewrite", seen: seen, rate: o.Rate, dense: newDense(o.Level, r.config.BlockSize), workers: o.Workers}, loads)
}

// youngest is the SEQ from which on packs may be of a session that is still writing: nothing of it has come to be walked.
func youngest(s *ledger.State) int64 {
	young := s.Seq + 1
	for _, o := range s.Sessions {
		if !o.Reader {
			young = min(young, o.Began)
		}
	}
	return young
}

// dense makes encoders of one level.
type dense struct {
	level  zstd.EncoderLevel
	window int
	free   sync.Pool
}

func newDense(level, blockSize int) *dense {
	if level <= 0 {
		level = int(zstd.SpeedDefault)
	}
	return &dense{level: zstd.EncoderLevel(min(level, int(zstd.SpeedBestCompression))), window: blockSize}
}

func (d *dense) take() *denser {
	if e, ok := d.free.Get().(*denser); ok {
		return e
	}
	return &denser{dense: d}
}

func (d *dense) put(e *denser) { d.free.Put(e) }

// denser compresses one block at a time.
type denser struct {
	dense *dense
	enc   *zstd.Encoder
	out   []byte
}

// squeeze compresses a payload anew. What does not get smaller by it stays as it is.
func (d *denser) squeeze(sc *scratch, e *pack.Entry, payload []byte) (pack.Codec, []byte, error) {
	plain := payload
	if e.Codec != pack.Raw {
		plain = sc.room(int(e.Raw))
		if err := sc.decompress(plain, e.Codec, payload); err != nil {
			return 0, nil, err
		}
	}
	if d.enc == nil {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(d.dense.level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
			zstd.WithSingleSegment(true), zstd.WithWindowSize(d.dense.window), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return 0, nil, err
		}
		d.enc = enc
	}
	d.out = d.enc.EncodeAll(plain, d.out[:0])
	if len(d.out) >= len(payload) {
		return e.Codec, payload, nil
	}
	return pack.Zstd, d.out, nil
}
