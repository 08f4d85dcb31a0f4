package chunkstore_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"drover/internal/blob"
	cs "drover/internal/chunkstore"
	"drover/internal/chunkstore/ledger"
)

var errTired = errors.New("the storage is tired")

// program is one that has the repository open, on a machine that crashes with the others.
type program struct{ r *cs.Repository }

// writer is a session in the middle of its work.
type writer struct {
	p       *program
	s       *cs.Session
	vm      string
	parent  cs.PointID
	base    *point // nil: no parent
	texts   []text
	disks   []*ledger.Disk
	tainted int  // faults there were when it began
	ended   bool // another may have taken it for dead
}

// reader has a point pinned.
type reader struct {
	p       *program
	s       *cs.Session
	id      cs.PointID
	lp      *ledger.Point
	point   *point
	ended   bool
	tainted int
}

// model drives a world by steps that rapid draws.
type model struct {
	*world
	rt       *rapid.T
	programs []*program
	writers  []*writer
	readers  []*reader
}

func pick[T any](t *rapid.T, what string, list []T) T {
	if len(list) == 0 {
		t.SkipNow()
	}
	return list[rapid.IntRange(0, len(list)-1).Draw(t, what)]
}

// TestModel draws what several programs do to one repository, in any order, over crashes and faults, and compares with a plain map. DROVER_SOAK
// goes on for longer, as does -rapid.checks.
func TestModel(t *testing.T) {
	end := deadline(t, 20*time.Second, 20*time.Minute)
	runs := 0
	for time.Now().Before(end) && !t.Failed() {
		rapid.Check(t, func(rt *rapid.T) {
			if time.Now().Before(end) {
				runs++
				modelRun(t, rt)
			}
		})
	}
	t.Logf("%d runs", runs)
}

func modelRun(t *testing.T, rt *rapid.T) {
	m := &model{world: newWorld(t.Context(), rt, rapid.Uint64().Draw(rt, "seed")), rt: rt}
	m.programs = append(m.programs, &program{r: m.mustOpen()})
	defer m.closeAll()
	rt.Repeat(map[string]func(*rapid.T){
		"open": m.openProgram, "begin": m.begin, "write": m.writeDisk, "commit": m.commitPoint, "end": m.endWriter,
		"pin": m.pin, "read": m.readPinned, "unpin": m.unpin, "forget": m.forgetSome, "collect": m.collect, "collect again": m.collect,
		"rewrite": m.rewrite, "rotate": m.rotate, "crash": m.crash, "faults": m.fault, "backup": m.wholeBackup, "backup again": m.wholeBackup,
		"end the dead": m.endDead, "list": m.list, "scrub": m.scrub, "keep": m.keep,
	})
	m.setFaults(nil)
	m.closeAll()
	r := m.mustOpen()
	m.programs = append(m.programs, &program{r: r})
	m.verify(r)
	// With nobody left, a collection frees all that is not needed, and nothing else.
	for range 2 {
		if _, err := r.Collect(m.ctx, cs.CollectOptions{Dead: time.Nanosecond}); err != nil {
			rt.Fatalf("the last collection: %v", err)
		}
	}
	m.verify(r)
	if len(m.living()) == 0 {
		m.empty(r)
	}
}

// empty looks for packs that a repository without points still has.
func (m *model) empty(r *cs.Repository) {
	for _, dir := range []string{"data/", "meta/", "parity/"} {
		for i, err := range m.store().List(m.ctx, dir, "") {
			m.rt.Fatalf("no point is left, and %s is, with %d bytes, %v", i.Name, i.Size, err)
		}
	}
	if l := r.Load(); l.Stored != 0 {
		m.rt.Fatalf("no point is left, and the log counts %d bytes", l.Stored)
	}
}

func (m *model) closeAll() {
	for _, w := range m.writers {
		_ = w.s.Close(m.ctx)
	}
	for _, r := range m.readers {
		_ = r.s.Close(m.ctx)
	}
	for _, p := range m.programs {
		_ = p.r.Close()
	}
	m.writers, m.readers, m.programs = nil, nil, nil
}

func (m *model) openProgram(t *rapid.T) {
	if len(m.programs) >= 3 {
		t.SkipNow()
	}
	before := m.injected()
	r, err := m.open()
	m.errOK("open", err, before)
	if err == nil {
		m.programs = append(m.programs, &program{r: r})
	}
}

func (m *model) program(t *rapid.T) *program { return pick(t, "program", m.programs) }

func (m *model) vm(t *rapid.T) string {
	return fmt.Sprintf("vm%d", rapid.IntRange(0, 2).Draw(t, "vm"))
}

