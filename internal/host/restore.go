package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"connectrpc.com/connect"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/disk"
	"drover/internal/resource"
)

const (
	kindRestore = "restore"
	// restoreRoom is what a datastore keeps free: a restore that would fill it ends before guests have to stand still.
	restoreRoom = 64 << 20
	// resumePoint in local.Restore says that the next start takes its memory from the point that was restored.
	resumePoint = ".point"
)

// errStartedMeanwhile: the manager keeps a VM off while it is restored; somebody did not.
var errStartedMeanwhile = errors.New("the VM was started while it was being restored; its disks are as before")

// restoring fills disks of a VM that is off from a point.
type restoring struct {
	m     *machine
	req   *v1.NodeRestoreRequest
	tell  func(*v1.NodeRestoreProgress)
	point backup.PointReader
	disks []*restoredDisk
	limit *backup.Limiter
	total int64
}

type restoredDisk struct {
	from, to string
	size     int64 // of the VM's disk afterwards
	store    *disk.Store
	made     madeDisk
	reader   backup.DiskReader
	fresh    *disk.Fresh
}

// Restore fills disks of a VM from a point. Asked again with the same operation it says what became of it; a restore that still
// streams goes on, with the vault that is named now.
func (n *node) Restore(ctx context.Context, req *v1.NodeRestoreRequest, stream *connect.ServerStream[v1.NodeRestoreProgress]) error {
	n.a.expect(ctx, req.GetUid())
	m, err := n.find(req.GetUid(), req.GetEpoch())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	latest := make(chan *v1.NodeRestoreProgress, 1)
	result := make(chan error, 1)
	go func() {
		ready := false
		result <- m.restore(ctx, req, func(p *v1.NodeRestoreProgress) {
			ready = ready || p.GetReady()
			p.Ready = ready
			select {
			case <-latest:
			default:
			}
			latest <- p
		})
	}()
	for {
		select {
		case p := <-latest:
			if err := stream.Send(p); err != nil {
				cancel()
				<-result
				return err
			}
		case err := <-result:
			if err != nil {
				return err
			}
			return stream.Send(&v1.NodeRestoreProgress{Progress: 1, Ready: true, Done: true, Step: "restored"})
		}
	}
}

// claimRestore lets one restore of the VM at a time by.
func (m *machine) claimRestore() (release func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.restoring {
		return nil, m.preconditionLocked("RESTORE_RUNNING", "is being restored", "wait until that has ended, or cancel it")
	}
	m.restoring = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.restoring = false
	}, nil
}

func (m *machine) restore(ctx context.Context, req *v1.NodeRestoreRequest, tell func(*v1.NodeRestoreProgress)) error {
	if i := m.instantOf(req.GetOperation()); i != nil {
		return m.followInstant(ctx, i, req, tell)
	}
	release, err := m.claimRestore()
	if err != nil {
		return err
	}
	defer release()
	e := entry{Operation: req.GetOperation(), Kind: kindRestore}
	if err := m.ask(ctx, func(context.Context) (err error) { e, err = m.beginOperation(e); return err }); err != nil || e.Done {
		return err
	}
	r := &restoring{m: m, req: req, tell: tell, limit: backup.NewLimiter(m.a.clk, leastLimit(req.GetBandwidthLimit(), req.GetSource().GetBandwidthLimit()))}
	var instant *instant
	if err = r.run(ctx, &instant); err != nil {
		undo := context.WithoutCancel(ctx)
		return errors.Join(fmt.Errorf("restore VM %s from point %s: %w", m.name(), req.GetPoint(), err),
			m.ask(undo, func(context.Context) error { return m.dropOperation(req.GetOperation()) }))
	}
	if instant != nil {
		return m.followInstant(ctx, instant, nil, tell)
	}
	return nil
}

func (r *restoring) run(ctx context.Context, instant **instant) (err error) {
	repo, done, err := r.m.a.vault(ctx, r.req.GetSource())
	if err != nil {
		return err
	}
	defer done()
	r.step("opening the restore point", 0, 0)
	if r.point, err = repo.OpenPoint(ctx, r.req.GetPoint()); err != nil {
		return fmt.Errorf("open it in repository %s: %w", r.req.GetSource().GetVault().GetRepository(), err)
	}
	defer func() { err = errors.Join(err, r.point.Close()) }()
	defer func() {
		for _, d := range r.disks {
			if d.reader != nil {
				d.reader.Close()
			}
			if d.fresh != nil && err != nil {
				err = errors.Join(err, d.fresh.Discard())
			}
		}
	}()
	if err := r.open(ctx); err != nil {
		return err
	}
	if r.req.GetInstant() {
		*instant, err = r.begin(ctx)
		return err
	}
	if err := r.fill(ctx); err != nil {
		return err
	}
	var memory *os.File
	if r.req.GetMemory() && r.point.Point().Memory != "" {
		if memory, err = r.readMemory(ctx); err != nil {
			return err
		}
		defer os.Remove(memory.Name())
		defer memory.Close()
	}
	// From here it is carried out or never was.
	return r.m.ask(ctx, func(ctx context.Context) error { return r.swap(context.WithoutCancel(ctx), memory) })
}

