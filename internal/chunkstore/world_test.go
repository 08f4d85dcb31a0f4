package chunkstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"drover/internal/blob"
	cs "drover/internal/chunkstore"
	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/ledger"
	"drover/internal/vfs/faultfs"
)

// failer is what testing.T and rapid.T have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
}

const (
	blockSize = 4096
	letters   = 60
	where     = "/srv/repository"
)

// alphabet has the blocks that disks of tests are made of: block 0 is zeros, some compress, most do not.
var alphabet = func() [letters][]byte {
	var out [letters][]byte
	r := rand.NewChaCha8([32]byte{1})
	for i := range out {
		out[i] = make([]byte, blockSize)
		switch {
		case i == 0:
		case i%4 == 0:
			copy(out[i], bytes.Repeat([]byte(fmt.Sprintf("letter %d ", i)), 400))
		default:
			r.Read(out[i])
		}
	}
	return out
}()

// text is a disk as the model has it: a letter for each block, and its size in bytes.
type text struct {
	letters []byte
	size    int64
}

func (x text) bytes() []byte {
	out := make([]byte, 0, len(x.letters)*blockSize)
	for _, l := range x.letters {
		out = append(out, alphabet[l]...)
	}
	return out[:x.size]
}

func randomText(r *rand.Rand) text {
	n := 1 + r.IntN(30)
	if r.IntN(8) == 0 {
		n = 250 + r.IntN(300) // more than a leaf
	}
	x := text{letters: make([]byte, n)}
	for i := range x.letters {
		if r.IntN(3) > 0 {
			x.letters[i] = byte(r.IntN(letters))
		}
	}
	x.size = int64(n)*blockSize - int64(r.IntN(2)*r.IntN(blockSize))
	return x
}

// mutate changes some blocks, and now and then the size. It returns the blocks that a bitmap would show.
func (x text) mutate(r *rand.Rand) (text, map[int]bool) {
	y, changed := text{letters: slices.Clone(x.letters), size: x.size}, map[int]bool{}
	if r.IntN(5) == 0 {
		// The last block changes with the size, if it was or becomes a part.
		changed[len(y.letters)-1] = true
		if n := r.IntN(10); r.IntN(2) == 0 {
			for range n {
				changed[len(y.letters)] = true
				y.letters = append(y.letters, byte(r.IntN(letters)))
			}
		} else if n < len(y.letters) {
			y.letters = y.letters[:len(y.letters)-n]
			changed[len(y.letters)-1] = true
		}
		y.size = int64(len(y.letters))*blockSize - int64(r.IntN(2)*r.IntN(blockSize))
	}
	for range r.IntN(6) {
		i := r.IntN(len(y.letters))
		y.letters[i] = byte(r.IntN(letters))
		changed[i] = true
	}
	return y, changed
}

// state is what the model knows of a point.
type state int

const (
	live   state = iota
	maybe        // its commit was not answered
	fading       // its forget was not answered
	gone
)

type point struct {
	vm    string
	disks []text
	text  string // description
	state state
}

// world is a repository, several programs that use it, and what it must hold.
type world struct {
	t      failer
	ctx    context.Context
	r      *rand.Rand
	fs     *faultfs.FS
	master []byte
	points map[cs.PointID]*point
	order  []cs.PointID

	shared bool // others make points of their own

	mu     sync.Mutex
	faults int // that were injected so far
	decide func(blob.Verb, string) blob.Outcome
}

// newWorld makes an empty repository.
func newWorld(ctx context.Context, t failer, seed uint64) *world {
	w := &world{t: t, ctx: ctx, r: rand.New(rand.NewPCG(seed, 77)), fs: faultfs.New(), points: map[cs.PointID]*point{}}
	o := cs.CreateOptions{BlockSize: blockSize, Unencrypted: w.r.IntN(2) == 0, Open: cs.OpenOptions{NewIndex: cs.MemoryIndex}}
	if w.r.IntN(4) == 0 {
		o.Hash = keys.SHA256
	}
	o.Parity = w.r.IntN(4) == 0
	r, _, err := cs.Create(ctx, w.store(), o)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	w.master = r.Master()
	if err := r.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	return w
}

// fork is the part of another who makes points of his own in the same repository.
func (w *world) fork(seed uint64) *world {
	return &world{t: w.t, ctx: w.ctx, r: rand.New(rand.NewPCG(seed, 78)), fs: w.fs, master: w.master, points: map[cs.PointID]*point{}, shared: true}
}

// store opens the directory, with the world's faults before it.
func (w *world) store() blob.Store {
	d, err := blob.OpenDir(w.fs, where)
	if err != nil {
		w.t.Fatalf("open the directory: %v", err)
	}
	return blob.NewFault(d, func(verb blob.Verb, name string) blob.Outcome {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.decide == nil {
			return blob.Outcome{}
		}
		o := w.decide(verb, name)
		if o.Err != nil || o.Change != nil {
			w.faults++
		}
		return o
	})
}

