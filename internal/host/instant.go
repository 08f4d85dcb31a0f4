package host

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/disk"
	"drover/internal/nbd"
	"drover/internal/qemu"
)

const (
	// readPatience is how long a guest's read waits for a repository that does not answer, before the VM stands still.
	readPatience = 15 * time.Second
	instantRetry = 2 * time.Second
)

// instantRecord is a VM that runs while its disks come from a repository; in local.json until they are whole.
type instantRecord struct {
	Operation string        `json:"operation"`
	Source    []byte        `json:"source"` // VaultTarget, binary protobuf
	Point     string        `json:"point"`
	Speed     int64         `json:"speed,omitempty"` // bytes per second
	Disks     []instantDisk `json:"disks"`
	// Vars are firmware variables to be put in place with the disks.
	Vars []byte `json:"vars,omitempty"`
	// Settled: the VM has the disks and all that comes with them.
	Settled bool `json:"settled,omitempty"`
}

// instantDisk is a disk that may still need its base. The export that QEMU reads it from has the base's ID as its name.
type instantDisk struct {
	Name string `json:"name"`
	From string `json:"from"`
	Base string `json:"base"`
	Size int64  `json:"size"` // of the base, as exported
}

// instant serves the bases of a VM's disks to its QEMU and has it copy them. It lives from the restore, or the agent's start, until
// the disks are whole, or the agent ends.
type instant struct {
	m         *machine
	operation string
	point     string
	speed     int64
	disks     []instantDisk // fixed; what is done stands in local.json
	life      context.Context
	end       context.CancelFunc
	work      sync.WaitGroup
	ended     chan struct{} // closed when it has ended, for whichever reason

	streamed atomic.Int64 // bytes of disks dealt with
	total    int64

	opening chan struct{} // full while one opens the point, over I/O

	mu     sync.Mutex // guards the fields below
	source *v1.VaultTarget
	closer func()
	reader backup.PointReader
	open   map[string]backup.DiskReader // by disk in the point
	opened int                          // how often the point was opened
	away   error                        // why the repository does not answer
	since  time.Time
	whole  bool
}

func (m *machine) instantOf(operation string) *instant {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := m.instant; i != nil && i.operation == operation {
		return i
	}
	return nil
}

func (m *machine) baseSocket() string { return filepath.Join(m.a.cfg.ShmDir, m.uid+".nbd") }

// begin puts empty layers over the point's disks, from where on the VM can be started.
func (r *restoring) begin(ctx context.Context) (i *instant, err error) {
	m := r.m
	source, err := proto.Marshal(r.req.GetSource())
	if err != nil {
		return nil, err
	}
	rec := &instantRecord{Operation: r.req.GetOperation(), Source: source, Point: r.req.GetPoint(), Speed: r.limit.Rate()}
	if r.req.GetFiles() {
		rec.Vars = r.point.Point().Files[fileVars]
	}
	for _, d := range r.disks {
		var id [8]byte
		rand.Read(id[:]) // never fails (crypto/rand)
		rec.Disks = append(rec.Disks, instantDisk{Name: d.to, From: d.from, Base: hex.EncodeToString(id[:]), Size: (d.reader.Size() + 511) &^ 511})
	}
	err = m.ask(ctx, func(ctx context.Context) error {
		if err := r.off(); err != nil {
			return err
		}
		ctx = context.WithoutCancel(ctx)
		m.endReading(errRestored)
		m.endInstant("")
		// Written down first: layers whose record is not there could not be read.
		m.local.Instant = rec
		if err := m.save(); err != nil {
			return err
		}
		if i, err = m.serveInstant(); err != nil {
			m.local.Instant = nil
			return errors.Join(err, m.save())
		}
		for st, disks := range byStore(r.disks, func(d *restoredDisk) disk.Remote {
			for _, x := range rec.Disks {
				if x.Name == d.to {
					return disk.Remote{ID: x.Base, Size: d.size}
				}
			}
			return disk.Remote{}
		}) {
			if err := st.ReplaceRemote(ctx, m.uid, disks); err != nil {
				m.endInstant("")
				return err
			}
		}
		if err := m.settleInstant(); err != nil {
			return err
		}
		i.work.Go(func() { i.run() })
		return nil
	})
	return i, err
}

// settleInstant does what comes with the disks of m.local.Instant, once.
func (m *machine) settleInstant() error {
	rec := m.local.Instant
	var names []string
	for _, d := range rec.Disks {
		names = append(names, d.Name)
	}
	rec.Settled = true
	vars := rec.Vars
	rec.Vars = nil
	if err := m.settleRestore(rec.Point, names, vars, nil, nil); err != nil {
		rec.Settled, rec.Vars = false, vars
		return err
	}
	return nil
}

