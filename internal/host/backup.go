package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/disk"
	"drover/internal/qemu"
	"drover/internal/resource"
)

const (
	// backupEnd bounds the way back after a backup, whatever became of its context.
	backupEnd = 30 * time.Second
	// memoryDisk is the disk of a point that has the guest's memory. No disk of a VM has an underscore.
	memoryDisk = "_memory"
	// fileVars and fileMachine are Files of a point: UEFI variables, and the machine as in a snapshot's record.
	fileVars    = "nvram"
	fileMachine = "machine.json"
	// fleeceLeast is the room without which no backup of a running VM begins.
	fleeceLeast = 32 << 20
)

// Reasons why a backup ends that are not its own.
var (
	errFleeceFull = errors.New("the guest has overwritten more than the datastore has room to save while the backup read: make room, or back up to a faster repository")
	errStarted    = errors.New("the VM was started")
	errChanged    = errors.New("the VM's disks are being changed")
	errVMEnded    = errors.New("the VM was stopped")
	errTracking   = errors.New("a block has changed that the tracking of changes does not know of: the next backup reads everything")
)

// backupJob makes one restore point.
type backupJob struct {
	m    *machine
	req  *v1.NodeBackupRequest
	repo backup.Repository
	info backup.Info
	tell func(*v1.NodeBackupProgress)

	parent *backup.Point
	// damaged is the point that an earlier try was written against in vain.
	damaged string
	disks   []*pointDisk
	point   backup.Point
	memory  *os.File

	live    *qemu.LivePoint
	manners *manners
	off     *offRead
	// ends is called with a reason when what is read is no more.
	ends context.CancelCauseFunc
	wait sync.WaitGroup
}

// Backup makes a restore point in a vault. Asked again for a point that is there, it says so.
func (n *node) Backup(ctx context.Context, req *v1.NodeBackupRequest, stream *connect.ServerStream[v1.NodeBackupProgress]) error {
	m, err := n.find(req.GetUid(), req.GetEpoch())
	if err != nil {
		return err
	}
	if req.GetPoint() == "" {
		return &resource.Error{Code: resource.Invalid, Kind: resource.KindVM, Name: m.name(), Field: "point", Reason: "REQUIRED", Message: "a backup needs the id of its point"}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	latest := make(chan *v1.NodeBackupProgress, 1)
	result := make(chan error, 1)
	var point backup.Point
	go func() {
		var err error
		point, err = m.backup(ctx, req, func(p *v1.NodeBackupProgress) {
			// Only the newest is of interest.
			select {
			case <-latest:
			default:
			}
			select {
			case latest <- p:
			default:
			}
		})
		result <- err
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
			text, err := json.Marshal(point)
			if err != nil {
				return err
			}
			return stream.Send(&v1.NodeBackupProgress{Progress: 1, Done: true, Point: text, ReadBytes: point.Read, AddedBytes: point.Added})
		}
	}
}

// claimBackup lets one backup of the VM at a time by.
func (m *machine) claimBackup() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.backingUp {
		return m.preconditionLocked("BACKUP_RUNNING", "is being backed up", "wait until that has ended")
	}
	m.backingUp = true
	return nil
}

func (m *machine) releaseBackup() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.backingUp = false
}

func (m *machine) preconditionLocked(reason, message, remedy string) error {
	return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: m.vm.GetMeta().GetName(), Reason: reason, Message: message, Remedy: remedy}
}

func (m *machine) backup(ctx context.Context, req *v1.NodeBackupRequest, tell func(*v1.NodeBackupProgress)) (p backup.Point, err error) {
	if err := m.claimBackup(); err != nil {
		return p, err
	}
	defer m.releaseBackup()
	repo, done, err := m.a.vault(ctx, req.GetTarget())
	if err != nil {
		return p, fmt.Errorf("back up VM %s: %w", m.name(), err)
	}
	defer done()
	if p, err = m.runAgain(ctx, req, repo, tell); err != nil {
		return p, backupError(m.name(), req.GetTarget().GetVault().GetRepository(), err)
	}
	return p, nil
}

