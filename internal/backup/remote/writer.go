package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/pack"
)

const (
	// batchBytes of blocks are offered at once, and sent in one message.
	batchBytes = 4 << 20
	// sameBlocks are named in one offer if they are as in the parent, and zeroRuns of zeros.
	sameBlocks = 4096
	zeroRuns   = 1024
)

// writer collects blocks that may have to be sent in batches. A batch that is full is offered, proven, compressed and sent by a goroutine of its
// own, while Put fills the next; a place in free bounds how many there are.
type writer struct {
	s      *session
	id     int32
	o      backup.DiskOptions
	bs     int64
	blocks int64
	leaves *leaves // nil: no parent
	free   chan *batch
	small  chan struct{} // offers without data on their way
	hash   sync.Pool
	work   sync.WaitGroup
	life   context.Context
	end    context.CancelCauseFunc

	mu   sync.Mutex
	cur  *batch
	same same
	read int64
}

// same are blocks that are as in the parent, and zeros: they are named and never sent.
type same struct {
	blocks []int64
	ids    []byte
	zeros  []int64
}

type batch struct {
	n       int
	blocks  []int64
	ids     []byte
	data    []byte // places of a block each; a disk's last is padded
	packed  []byte
	filling sync.WaitGroup
}

func newWriter(s *session, id int32, o backup.DiskOptions) *writer {
	w := &writer{s: s, id: id, o: o, bs: int64(s.info.GetBlockSize()), free: make(chan *batch, s.r.o.InFlight), small: make(chan struct{}, 4)}
	w.blocks = (o.Size + w.bs - 1) / w.bs
	w.hash.New = func() any { return s.hasher() }
	w.life, w.end = context.WithCancelCause(s.ctx)
	if o.ParentPoint != "" {
		w.leaves = newLeaves(w)
	}
	for range s.r.o.InFlight {
		w.free <- nil // made when it is needed
	}
	return w
}

// Put hashes the block, and keeps it until the vault has it.
func (w *writer) Put(ctx context.Context, block int64, data []byte) error {
	if err := w.fits(block, len(data)); err != nil {
		return err
	}
	if err := w.failed(); err != nil {
		return err
	}
	w.mu.Lock()
	w.read += int64(len(data))
	w.mu.Unlock()
	if isZero(data) {
		return w.Zero(ctx, block, 1)
	}
	whole := data
	if int64(len(data)) < w.bs {
		whole = make([]byte, w.bs)
		copy(whole, data)
	}
	h := w.hash.Get().(*keys.Hasher)
	id := h.Block(whole)
	w.hash.Put(h)
	if w.leaves != nil {
		parent, err := w.leaves.at(ctx, block)
		if err != nil {
			return err
		}
		if parent == id {
			if w.o.Incremental {
				return nil
			}
			return w.name(ctx, block, id)
		}
	}
	return w.keep(ctx, block, id, whole)
}

func (w *writer) fits(block int64, n int) error {
	if block < 0 || block >= w.blocks || int64(n) != min(w.bs, w.o.Size-block*w.bs) {
		return fmt.Errorf("disk %s: block %d of %d bytes does not fit %d bytes in blocks of %d", w.o.Name, block, n, w.o.Size, w.bs)
	}
	return nil
}

// Zero makes blocks zeros. That is what they are anyway unless the parent says something else.
func (w *writer) Zero(ctx context.Context, block, count int64) error {
	if block < 0 || count < 0 || count > w.blocks-block {
		return fmt.Errorf("disk %s: zeros %d+%d do not fit %d blocks", w.o.Name, block, count, w.blocks)
	}
	if !w.o.Incremental || count == 0 {
		return nil
	}
	if err := w.failed(); err != nil {
		return err
	}
	w.mu.Lock()
	if z := w.same.zeros; len(z) > 0 && z[len(z)-2]+z[len(z)-1] == block {
		z[len(z)-1] += count
	} else {
		w.same.zeros = append(z, block, count)
	}
	full := w.full()
	w.mu.Unlock()
	return w.offerSame(ctx, full)
}