// resumeInstant takes up what an agent before has begun. It is called before the VM's QEMU is adopted: a QEMU that waits for a
// base does not answer.
func (m *machine) resumeInstant() {
	rec := m.local.Instant
	if rec == nil {
		return
	}
	needed := false
	for _, d := range rec.Disks {
		made := m.local.Made[d.Name]
		base := ""
		if st, err := m.a.stores.at(made.Path); err == nil {
			base, err = st.RemoteOf(m.uid, d.Name)
			if err != nil {
				m.log.Warn("what a disk still needs of its restore point", "disk", d.Name, "err", err)
			}
		}
		needed = needed || base == d.Base
	}
	if !needed {
		// It never came to be, or had ended but for the note.
		m.local.Instant = nil
		m.note()
		return
	}
	i, err := m.serveInstant()
	if err == nil && !rec.Settled {
		err = m.settleInstant()
	}
	if err != nil {
		m.log.Error("the disks that are being restored can't be read", "err", err)
		m.event(v1.Severity_SEVERITY_ERROR, "RESTORE_STOPPED", "the disks that are being restored can't be read: "+err.Error())
		return
	}
	i.work.Go(func() { i.run() })
}

// serveInstant makes the instant of local.json, and the socket that QEMU reads from.
func (m *machine) serveInstant() (*instant, error) {
	rec := m.local.Instant
	target := new(v1.VaultTarget)
	if err := proto.Unmarshal(rec.Source, target); err != nil {
		return nil, err
	}
	if err := m.a.ensureUser(m); err != nil {
		return nil, err
	}
	path := m.baseSocket()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for the VM's QEMU: %w", err)
	}
	// QEMU comes back to it by itself when an agent was away: it opens the socket by name, as its own user.
	if err := errors.Join(os.Chown(path, int(m.local.User), int(m.local.User)), os.Chmod(path, 0o600)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	i := &instant{m: m, opening: make(chan struct{}, 1), operation: rec.Operation, point: rec.Point, speed: rec.Speed, disks: append([]instantDisk(nil), rec.Disks...),
		source: target, open: map[string]backup.DiskReader{}, ended: make(chan struct{})}
	i.life, i.end = context.WithCancel(m.a.life)
	exports := map[string]*backup.Export{}
	for _, d := range i.disks {
		i.total += d.Size
		exports[d.Base] = backup.NewExport(i.life, &patientDisk{i: i, from: d.From, size: d.Size}, 0)
	}
	s := nbd.NewServer(nbd.ServerOptions{Log: m.log, Lookup: func(_ context.Context, name string, _ nbd.Peer) (nbd.Export, func(), error) {
		if x := exports[name]; x != nil {
			return bare{x}, func() {}, nil
		}
		return nil, nil, nbd.ErrNoExport
	}})
	i.work.Go(func() {
		if err := s.Serve(i.life, l); err != nil {
			m.log.Error("the VM's QEMU can't read its restore point", "err", err)
		}
		for _, x := range exports {
			x.Close()
		}
	})
	m.mu.Lock()
	m.instant = i
	m.mu.Unlock()
	return i, nil
}

// endInstant ends the one that there is, unless it is keep's: nobody reads from it any more. The actor calls it.
func (m *machine) endInstant(keep string) {
	m.mu.Lock()
	i := m.instant
	if i == nil || keep != "" && i.operation == keep {
		m.mu.Unlock()
		return
	}
	m.instant = nil
	m.mu.Unlock()
	i.close()
	m.local.Instant = nil
	m.note()
	if err := os.Remove(m.baseSocket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Warn("a socket is left", "path", m.baseSocket(), "err", err)
	}
}

// leaveInstant lets go of it when the agent ends: the next one goes on.
func (m *machine) leaveInstant() {
	m.mu.Lock()
	i := m.instant
	m.instant = nil
	m.mu.Unlock()
	if i != nil {
		i.close()
	}
}

// close ends the reading. It waits for everything but the actor.
func (i *instant) close() {
	i.end()
	i.work.Wait()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.drop()
	select {
	case <-i.ended:
	default:
		close(i.ended)
	}
}

// drop closes the point. i.mu is held.
func (i *instant) drop() {
	for _, d := range i.open {
		d.Close()
	}
	clear(i.open)
	if i.reader != nil {
		i.letGo(i.reader, i.closer)
		i.reader, i.closer = nil, nil
	}
}

