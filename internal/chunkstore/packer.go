package chunkstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

const (
	chunkSize = 1 << 20 // one write
	chunks    = 12      // of a packer: some are filled, some are being written
	packsBack = 3       // packs of a packer that are being made durable while the next fills
)

// packer writes records into packs, one pack after another. It is for concurrent use: callers hold its lock only to take a place, and
// seal into that place by themselves.
type packer struct {
	r    *Repository
	kind pack.Kind
	// sealed is told of each pack that is durable, in no order. It may wait.
	sealed func(sealedPack) error
	ctx    context.Context // of the session

	free  chan []byte
	slots chan struct{}

	mu      sync.Mutex
	made    int // buffers
	current *openPack
	writing map[*openPack]bool
	pending map[ID]place // records of packs that the index does not know yet
	err     error
}

// sealedPack is a pack that is durable.
type sealedPack struct {
	id      PackID
	info    *ledger.Pack
	entries []pack.Entry
}

type openPack struct {
	id         PackID
	generation int32
	sealer     *pack.Sealer
	offset     int64
	raw        int64
	entries    []pack.Entry
	fill       *chunk
	queue      chan *chunk   // to its writer; closed: the footer follows
	done       chan struct{} // closed when its writer has ended
}

// chunk is a part of a pack in memory.
type chunk struct {
	buf     []byte
	n       int
	writing sync.WaitGroup // those who seal into it
}

func newPacker(ctx context.Context, r *Repository, kind pack.Kind, sealed func(sealedPack) error) *packer {
	return &packer{r: r, kind: kind, sealed: sealed, ctx: ctx, free: make(chan []byte, chunks), slots: make(chan struct{}, packsBack+1), pending: map[ID]place{}, writing: map[*openPack]bool{}}
}

// lookup finds a record that was written lately.
func (p *packer) lookup(id ID) (place, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.pending[id]
	return at, ok
}

// forget drops what the index knows by now, or what may not serve.
func (p *packer) forget(entries []pack.Entry, id PackID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range entries {
		if p.pending[entries[i].ID].pack == id {
			delete(p.pending, entries[i].ID)
		}
	}
}

// append writes a record, unless it was written lately. It returns where it is, and its stored length (0: it was there).
func (p *packer) append(ctx context.Context, id ID, codec pack.Codec, raw int, payload []byte) (place, int, error) {
	p.mu.Lock()
	if p.err != nil {
		defer p.mu.Unlock()
		return place{}, 0, p.err
	}
	if at, ok := p.pending[id]; ok {
		p.mu.Unlock()
		return at, 0, nil
	}
	o, err := p.room(ctx, pack.HeadSize+len(payload)+pack.TagSize+pack.CRCSize)
	if err != nil {
		p.mu.Unlock()
		return place{}, 0, err
	}
	head := pack.Head{Codec: codec, Raw: uint32(raw), Stored: uint32(len(payload) + o.sealer.Overhead()), ID: id}
	number := uint32(len(o.entries))
	c := o.fill
	dst := c.buf[c.n : c.n+head.Size() : c.n+head.Size()]
	c.n += len(dst)
	c.writing.Add(1)
	o.entries = append(o.entries, pack.Entry{ID: id, Offset: uint32(o.offset), Stored: head.Stored, Raw: head.Raw, Codec: codec})
	o.offset += int64(len(dst))
	o.raw += int64(raw)
	at := place{pack: o.id, record: uint16(number)}
	p.pending[id] = at
	if o.offset >= pack.Target || len(o.entries) == pack.MaxRecords {
		p.seal()
	}
	p.mu.Unlock()

	head.Put(dst)
	o.sealer.Seal(dst[:pack.HeadSize], payload, number, dst[:pack.HeadSize])
	pack.Finish(dst)
	c.writing.Done()
	return at, len(dst), nil
}

// room makes sure that the open pack's chunk takes size more bytes. The caller holds the lock.
func (p *packer) room(ctx context.Context, size int) (*openPack, error) {
	o := p.current
	if o != nil && o.fill.n+size <= chunkSize {
		return o, nil
	}
	if o == nil {
		var err error
		if o, err = p.begin(ctx); err != nil {
			return nil, err
		}
		if o.fill.n+size <= cap(o.fill.buf) {
			return o, nil
		}
	}
	buf, err := p.buffer(ctx, size)
	if err != nil {
		return nil, err
	}
	o.queue <- o.fill // its writer takes it without our lock
	o.fill = &chunk{buf: buf}
	return o, nil
}