func (m *model) begin(t *rapid.T) {
	if len(m.writers) >= 4 {
		t.SkipNow()
	}
	w := &writer{p: m.program(t), vm: m.vm(t), tainted: m.injected()}
	o := cs.BeginOptions{Purpose: "backup of " + w.vm}
	if id, p, ok := m.latest(w.vm); ok && rapid.Bool().Draw(t, "parent") {
		w.parent, w.base = id, p
		o.Pins = []cs.PointID{id}
	}
	s, err := w.p.r.Begin(m.ctx, o)
	m.errOK("begin", err, w.tainted)
	if err == nil {
		w.s = s
		m.writers = append(m.writers, w)
	}
}

// broken handles the failure of a session's step: it ends, and is forgotten.
func (m *model) broken(w *writer, what string, err error) {
	allowed := []error(nil)
	if w.ended {
		allowed = append(allowed, cs.ErrEnded, cs.ErrGone, blob.ErrNotFound)
	}
	m.errOK(what, err, w.tainted, allowed...)
	_ = w.s.Close(m.ctx)
	m.writers = slices.DeleteFunc(m.writers, func(o *writer) bool { return o == w })
}

func (m *model) writeDisk(t *rapid.T) {
	w := pick(t, "writer", m.writers)
	if len(w.disks) >= 3 {
		t.SkipNow()
	}
	var x text
	var changed map[int]bool
	var ld *ledger.Disk
	x = randomText(m.world.r)
	if w.base != nil && len(w.disks) < len(w.base.disks) {
		if lp, ok := w.p.r.Point(w.parent); ok {
			x, changed = w.base.disks[len(w.disks)].mutate(m.world.r)
			ld = lp.Disks[len(w.disks)]
		}
	}
	d, err := m.write(w.s, fmt.Sprintf("vd%c", 'a'+len(w.disks)), x, ld, changed)
	if err != nil {
		m.broken(w, "write a disk", err)
		return
	}
	w.texts, w.disks = append(w.texts, x), append(w.disks, d)
}

func (m *model) commitPoint(t *rapid.T) {
	w := pick(t, "writer", m.writers)
	if len(w.disks) == 0 {
		t.SkipNow()
	}
	_, err := m.commit(w.s, w.vm, w.texts, w.disks)
	w.texts, w.disks, w.base = nil, nil, nil
	if err != nil {
		m.broken(w, "commit", err)
	}
}

func (m *model) endWriter(t *rapid.T) {
	w := pick(t, "writer", m.writers)
	err := w.s.Close(m.ctx)
	if err != nil {
		m.broken(w, "end a session", err)
		return
	}
	m.writers = slices.DeleteFunc(m.writers, func(o *writer) bool { return o == w })
}

func (m *model) wholeBackup(t *rapid.T) {
	before := m.injected()
	m.errOK("backup", m.backup(m.program(t).r, m.vm(t)), before)
}

func (m *model) pin(t *rapid.T) {
	id := pick(t, "point", m.living())
	p := m.program(t)
	before := m.injected()
	s, err := p.r.Begin(m.ctx, cs.BeginOptions{Reader: true, Pins: []cs.PointID{id}, Purpose: "restore"})
	m.errOK("begin to read", err, before)
	if err != nil {
		return
	}
	lp, ok := p.r.Point(id)
	if !ok {
		t.Fatalf("a point that was pinned is not there: %s", id)
	}
	m.readers = append(m.readers, &reader{p: p, s: s, id: id, lp: lp, point: m.points[id], tainted: before})
}

// readPinned reads a point that is pinned: it reads as it was, whether it was forgotten and collected since, or not.
func (m *model) readPinned(t *rapid.T) {
	r := pick(t, "reader", m.readers)
	err := m.readPoint(r.s, r.lp, r.point)
	if err != nil && r.ended {
		return
	}
	m.errOK("read a pinned point", err, r.tainted)
}

func (m *model) unpin(t *rapid.T) {
	r := pick(t, "reader", m.readers)
	m.errOK("end reading", r.s.Close(m.ctx), r.tainted)
	m.readers = slices.DeleteFunc(m.readers, func(o *reader) bool { return o == r })
}

func (m *model) forgetSome(t *rapid.T) {
	ids := m.living()
	if len(ids) == 0 || len(ids) < 4 && rapid.IntRange(0, 2).Draw(t, "spare") > 0 {
		t.SkipNow()
	}
	var some []cs.PointID
	for range rapid.IntRange(1, 3).Draw(t, "how many") {
		if id := pick(t, "point", ids); !slices.Contains(some, id) {
			some = append(some, id)
		}
	}
	before := m.injected()
	m.errOK("forget", m.forget(m.program(t).r, some...), before)
}