// name takes a block from the parent.
func (w *writer) name(ctx context.Context, block int64, id pack.ID) error {
	w.mu.Lock()
	w.same.blocks = append(w.same.blocks, block)
	w.same.ids = append(w.same.ids, id[:]...)
	full := w.full()
	w.mu.Unlock()
	return w.offerSame(ctx, full)
}

// full hands out what is collected if it is enough for an offer. w.mu is held.
func (w *writer) full() same {
	if len(w.same.blocks) < sameBlocks && len(w.same.zeros) < 2*zeroRuns {
		return same{}
	}
	out := w.same
	w.same = same{}
	return out
}

func (w *writer) offerSame(ctx context.Context, o same) error {
	if len(o.blocks) == 0 && len(o.zeros) == 0 {
		return nil
	}
	select {
	case w.small <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.life.Done():
		return w.failed()
	}
	w.work.Go(func() {
		defer func() { <-w.small }()
		res, err := call(w.life, w.s.r, w.s.r.o.Client.Offer, &v1.VaultOfferRequest{Session: w.s.token, Disk: w.id, Blocks: o.blocks, Ids: o.ids, Zeros: o.zeros})
		if err == nil && len(res.GetMissing())+len(res.GetProve()) > 0 {
			err = fmt.Errorf("disk %s: %d blocks that are as in point %s can't be had from it: back up in full, without a parent: %w",
				w.o.Name, len(res.GetMissing())+len(res.GetProve()), w.o.ParentPoint, backup.ErrDamaged)
		}
		if err != nil {
			w.end(err)
		}
	})
	return nil
}

// keep puts a block into the batch.
func (w *writer) keep(ctx context.Context, block int64, id pack.ID, data []byte) error {
	w.mu.Lock()
	if w.cur == nil {
		// The lock is held meanwhile: whoever puts now waits for the same.
		select {
		case w.cur = <-w.free:
		case <-ctx.Done():
			w.mu.Unlock()
			return context.Cause(ctx)
		case <-w.life.Done():
			w.mu.Unlock()
			return w.failed()
		}
		if w.cur == nil {
			places := max(batchBytes/int(w.bs), 1)
			w.cur = &batch{blocks: make([]int64, places), ids: make([]byte, 32*places), data: make([]byte, places*int(w.bs))}
		}
	}
	b, i := w.cur, w.cur.n
	b.n++
	full := b.n == len(b.blocks)
	if full {
		w.cur = nil
	}
	b.filling.Add(1)
	w.mu.Unlock()
	b.blocks[i] = block
	copy(b.ids[32*i:], id[:])
	copy(b.data[i*int(w.bs):], data)
	b.filling.Done()
	if full {
		w.work.Go(func() { w.ship(b) })
	}
	return nil
}

// ship brings a batch to the vault.
func (w *writer) ship(b *batch) {
	b.filling.Wait()
	if err := w.bring(w.life, b); err != nil {
		w.end(err)
	}
	b.n = 0
	w.free <- b
}