// followInstant tells how far it is until it has ended. When ctx ends it goes on by itself. req, if set, names the vault anew.
func (m *machine) followInstant(ctx context.Context, i *instant, req *v1.NodeRestoreRequest, tell func(*v1.NodeRestoreProgress)) error {
	if req.GetSource() != nil {
		source, err := proto.Marshal(req.GetSource())
		if err != nil {
			return err
		}
		i.mu.Lock()
		i.source = req.GetSource()
		i.drop() // the next read opens it there
		i.mu.Unlock()
		if err := m.ask(ctx, func(context.Context) error {
			if m.local.Instant != nil {
				m.local.Instant.Source = source
			}
			return m.save()
		}); err != nil {
			return err
		}
	}
	for {
		done := i.streamed.Load()
		tell(&v1.NodeRestoreProgress{Ready: true, Step: i.say(), Progress: 0.99 * float64(done) / float64(max(i.total, 1)), Bytes: done})
		select {
		case <-i.ended:
			i.mu.Lock()
			defer i.mu.Unlock()
			if i.whole {
				return nil
			}
			return fmt.Errorf("restore VM %s: it was ended before the disks were whole", m.name())
		case <-ctx.Done():
			return fmt.Errorf("restore VM %s: the VM runs, and goes on reading from the repository by itself: %w", m.name(), context.Cause(ctx))
		case <-m.a.clk.After(time.Second):
		}
	}
}

// say is what people are to know, for the VM's message.
func (i *instant) say() string {
	i.mu.Lock()
	away, since := i.away, i.since
	i.mu.Unlock()
	percent := i.streamed.Load() * 100 / max(i.total, 1)
	switch {
	case away != nil:
		return fmt.Sprintf("%d %% restored; the repository does not answer since %s (%v): what the guest reads of it waits, what it writes is kept, and all goes on by itself",
			percent, since.UTC().Format("15:04:05 UTC"), away)
	case i.m.process() == nil:
		return fmt.Sprintf("%d %% restored; the rest comes from the repository while the VM runs", percent)
	}
	return fmt.Sprintf("restoring while it runs: %d %%", percent)
}

// run has QEMU copy the bases, whenever it runs, until the disks are whole.
func (i *instant) run() {
	m, life, said := i.m, i.life, ""
	for life.Err() == nil {
		p := m.process()
		if p == nil {
			i.rest(life)
			continue
		}
		whole, err := i.stream(life, p)
		switch {
		case err != nil && life.Err() == nil:
			if text := err.Error(); text != said { // it is tried again every two seconds
				said = text
				m.log.Warn("the restore that goes on while the VM runs was held up", "err", err)
			}
			i.rest(life)
		case whole:
			// The actor ends what this is part of, so that nobody waits for it here.
			m.a.actors.Go(func() { m.finishInstant(i) })
			return
		}
	}
}

func (i *instant) rest(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-i.m.a.clk.After(instantRetry):
	}
}

// stream copies all disks, one after the other.
func (i *instant) stream(ctx context.Context, p *qemu.Process) (whole bool, err error) {
	before := int64(0)
	for _, d := range i.disks {
		if id := diskWith(p, baseNode(d.Base)); id != "" {
			err := p.Stream(ctx, id, i.speed, func(s qemu.StreamProgress) {
				i.streamed.Store(before + min(d.Size, int64(float64(d.Size)*float64(s.Done)/float64(max(s.Total, 1)))))
				i.m.poke()
			})
			if err != nil {
				return false, fmt.Errorf("disk %s: %w", d.Name, err)
			}
		}
		if err := i.m.ask(ctx, func(ctx context.Context) error { return i.m.diskWhole(ctx, p, d) }); err != nil {
			return false, fmt.Errorf("disk %s: %w", d.Name, err)
		}
		before += d.Size
		i.streamed.Store(before)
	}
	return true, nil
}

// diskWhole writes down that a disk needs its base no more, if QEMU does not have it. The actor calls it.
func (m *machine) diskWhole(ctx context.Context, p *qemu.Process, d instantDisk) error {
	if m.process() != p || diskWith(p, baseNode(d.Base)) != "" {
		return errors.New("the VM was stopped meanwhile")
	}
	made, ok := m.local.Made[d.Name]
	if !ok {
		return nil // removed meanwhile
	}
	st, err := m.a.stores.at(made.Path)
	if err != nil {
		return err
	}
	return st.DropRemote(ctx, m.uid, d.Name)
}

// finishInstant ends an instant whose disks are whole.
func (m *machine) finishInstant(i *instant) {
	err := m.ask(m.a.life, func(context.Context) error {
		if m.instantOf(i.operation) != i {
			return nil
		}
		i.mu.Lock()
		i.whole = true
		i.mu.Unlock()
		m.endInstant("")
		m.event(v1.Severity_SEVERITY_INFO, "VM_RESTORE_WHOLE", "all of its disks is here; nothing is read from the repository any more")
		return m.endOperation(i.operation, 0)
	})
	if err != nil {
		m.log.Warn("the end of a restore is not written down", "err", err)
	}
}

// wholeDisks refuses what can't be done to disks that are not all here.
func (m *machine) wholeDisks() error {
	if m.local.Instant != nil {
		return m.precondition("RESTORE_RUNNING", "is being restored while it runs: "+m.restoreNote(), "wait until that has ended")
	}
	return nil
}

func baseNode(base string) string { return "r-" + base }