func (m *model) collect(t *rapid.T) {
	o := cs.CollectOptions{Dead: -1, Share: rapid.SampledFrom([]float64{0, -1, 0.9, 0.99}).Draw(t, "share")}
	if rapid.Bool().Draw(t, "passes") {
		o.Memory = 300
	}
	before := m.injected()
	res, err := m.program(t).r.Collect(m.ctx, o)
	m.errOK("collect", err, before)
	if err == nil && len(res.Lost) > 0 && before == 0 {
		t.Fatalf("the collector finds blocks lost: %+v", res.Lost)
	}
}

// endDead takes all sessions for dead: who was ended loses nothing that was acknowledged, and reads nothing wrong.
func (m *model) endDead(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "seldom") > 0 {
		t.SkipNow()
	}
	for _, w := range m.writers {
		w.ended = true
	}
	for _, r := range m.readers {
		r.ended = true
	}
	before := m.injected()
	_, err := m.program(t).r.Collect(m.ctx, cs.CollectOptions{Dead: time.Nanosecond})
	m.errOK("collect with the dead", err, before)
}

func (m *model) rewrite(t *rapid.T) {
	before := m.injected()
	_, err := m.program(t).r.Rewrite(m.ctx, cs.RewriteOptions{})
	m.errOK("rewrite", err, before)
}

func (m *model) rotate(t *rapid.T) {
	before := m.injected()
	m.errOK("rotate", m.program(t).r.Rotate(m.ctx), before)
}

// scrub finds nothing: the storage rots in other tests.
func (m *model) scrub(t *rapid.T) {
	before := m.injected()
	res, err := m.program(t).r.Scrub(m.ctx, cs.ScrubOptions{Share: rapid.SampledFrom([]float64{0, 0.3}).Draw(t, "share")})
	m.errOK("scrub", err, before)
	if len(res.Damaged) > 0 && m.injected() == before {
		t.Fatalf("a scrub finds damage: %+v", res.Damaged)
	}
}

// keep keeps a point, tries to forget it, and lets it go again.
func (m *model) keep(t *rapid.T) {
	id := pick(t, "point", m.living())
	r, before := m.program(t).r, m.injected()
	err := r.Keep(m.ctx, id, true, nil)
	m.errOK("keep", err, before)
	if err == nil {
		if err := m.forget(r, id); err == nil || m.injected() == before && !errors.Is(err, cs.ErrKept) {
			t.Fatalf("forget of a point that is kept: %v", err)
		}
	}
	// It must not stay kept: the end of the run wants to know what is left.
	m.setFaults(nil)
	if err := r.Keep(m.ctx, id, false, nil); err != nil && !errors.Is(err, cs.ErrGone) {
		t.Fatalf("let go of a point: %v", err)
	}
}

// list compares the list of points.
func (m *model) list(t *rapid.T) {
	p := m.program(t)
	before := m.injected()
	err := p.r.Refresh(m.ctx)
	m.errOK("refresh", err, before)
	if err == nil {
		m.settle(p.r)
	}
}

// fault lets some of the next requests fail, done or not.
func (m *model) fault(t *rapid.T) {
	if rapid.IntRange(0, 2).Draw(t, "seldom") > 0 {
		m.setFaults(nil)
		return
	}
	n, after := rapid.IntRange(1, 3).Draw(t, "faults"), rapid.IntRange(0, 30).Draw(t, "after")
	done := rapid.Bool().Draw(t, "done")
	m.setFaults(func(blob.Verb, string) blob.Outcome {
		if after--; after >= 0 || n <= 0 {
			return blob.Outcome{}
		}
		n--
		return blob.Outcome{Err: errTired, Done: done}
	})
}

// crash ends all programs at once, in the middle of a backup or a collection.
func (m *model) crash(t *rapid.T) {
	at := rapid.Int64Range(1, 60).Draw(t, "at")
	m.setFaults(nil)
	m.fs.CrashAt(at)
	switch rapid.IntRange(0, 2).Draw(t, "during") {
	case 0:
		_ = m.backup(m.program(t).r, m.vm(t))
	case 1:
		_, _ = m.program(t).r.Collect(m.ctx, cs.CollectOptions{Dead: -1})
	case 2:
		_, _ = m.program(t).r.Rewrite(m.ctx, cs.RewriteOptions{})
	}
	next := m.fs.Crash(rapid.Uint64().Draw(t, "what survives"))
	m.closeAll()
	m.fs = next
	r := m.mustOpen()
	m.programs = append(m.programs, &program{r: r})
	m.verify(r)
}