// buffer takes a free one, or makes one if there are few. The caller holds the lock.
func (p *packer) buffer(ctx context.Context, size int) ([]byte, error) {
	if size > chunkSize {
		return make([]byte, size), nil // a record that is larger than a chunk: it comes once in a while
	}
	select {
	case b := <-p.free:
		return b, nil
	default:
	}
	if p.made < chunks {
		p.made++
		return make([]byte, chunkSize), nil
	}
	select {
	case b := <-p.free:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.ctx.Done():
		return nil, ErrClosed
	}
}

// begin opens a pack. The caller holds the lock.
func (p *packer) begin(ctx context.Context) (*openPack, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.ctx.Done():
		return nil, ErrClosed
	}
	buf, err := p.buffer(ctx, chunkSize)
	if err != nil {
		<-p.slots
		return nil, err
	}
	o := &openPack{id: p.r.randomID(), offset: pack.HeaderSize, queue: make(chan *chunk, chunks), done: make(chan struct{}), fill: &chunk{buf: buf}}
	p.r.ledger.View(func(s *ledger.State) { o.generation = s.Generation })
	if o.sealer, err = p.r.ring.Sealer(uint32(o.generation), o.id); err != nil {
		<-p.slots
		return nil, err
	}
	h := pack.Header{Kind: p.kind, Generation: uint32(o.generation), Pack: o.id, Repository: p.r.raw}
	o.fill.n = len(h.Append(o.fill.buf[:0]))
	p.current = o
	p.writing[o] = true
	go func() { // wait is who waits for it
		defer close(o.done)
		p.fail(p.write(o))
		p.mu.Lock()
		delete(p.writing, o)
		p.mu.Unlock()
		<-p.slots
	}()
	return o, nil
}

// seal ends the open pack. The caller holds the lock.
func (p *packer) seal() {
	if o := p.current; o != nil {
		o.queue <- o.fill
		close(o.queue)
		p.current = nil
	}
}

// fail makes an error of a writer everybody's.
func (p *packer) fail(err error) {
	if err == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

// write is a pack's writer.
func (p *packer) write(o *openPack) error {
	name := packName(p.kind, o.id)
	w, err := p.r.store.Create(p.ctx, name)
	p.fail(err)
	for c := range o.queue {
		c.writing.Wait()
		if err == nil {
			_, err = w.Write(c.buf[:c.n])
			p.fail(err)
		}
		if len(c.buf) == chunkSize {
			p.free <- c.buf // it has room for all
		}
	}
	if err == nil {
		var size int64
		var tail []byte
		tail, size = pack.AppendFooter(nil, o.offset, o.sealer, o.entries)
		if _, err = w.Write(tail); err == nil {
			err = w.Commit()
		}
		if err == nil {
			return p.sealed(sealedPack{id: o.id, entries: o.entries, info: &ledger.Pack{Id: o.id[:], Meta: p.kind == pack.Meta, Size: size, Raw: o.raw, Records: int32(len(o.entries)), Generation: o.generation}})
		}
	}
	if w != nil {
		w.Abort()
	}
	return fmt.Errorf("write pack %s to %s: %w", o.id, p.r.store, err)
}

// flush seals the open pack and waits until all are durable and told. Others may append meanwhile.
func (p *packer) flush() error {
	p.mu.Lock()
	p.seal()
	p.mu.Unlock()
	p.wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// wait waits for the packs that are being written now.
func (p *packer) wait() {
	p.mu.Lock()
	writing := slices.Collect(maps.Keys(p.writing))
	p.mu.Unlock()
	for _, o := range writing {
		<-o.done
	}
}

func packName(kind pack.Kind, id PackID) string {
	dir := "data/"
	if kind == pack.Meta {
		dir = "meta/"
	}
	s := id.String()
	return dir + s[:2] + "/" + s
}

// abandon drops what is open. The session's context has ended, so that writers give up.
func (p *packer) abandon() {
	p.mu.Lock()
	if p.err == nil {
		p.err = ErrClosed
	}
	p.seal()
	p.mu.Unlock()
	p.wait()
}