func (w *world) injected() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.faults
	if w.fs.Crashed() {
		n++
	}
	return n
}

func (w *world) setFaults(decide func(blob.Verb, string) blob.Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.decide = decide
}

// open starts a program.
func (w *world) open() (*cs.Repository, error) {
	return cs.Open(w.ctx, w.store(), cs.OpenOptions{Master: w.master, NewIndex: cs.MemoryIndex})
}

func (w *world) mustOpen() *cs.Repository {
	w.t.Helper()
	r, err := w.open()
	if err != nil {
		w.t.Fatalf("open the repository: %v", err)
	}
	return r
}

// errOK reports whether an operation may fail: only if something was done to it since.
func (w *world) errOK(what string, err error, before int, allowed ...error) {
	w.t.Helper()
	if err == nil || w.injected() > before {
		return
	}
	for _, a := range allowed {
		if errors.Is(err, a) {
			return
		}
	}
	w.t.Fatalf("%s failed, and nothing had happened: %v", what, err)
}

// latest is a live point of a VM, the last; ok is false if it has none.
func (w *world) latest(vm string) (id cs.PointID, p *point, ok bool) {
	for _, k := range slices.Backward(w.order) {
		if q := w.points[k]; q.vm == vm && q.state == live {
			return k, q, true
		}
	}
	return id, nil, false
}

// write writes a disk: x, of which changed differs from the parent (nil: no parent).
func (w *world) write(s *cs.Session, name string, x text, parent *ledger.Disk, changed map[int]bool) (*ledger.Disk, error) {
	o := cs.DiskOptions{Name: name, Size: x.size, Parent: parent, Incremental: parent != nil && changed != nil && w.r.IntN(2) == 0}
	d, err := s.Disk(w.ctx, o)
	if err != nil {
		return nil, err
	}
	for _, i := range w.r.Perm(len(x.letters)) {
		switch {
		case o.Incremental && !changed[i], x.letters[i] == 0 && !o.Incremental && w.r.IntN(2) == 0:
			continue
		case x.letters[i] == 0 && w.r.IntN(2) == 0:
			err = d.Zero(w.ctx, int64(i), 1)
		default:
			err = d.Put(w.ctx, int64(i), alphabet[x.letters[i]][:min(blockSize, x.size-int64(i)*blockSize)])
		}
		if err != nil {
			return nil, err
		}
	}
	out, _, err := d.Finish(w.ctx)
	return out, err
}

// commit makes a point and notes it.
func (w *world) commit(s *cs.Session, vm string, texts []text, disks []*ledger.Disk) (cs.PointID, error) {
	var id cs.PointID
	for i := range id {
		id[i] = byte(w.r.Uint32())
	}
	p := &point{vm: vm, disks: texts, text: fmt.Sprintf(`{"vm":%q,"n":%d}`, vm, len(w.order)), state: gone}
	place, err := s.Describe(w.ctx, []byte(p.text))
	if err != nil {
		return id, err
	}
	w.points[id] = p
	w.order = append(w.order, id)
	err = s.Commit(w.ctx, &ledger.Point{Id: id[:], Vm: vm, VmUid: vm, Disks: disks, Description: place, Labels: map[string]string{"n": fmt.Sprint(len(w.order))}})
	switch {
	case err == nil:
		p.state = live
	case errors.Is(err, cs.ErrEnded):
	default:
		p.state = maybe
	}
	return id, err
}

// backup makes a point of a VM in a session of its own.
func (w *world) backup(r *cs.Repository, vm string) error {
	o := cs.BeginOptions{Purpose: "backup of " + vm}
	parentID, parent, ok := w.latest(vm)
	if ok {
		o.Pins = []cs.PointID{parentID}
	}
	s, err := r.Begin(w.ctx, o)
	if err != nil {
		return err
	}
	defer s.Close(w.ctx)
	texts, disks, err := w.disks(r, s, parentID, parent)
	if err != nil {
		return err
	}
	_, err = w.commit(s, vm, texts, disks)
	return err
}

// disks writes the next disks of a VM.
func (w *world) disks(r *cs.Repository, s *cs.Session, parentID cs.PointID, parent *point) (texts []text, disks []*ledger.Disk, err error) {
	n := 1 + w.r.IntN(2)
	var lp *ledger.Point
	if parent != nil {
		lp, _ = r.Point(parentID)
	}
	for i := range n {
		x, changed, ld := randomText(w.r), map[int]bool(nil), (*ledger.Disk)(nil)
		if lp != nil && i < len(parent.disks) {
			x, changed = parent.disks[i].mutate(w.r)
			ld = lp.Disks[i]
		}
		d, err := w.write(s, fmt.Sprintf("vd%c", 'a'+i), x, ld, changed)
		if err != nil {
			return nil, nil, err
		}
		texts, disks = append(texts, x), append(disks, d)
	}
	return texts, disks, nil
}