func (r *restoring) step(what string, done float64, bytes int64) {
	r.tell(&v1.NodeRestoreProgress{Step: what, Progress: done, Bytes: bytes})
}

// open finds the disks in the point and in the VM.
func (r *restoring) open(ctx context.Context) error {
	m := r.m
	if len(r.req.GetDisks()) == 0 {
		return &resource.Error{Code: resource.Invalid, Kind: resource.KindVM, Name: m.name(), Field: "disks", Reason: "REQUIRED", Message: "no disks to restore are named"}
	}
	seen := map[string]bool{}
	for _, d := range r.req.GetDisks() {
		if seen[d.GetTo()] {
			return &resource.Error{Code: resource.Invalid, Kind: resource.KindVM, Name: m.name(), Field: "disks", Reason: "TWICE", Message: "disk " + d.GetTo() + " is to be restored twice"}
		}
		seen[d.GetTo()] = true
		reader, err := r.point.Disk(ctx, d.GetFrom())
		if err != nil {
			return fmt.Errorf("disk %s of it: %w", d.GetFrom(), err)
		}
		r.disks = append(r.disks, &restoredDisk{from: d.GetFrom(), to: d.GetTo(), reader: reader})
		r.total += reader.Size()
	}
	return m.ask(ctx, func(ctx context.Context) error {
		if err := r.off(); err != nil {
			return err
		}
		for _, d := range r.disks {
			spec := diskSpec(m.vmSpec(), d.to)
			if spec == nil {
				return &resource.Error{Code: resource.NotFound, Kind: resource.KindVM, Name: m.name(), Field: "disks", Reason: "NO_SUCH_DISK", Message: "has no disk " + d.to}
			}
			var err error
			if d.made, err = m.ensureDisk(ctx, spec); err != nil {
				return fmt.Errorf("disk %s: %w", d.to, err)
			}
			if d.store, err = m.a.stores.at(d.made.Path); err != nil {
				return err
			}
			l, err := m.active(d.made, d.to)
			if err != nil {
				return err
			}
			d.size = (max(d.reader.Size(), l.Size) + 511) &^ 511
		}
		return nil
	})
}

// off refuses unless the VM stands still. The actor calls it.
func (r *restoring) off() error {
	m := r.m
	if err := m.settledRevert(); err != nil {
		return err
	}
	if m.process() != nil || m.local.Run != nil {
		return m.precondition("RUNNING", "runs", "stop it first, or restore to a new VM")
	}
	return nil
}

// fill writes all disks, beside those that the VM has.
func (r *restoring) fill(ctx context.Context) error {
	before := int64(0)
	for _, d := range r.disks {
		format := "qcow2"
		if s := diskSpec(r.m.vmSpec(), d.to); s.GetFormat() == v1.DiskFormat_DISK_FORMAT_RAW {
			format = "raw"
		}
		var err error
		if d.fresh, err = d.store.NewFresh(d.size, format); err != nil {
			return err
		}
		what := "restoring disk " + d.to
		r.step(what, float64(before)/float64(max(r.total, 1)), before)
		_, err = backup.Restore(ctx, d.reader, &roomySink{Fresh: d.fresh, path: d.made.Path, name: d.made.Datastore}, backup.RestoreOptions{
			Blank: true, Limit: r.limit, Progress: func(p backup.Progress) {
				r.step(what, 0.99*float64(before+p.Position)/float64(max(r.total, 1)), before+p.Position)
			},
		})
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.to, err)
		}
		before += d.reader.Size()
	}
	return nil
}

// roomySink stops before the datastore is full.
type roomySink struct {
	*disk.Fresh
	path, name string
	gate       sinkGate
}

func (s *roomySink) WriteAt(ctx context.Context, p []byte, off int64) error {
	if s.gate.due(int64(len(p))) {
		room, err := free(s.path)
		if err != nil {
			return err
		}
		if room < restoreRoom+sinkStep {
			return &resource.Error{Code: resource.Exhausted, Kind: resource.KindDatastore, Name: s.name, Reason: "DATASTORE_FULL",
				Message: "has no room for the restored disks; they were taken back, and the VM's disks are as before", Remedy: "make room, or restore to another datastore"}
		}
	}
	return s.Fresh.WriteAt(ctx, p, off)
}