func (w *writer) bring(ctx context.Context, b *batch) error {
	c := w.s.r.o.Client
	res, err := call(ctx, w.s.r, c.Offer, &v1.VaultOfferRequest{Session: w.s.token, Disk: w.id, Blocks: b.blocks[:b.n], Ids: b.ids[:32*b.n]})
	if err != nil {
		return fmt.Errorf("disk %s: offer blocks: %w", w.o.Name, err)
	}
	missing := res.GetMissing()
	if n := len(missing) + len(res.GetProve()); n > b.n {
		return fmt.Errorf("disk %s: the vault asks for %d blocks of an offer of %d", w.o.Name, n, b.n)
	}
	if prove := res.GetProve(); len(prove) > 0 {
		unproven, err := w.prove(ctx, b, prove)
		if err != nil {
			return fmt.Errorf("disk %s: prove blocks: %w", w.o.Name, err)
		}
		missing = append(missing, unproven...)
	}
	if len(missing) == 0 {
		return nil
	}
	req := &v1.VaultSendRequest{Session: w.s.token, Disk: w.id, Blocks: make([]*v1.VaultBlock, 0, len(missing))}
	if most := len(missing) * s2.MaxEncodedLen(int(w.bs)); len(b.packed) < most {
		b.packed = make([]byte, max(most, len(b.blocks)*s2.MaxEncodedLen(int(w.bs))))
	}
	room := b.packed
	for _, i := range missing {
		if i < 0 || int(i) >= b.n {
			return fmt.Errorf("disk %s: the vault asks for block %d of an offer of %d", w.o.Name, i, b.n)
		}
		data := b.data[int64(i)*w.bs:][:w.bs]
		block := &v1.VaultBlock{Block: b.blocks[i], Id: b.ids[32*i:][:32], RawLength: int32(len(data)), Data: data}
		if packed := s2.Encode(room, data); len(packed) < len(data)-len(data)/32 {
			block.Codec, block.Data = 1, packed
			room = room[len(packed):]
		}
		req.Blocks = append(req.Blocks, block)
	}
	if _, err := call(ctx, w.s.r, c.Send, req); err != nil {
		return fmt.Errorf("disk %s: send blocks: %w", w.o.Name, err)
	}
	return nil
}

// prove shows that blocks are here. It returns those that have to be sent after all.
func (w *writer) prove(ctx context.Context, b *batch, which []int32) ([]int32, error) {
	h := w.s.prover()
	req := &v1.VaultProveRequest{Session: w.s.token, Disk: w.id}
	for _, i := range which {
		if i < 0 || int(i) >= b.n {
			return nil, fmt.Errorf("the vault asks for block %d of an offer of %d", i, b.n)
		}
		proof := h.Block(b.data[int64(i)*w.bs:][:w.bs])
		req.Blocks = append(req.Blocks, b.blocks[i])
		req.Ids = append(req.Ids, b.ids[32*i:][:32]...)
		req.Proofs = append(req.Proofs, proof[:]...)
	}
	res, err := call(ctx, w.s.r, w.s.r.o.Client.Prove, req)
	if err != nil {
		return nil, err
	}
	if n := len(res.GetMissing()); n > len(which) {
		return nil, fmt.Errorf("the vault asks for %d blocks of %d that were proven", n, len(which))
	}
	out := make([]int32, 0, len(res.GetMissing()))
	for _, i := range res.GetMissing() {
		if i < 0 || int(i) >= len(which) {
			return nil, fmt.Errorf("the vault asks for proof %d of %d", i, len(which))
		}
		out = append(out, which[i])
	}
	return out, nil
}

// Finish sends the rest and waits until the vault has all.
func (w *writer) Finish(ctx context.Context) (backup.DiskResult, error) {
	stop := context.AfterFunc(ctx, func() { w.end(context.Cause(ctx)) })
	defer stop()
	w.mu.Lock()
	rest, cur := w.same, w.cur
	w.same, w.cur = same{}, nil
	w.mu.Unlock()
	err := w.offerSame(ctx, rest)
	if cur != nil {
		w.work.Go(func() { w.ship(cur) })
	}
	w.work.Wait()
	if err := errors.Join(err, w.failed()); err != nil {
		return backup.DiskResult{}, err
	}
	res, err := call(ctx, w.s.r, w.s.r.o.Client.Finish, &v1.VaultFinishRequest{Session: w.s.token, Disk: w.id})
	if err != nil {
		return backup.DiskResult{}, fmt.Errorf("disk %s: finish: %w", w.o.Name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return backup.DiskResult{Read: w.read, Stored: res.GetStored(), Packed: res.GetPacked()}, nil
}

// failed is why the writer is of no use any more.
func (w *writer) failed() error {
	if err := w.s.ended(); err != nil {
		return err
	}
	return context.Cause(w.life)
}

var zeros [4096]byte

func isZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}