// backupError says in words why there is no point.
func backupError(vm, repository string, err error) error {
	var said *resource.Error
	if errors.As(err, &said) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("back up VM %s to repository %s: %w", vm, repository, err)
	}
	reason := "BACKUP_FAILED"
	for cause, r := range map[error]string{errFleeceFull: "FLEECE_FULL", errStarted: "VM_STARTED", errVMEnded: "VM_STOPPED", errTracking: "TRACKING_WRONG", errChanged: "DISKS_CHANGED"} {
		if errors.Is(err, cause) {
			reason = r
		}
	}
	return &resource.Error{Code: resource.Unavailable, Kind: resource.KindVM, Name: vm, Reason: reason, Message: "was not backed up to repository " + repository + ": " + err.Error(), Err: err}
}

// run is the whole of it: pin the parent, open the moment, read, commit.
func (j *backupJob) run(ctx context.Context) (p backup.Point, err error) {
	j.tell(&v1.NodeBackupProgress{Step: "asking the repository"})
	if j.info, err = j.repo.Info(ctx); err != nil {
		return p, err
	}
	points, err := j.repo.Points(ctx, j.m.uid)
	if err != nil {
		return p, err
	}
	var pins []string
	for i := range points {
		switch points[i].ID {
		case j.req.GetPoint():
			return points[i], nil
		case j.req.GetParent():
			j.parent = &points[i]
			pins = []string{j.req.GetParent()}
		}
	}
	s, err := j.repo.Begin(ctx, backup.SessionOptions{Purpose: "backup of " + j.m.name(), VMUID: j.m.uid, Pins: pins})
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()

	ctx, j.ends = context.WithCancelCause(ctx)
	defer func() {
		j.ends(nil)
		j.wait.Wait()
	}()
	j.tell(&v1.NodeBackupProgress{Step: "holding the disks still"})
	if err := j.m.ask(ctx, j.begin); err != nil {
		return p, err
	}
	committed := false
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), backupEnd)
		defer cancel()
		err = errors.Join(err, j.end(end, committed))
	}()
	if err := j.read(ctx, s); err != nil {
		return p, err
	}
	j.tell(&v1.NodeBackupProgress{Step: "committing", Progress: 1})
	if p, err = s.Commit(ctx, j.point); err != nil {
		return p, because(ctx, err)
	}
	committed = true
	return p, nil
}

// because says why a context has ended in place of what that led to.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	return err
}

// begin opens the moment. It runs in the VM's actor.
func (j *backupJob) begin(ctx context.Context) error {
	m := j.m
	if err := m.settledRevert(); err != nil {
		return err
	}
	if err := m.disksOf(j); err != nil {
		return err
	}
	j.point = backup.Point{
		ID: j.req.GetPoint(), VMUID: m.uid, VM: m.name(), Labels: j.req.GetLabels(), Files: map[string][]byte{},
	}
	def := j.req.GetDefinition()
	if def == nil {
		m.mu.Lock()
		def = m.vm
		m.mu.Unlock()
	}
	def = clone(def)
	def.Status = nil
	var err error
	if j.point.Definition, err = protojson.Marshal(def); err != nil {
		return err
	}
	if p := m.process(); p != nil {
		err = j.beginLive(ctx, p)
	} else {
		err = j.beginOff(ctx)
	}
	if err != nil {
		return err
	}
	j.point.Full = fullWords(j.disks)
	if j.parent != nil {
		j.point.Parent = j.parent.ID
	}
	for _, d := range j.disks {
		j.point.Disks = append(j.point.Disks, backup.Disk{Name: d.name, Size: d.size, Bitmap: d.next})
		j.point.Logical += d.size
	}
	return nil
}

