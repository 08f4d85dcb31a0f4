package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"drover/bench/report"
	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/pack"
)

// rates are this machine's, of all its processors, in bytes of disk a second.
type rates struct{ copy, hash, pack, unpack float64 }

const sample = 192 << 20

// limits measures what no program of this design can beat here: copying, hashing, packing and unpacking blocks of the images that lie in memory.
func (b *bench) limits() error {
	f, err := os.Open(b.image("build", 1))
	if err != nil {
		return err
	}
	defer f.Close()
	blocks := make([]byte, 0, sample)
	p := make([]byte, blockSize)
	zero := make([]byte, blockSize)
	for len(blocks) < sample {
		if _, err := io.ReadFull(f, p); err != nil {
			return err
		}
		if !bytes.Equal(p, zero) {
			blocks = append(blocks, p...)
		}
	}
	type kit struct {
		hasher *keys.Hasher
		packer pack.Compressor
		opener pack.Decoder
		buf    []byte
	}
	stored := make([][]byte, sample/blockSize)
	codecs := make([]pack.Codec, len(stored))
	var mu sync.Mutex
	var failed error
	run := func(do func(k *kit, i int, block []byte) error) float64 {
		best := 0.0
		for range 3 {
			var wg sync.WaitGroup
			began := time.Now()
			for w := range 2 {
				wg.Go(func() {
					k := &kit{hasher: keys.NewHasher(keys.BLAKE3, make([]byte, 32)), buf: make([]byte, blockSize)}
					for i := w; i < len(stored); i += 2 {
						if err := do(k, i, blocks[i*blockSize:(i+1)*blockSize]); err != nil {
							mu.Lock()
							failed = errors.Join(failed, err)
							mu.Unlock()
							return
						}
					}
				})
			}
			wg.Wait()
			best = max(best, sample/time.Since(began).Seconds())
		}
		return best
	}
	r := &rates{}
	r.copy = run(func(k *kit, _ int, block []byte) error { copy(k.buf, block); return nil })
	r.hash = run(func(k *kit, _ int, block []byte) error { k.hasher.Block(block); return nil })
	r.pack = run(func(k *kit, i int, block []byte) error {
		codec, payload := k.packer.Compress(block)
		codecs[i], stored[i] = codec, append(stored[i][:0], payload...)
		return nil
	})
	r.unpack = run(func(k *kit, i int, _ []byte) error { return k.opener.Decode(k.buf, codecs[i], stored[i]) })
	if failed != nil {
		return failed
	}
	b.rates = r
	for _, x := range []struct {
		name string
		rate float64
	}{{"copy", r.copy}, {"hash (BLAKE3)", r.hash}, {"pack (fast codec)", r.pack}, {"unpack (fast codec)", r.unpack}} {
		b.rep.Add(report.Row{Name: "limit: " + x.name + ", two threads", Unit: "GB/s", Ours: x.rate / 1e9, Better: report.More})
	}
	return nil
}

// limit is how many seconds a step takes if nothing but the work itself takes time.
func (b *bench) limit(step string) *float64 {
	if b.rates == nil || b.data == nil {
		return nil
	}
	d, r := b.data, b.rates
	read := float64(d.allocated) * (1/r.copy + 1/r.hash)
	var s float64
	switch step {
	case "first":
		s = read + float64(d.distinct)/r.pack
	case "second":
		s = read + float64(d.changed)/r.pack
	case "bitmap":
		s = float64(d.changed) * (1/r.copy + 1/r.hash + 1/r.pack)
	case "restore":
		s = float64(d.web) * (1/r.unpack + 1/r.hash + 1/r.copy)
	case "verify":
		s = float64(d.distinct+d.changed) * (1/r.unpack + 1/r.hash)
	default:
		return nil
	}
	return report.Ptr(s)
}