// settle learns from the log what became of operations without an answer, and compares the rest.
func (w *world) settle(r *cs.Repository) {
	w.t.Helper()
	there := map[cs.PointID]bool{}
	for _, p := range r.Points() {
		id := cs.PointID(p.Id)
		there[id] = true
		if w.points[id] == nil && !w.shared {
			w.t.Fatalf("a point that nobody made: %s", id)
		}
	}
	for id, p := range w.points {
		switch {
		case p.state == live && !there[id]:
			w.t.Fatalf("point %s was acknowledged, and is lost", id)
		case p.state == gone && there[id]:
			w.t.Fatalf("point %s was refused or forgotten, and is there", id)
		case there[id]:
			p.state = live
		default:
			p.state = gone
		}
	}
}

// verify reads all points and compares their bytes.
func (w *world) verify(r *cs.Repository) {
	w.t.Helper()
	if err := r.Refresh(w.ctx); err != nil {
		w.t.Fatalf("refresh: %v", err)
	}
	w.settle(r)
	for id, p := range w.points {
		if p.state != live {
			continue
		}
		s, err := r.Begin(w.ctx, cs.BeginOptions{Reader: true, Pins: []cs.PointID{id}, Purpose: "verify"})
		if err != nil {
			w.t.Fatalf("begin to read %s: %v", id, err)
		}
		if err := w.read(r, s, id, p); err != nil {
			w.t.Fatalf("point %s: %v", id, err)
		}
		if err := s.Close(w.ctx); err != nil {
			w.t.Fatalf("end reading: %v", err)
		}
	}
}

type sink []byte

func (s sink) WriteAt(p []byte, off int64) (int, error) { return copy(s[off:], p), nil }

// read compares a point. Wrong bytes are the test's end; that it can't be read is returned.
func (w *world) read(r *cs.Repository, s *cs.Session, id cs.PointID, p *point) error {
	w.t.Helper()
	lp, ok := r.Point(id)
	if !ok {
		return fmt.Errorf("%w: not in the list", cs.ErrGone)
	}
	return w.readPoint(s, lp, p)
}

func (w *world) readPoint(s *cs.Session, lp *ledger.Point, p *point) error {
	w.t.Helper()
	got, err := s.Description(w.ctx, lp)
	if err != nil {
		return fmt.Errorf("description: %w", err)
	}
	if string(got) != p.text {
		w.t.Fatalf("description %q, want %q", got, p.text)
	}
	if len(lp.Disks) != len(p.disks) {
		w.t.Fatalf("%d disks, want %d", len(lp.Disks), len(p.disks))
	}
	for i, x := range p.disks {
		d, err := s.Open(w.ctx, lp.Disks[i])
		if err != nil {
			return err
		}
		want := x.bytes()
		if d.Size() != x.size {
			w.t.Fatalf("disk %d has %d bytes, want %d", i, d.Size(), x.size)
		}
		buf := make(sink, len(want))
		if err := d.Restore(w.ctx, buf, cs.RestoreOptions{}); err != nil {
			return err
		}
		if !bytes.Equal(buf, want) {
			w.t.Fatalf("disk %d: other bytes were restored, the first at %d", i, differs(buf, want))
		}
		off := w.r.Int64N(x.size)
		part := make([]byte, min(x.size-off, 10000))
		if err := d.ReadAt(w.ctx, part, off); err != nil {
			return err
		}
		if !bytes.Equal(part, want[off:off+int64(len(part))]) {
			w.t.Fatalf("disk %d: other bytes were read at %d", i, off)
		}
		extents, err := d.Extents(w.ctx, 0, x.size)
		if err != nil {
			return err
		}
		at := int64(0)
		for _, e := range extents {
			if e.Offset != at || e.Zero && len(bytes.Trim(want[at:at+e.Length], "\x00")) > 0 {
				w.t.Fatalf("disk %d: wrong extent %+v", i, e)
			}
			at += e.Length
		}
		if at != x.size {
			w.t.Fatalf("disk %d: the extents end at %d of %d", i, at, x.size)
		}
	}
	return nil
}

func differs(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// forget forgets a point and notes it.
func (w *world) forget(r *cs.Repository, ids ...cs.PointID) error {
	err := r.Forget(w.ctx, "test", ids...)
	for _, id := range ids {
		if p := w.points[id]; err == nil {
			p.state = gone
		} else if p.state == live && !errors.Is(err, cs.ErrGone) && !errors.Is(err, cs.ErrKept) {
			p.state = fading
		}
	}
	return err
}

func (w *world) living() (out []cs.PointID) {
	for _, id := range w.order {
		if w.points[id].state == live {
			out = append(out, id)
		}
	}
	return out
}