// disksOf lists the VM's disks that can be written to.
func (m *machine) disksOf(j *backupJob) error {
	spec := m.vmSpec()
	if m.process() != nil {
		spec = m.local.Run.spec()
	}
	for _, d := range spec.GetDisks() {
		if d.GetReadOnly() {
			continue
		}
		made, ok := m.local.Made[d.GetName()]
		if !ok {
			return m.precondition("NO_DISKS", "has not been made yet", "wait until its disks are there")
		}
		st, err := m.a.stores.at(made.Path)
		if err != nil {
			return err
		}
		chain, err := st.Chain(m.uid, d.GetName())
		if err != nil {
			return err
		}
		pd := &pointDisk{vm: m.uid, name: d.GetName(), store: st, top: chain[0], size: chain[0].Size}
		if m.process() != nil {
			q, err := m.qemuDisk(d)
			if err != nil {
				return err
			}
			pd.id = q.ID
		}
		if j.parent != nil {
			for _, old := range j.parent.Disks {
				pd.parent = pd.parent || old.Name == pd.name
			}
		}
		j.disks = append(j.disks, pd)
	}
	if len(j.disks) == 0 {
		return m.precondition("NO_DISKS", "has no disks that could be backed up", "")
	}
	return nil
}

// choose decides for each disk whether what was tracked is enough, and writes down what is about to begin.
func (j *backupJob) choose(have map[string][]qemu.Bitmap) error {
	l := j.m.local
	for _, d := range j.disks {
		t := l.track(j.info.ID, d.name)
		if t != nil {
			t.fold()
		}
		keep := false
		switch {
		case j.req.GetFull():
			d.why, keep = "asked for", true
		case j.damaged != "":
			d.why = "point " + j.damaged + " is damaged in the repository"
		case j.parent == nil && j.req.GetParent() != "":
			d.why = "the repository does not have point " + j.req.GetParent() + " any more"
		case j.parent == nil:
			d.why = "it is the first point of this VM in the repository"
		case !d.parent:
			d.why = "the point before does not have it"
		default:
			d.since, d.why = t.since(j.parent.ID, d.top, d.size, have[d.name])
		}
		d.next = newBitmap()
		if t == nil || d.full() && !keep {
			t = &track{Repo: j.info.ID, Disk: d.name}
			l.setTrack(t)
		}
		d.grown = d.size
		if !d.full() {
			d.grown = t.Size
		}
		if len(t.Bitmaps) == 0 {
			t.Layer, t.Node, t.Size = d.top.ID, nodeName(d.top), d.size
		}
		t.Next, t.NextPoint = d.next, j.req.GetPoint()
	}
	return j.m.save()
}

// record takes the small files of the VM.
func (j *backupJob) record(machine *qemu.Spec) error {
	m := j.m
	r, err := m.snapRecordOf(machine)
	if err != nil {
		return err
	}
	if j.point.Files[fileMachine], err = json.Marshal(r); err != nil {
		return err
	}
	vars, err := os.ReadFile(filepath.Join(m.dir, firmwareVars))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	j.point.Files[fileVars] = vars
	return err
}

// read stores all disks.
func (j *backupJob) read(ctx context.Context, s backup.Session) error {
	limit := backup.NewLimiter(j.m.a.clk, leastLimit(j.req.GetBandwidthLimit(), j.req.GetTarget().GetBandwidthLimit()))
	// First of all for all disks: what is not going to be read costs the guest no more.
	var all []*diskReading
	defer func() {
		for _, r := range all {
			_ = r.src.Close()
		}
	}()
	for _, d := range j.disks {
		r, err := j.open(ctx, d, limit)
		if err != nil {
			return because(ctx, fmt.Errorf("disk %s: %w", d.name, err))
		}
		all = append(all, r)
	}
	var parent backup.PointReader
	if j.parent != nil && j.req.GetAuditShare() > 0 {
		var err error
		if parent, err = j.repo.OpenPoint(ctx, j.parent.ID); err != nil {
			return because(ctx, err)
		}
		defer parent.Close()
	}
	var before int64
	for i, d := range j.disks {
		err := j.readDisk(ctx, s, d, all[i], parent, &before)
		if err != nil {
			return because(ctx, fmt.Errorf("disk %s: %w", d.name, err))
		}
	}
	if j.memory == nil {
		return nil
	}
	src, err := backup.NewFileSource(j.memory)
	if err != nil {
		return err
	}
	w, err := s.Disk(ctx, backup.DiskOptions{Name: memoryDisk, Size: src.Size()})
	if err != nil {
		return because(ctx, err)
	}
	j.tell(&v1.NodeBackupProgress{Step: "storing memory", Progress: 0.99})
	if _, err = backup.Store(ctx, w, src, backup.StoreOptions{BlockSize: j.info.BlockSize, Limit: limit}); err != nil {
		return because(ctx, fmt.Errorf("memory: %w", err))
	}
	j.point.Memory = memoryDisk
	j.point.Disks = append(j.point.Disks, backup.Disk{Name: memoryDisk, Size: src.Size()})
	return because(ctx, j.finish(ctx, w))
}