// readMemory writes the guest's memory to a file in the VM's record.
func (r *restoring) readMemory(ctx context.Context) (f *os.File, err error) {
	p := r.point.Point()
	if p.Files[fileMachine] == nil {
		return nil, errors.New("it has memory, but not the machine that the memory belongs to")
	}
	d, err := r.point.Disk(ctx, p.Memory)
	if err != nil {
		return nil, fmt.Errorf("its memory: %w", err)
	}
	defer d.Close()
	r.step("restoring memory", 0.99, r.total)
	path := r.m.pointMemory() + ".new"
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	sink, err := backup.CreateFile(path, d.Size())
	if err != nil {
		return nil, err
	}
	_, err = backup.Restore(ctx, d, sink, backup.RestoreOptions{Blank: true, Limit: r.limit})
	if err = errors.Join(err, sink.Close()); err == nil {
		f, err = os.Open(path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("its memory: %w", err), os.Remove(path))
	}
	return f, nil
}

func (m *machine) pointMemory() string { return filepath.Join(m.dir, "point.mem") }
func (m *machine) pointRecord() string { return filepath.Join(m.dir, "point.json") }

// byStore groups disks by the store that they are in.
func byStore[T any](disks []*restoredDisk, of func(*restoredDisk) T) map[*disk.Store]map[string]T {
	out := map[*disk.Store]map[string]T{}
	for _, d := range disks {
		if out[d.store] == nil {
			out[d.store] = map[string]T{}
		}
		out[d.store][d.to] = of(d)
	}
	return out
}

// swap gives the VM its restored disks, and what else comes with them. The actor calls it.
func (r *restoring) swap(ctx context.Context, memory *os.File) error {
	m := r.m
	if err := r.off(); err != nil {
		return errors.Join(errStartedMeanwhile, err)
	}
	m.endReading(errRestored)
	for st, disks := range byStore(r.disks, func(d *restoredDisk) *disk.Fresh { return d.fresh }) {
		if err := st.Replace(ctx, m.uid, disks); err != nil {
			return err
		}
		for _, d := range r.disks {
			if d.store == st {
				d.fresh = nil // the store's now
			}
		}
	}
	p := r.point.Point()
	var vars []byte
	if r.req.GetFiles() {
		vars = p.Files[fileVars]
	}
	var names []string
	for _, d := range r.disks {
		names = append(names, d.to)
	}
	m.endInstant("")
	if err := m.settleRestore(p.ID, names, vars, memory, p.Files[fileMachine]); err != nil {
		return err
	}
	return m.endOperation(r.req.GetOperation(), 0)
}

// errRestored ends backups that read the disks of before.
var errRestored = errors.New("the VM was restored to another point")

// settleRestore writes down what changes with the disks: firmware variables, memory, and that the guest is at another time.
func (m *machine) settleRestore(point string, disks []string, vars []byte, memory *os.File, saved []byte) error {
	for _, name := range disks {
		m.local.untrack(name)
	}
	m.dropPointMemory()
	if vars != nil {
		if err := writeFile(filepath.Join(m.dir, firmwareVars), vars, 0o600); err != nil {
			return fmt.Errorf("firmware variables: %w", err)
		}
	}
	if memory != nil {
		if err := errors.Join(writeFile(m.pointRecord(), saved, 0o600), os.Rename(memory.Name(), m.pointMemory())); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
		r, err := readSnapRecord(m.pointRecord())
		if err != nil {
			return err
		}
		m.local.Restore, m.local.Places = resumePoint, r.Places
	}
	m.local.Snapshot, m.local.Halt = "", nil
	m.local.GenerationID = resource.NewUID()
	m.event(v1.Severity_SEVERITY_INFO, "VM_RESTORED", "its disks are those of restore point "+point)
	return m.save()
}

// dropPointMemory removes the memory of a restored point, once it was taken or is not wanted.
func (m *machine) dropPointMemory() {
	for _, path := range []string{m.pointMemory(), m.pointRecord()} {
		if err := os.RemoveAll(path); err != nil {
			m.log.Warn("the memory of a restore point stays", "path", path, "err", err)
		}
	}
	if m.local.Restore == resumePoint {
		m.local.Restore = ""
	}
}

// savedMachine finds the machine and the memory that the next start goes on with.
func (m *machine) savedMachine() (*snapRecord, func() (*os.File, error), error) {
	if m.local.Restore == resumePoint {
		r, err := readSnapRecord(m.pointRecord())
		return r, func() (*os.File, error) { return os.Open(m.pointMemory()) }, err
	}
	r, err := readSnapRecord(m.snapPath(m.local.Restore))
	return r, func() (*os.File, error) { return m.openMemory(m.local.Restore) }, err
}