// readDisk stores one disk.
func (j *backupJob) readDisk(ctx context.Context, s backup.Session, d *pointDisk, r *diskReading, parent backup.PointReader, before *int64) error {
	o := backup.DiskOptions{Name: d.name, Size: d.size, Incremental: !d.full()}
	if d.parent {
		o.ParentPoint, o.ParentDisk = j.parent.ID, d.name
	}
	w, err := s.Disk(ctx, o)
	if err != nil {
		return err
	}
	r.o.Progress = func(p backup.Progress) {
		j.tell(&v1.NodeBackupProgress{Step: "reading disk " + d.name, ReadBytes: j.point.Read + p.Bytes, AddedBytes: j.point.Added,
			Progress: float64(*before+p.Position) / float64(max(j.point.Logical, 1))})
	}
	if r.o.AuditShare > 0 {
		if r.o.Audit, err = parent.Disk(ctx, d.name); err != nil {
			return err
		}
		defer r.o.Audit.Close()
	}
	res, err := backup.Store(ctx, w, r.src, r.o)
	if err != nil {
		return err
	}
	*before += d.size
	if len(res.Wrong) > 0 {
		return j.distrust(d, res.Wrong)
	}
	return j.finish(ctx, w)
}

// distrust has the next point read everything, and tells people.
func (j *backupJob) distrust(d *pointDisk, wrong []int64) error {
	j.m.event(v1.Severity_SEVERITY_ERROR, "BACKUP_TRACKING_WRONG",
		fmt.Sprintf("disk %s differs from its last restore point at %d although no change was tracked there (%d of the audited blocks); the next backup reads everything",
			d.name, wrong[0], len(wrong)))
	for _, other := range j.disks {
		other.why = "an audit found changes that were not tracked"
	}
	return errTracking
}

func (j *backupJob) finish(ctx context.Context, w backup.DiskWriter) error {
	r, err := w.Finish(ctx)
	if err != nil {
		return err
	}
	j.point.Read += r.Read
	j.point.Lacked += r.Stored
	j.point.Added += r.Packed
	return nil
}

// leastLimit is the lower of two limits; 0 is none.
func leastLimit(a, b int64) int64 {
	if a <= 0 || b > 0 && b < a {
		return b
	}
	return a
}

// end closes the moment, and notes in the VM's record what is tracked from now on.
func (j *backupJob) end(ctx context.Context, committed bool) error {
	if j.memory != nil {
		j.memory.Close()
	}
	if j.off != nil {
		j.off.end(nil)
	}
	var err error
	if j.live != nil {
		err = j.live.Close(ctx)
	}
	aerr := j.m.ask(ctx, func(ctx context.Context) error {
		defer j.m.poke()
		if j.live != nil {
			return j.endLive(ctx, committed)
		}
		return j.endOff(ctx, committed)
	})
	if errors.Is(aerr, errEnded) {
		aerr = nil // the next agent folds what was begun
	}
	if err = errors.Join(err, aerr); err != nil && committed {
		// The point is there; what is tracked is the next one's to find out.
		j.m.log.Warn("a backup has succeeded, and what it held was not let go of in order", "err", err)
		return nil
	}
	return err
}

// fleeceLimit bounds what each of some disks may save in a datastore.
func fleeceLimit(st *disk.Store, disks int) (int64, error) {
	free, err := st.Free()
	if err != nil {
		return 0, err
	}
	limit := free / 2 / int64(max(disks, 1)) &^ (1<<20 - 1)
	if limit < fleeceLeast {
		return 0, fmt.Errorf("its datastore has only %d MiB left, which is too little to save what the guest overwrites meanwhile: make room", free>>20)
	}
	return limit, nil
}
