package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
	"drover/internal/disk"
	"drover/internal/guest"
	"drover/internal/qemu"
	"drover/internal/resource"
)

// freezeTimeout is how long a guest may take to freeze its file systems; it is thawed in any case.
const freezeTimeout = 10 * time.Second

var snapshotForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// snapRecord is what a snapshot needs besides its disks: version 1 of snap-NAME.json in the VM's record.
type snapRecord struct {
	Version int                 `json:"version"`
	Spec    []byte              `json:"spec"`           // as it ran, binary protobuf
	QEMU    *qemu.Spec          `json:"qemu,omitempty"` // with memory: the machine that the memory belongs to
	Accel   guest.Accel         `json:"accel,omitempty"`
	Places  map[string]int      `json:"places"`
	Made    map[string]madeDisk `json:"made"`
}

func (m *machine) snapPath(name string) string     { return filepath.Join(m.dir, "snap-"+name+".json") }
func (m *machine) snapVarsPath(name string) string { return filepath.Join(m.dir, "snap-"+name+".fd") }

// storesInUse are the datastores that have disks of the VM.
func (m *machine) storesInUse() ([]*disk.Store, error) {
	paths := map[string]bool{}
	for _, made := range m.local.Made {
		paths[made.Path] = true
	}
	var out []*disk.Store
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		st, err := m.a.stores.at(p)
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, nil
}

// has says whether any datastore has the snapshot, and whether it is only half made.
func (m *machine) hasSnapshot(stores []*disk.Store, name string) (found, pending bool, err error) {
	for _, st := range stores {
		list, err := st.Snapshots(m.uid)
		if err != nil {
			return false, false, err
		}
		for _, s := range list {
			if s.Name == name {
				found, pending = true, pending || s.Pending
			}
		}
	}
	return found, pending, nil
}

// takeSnapshot freezes the disks, and with memory the machine. It returns the size of the memory image.
func (m *machine) takeSnapshot(ctx context.Context, req *v1.NodeSnapshotRequest, step func(string)) (int64, error) {
	name := req.GetSnapshot()
	if err := m.settledRevert(); err != nil {
		return 0, err
	}
	if err := m.wholeDisks(); err != nil {
		return 0, err
	}
	stores, err := m.storesInUse()
	if err != nil {
		return 0, err
	}
	if len(stores) == 0 {
		return 0, m.precondition("NO_DISKS", "has no disks, so there is nothing to snapshot", "")
	}
	e, err := m.beginOperation(entry{Operation: req.GetOperation(), Kind: "snapshot", Snapshot: name})
	if err != nil || e.Done {
		return e.Result, err
	}
	found, _, err := m.hasSnapshot(stores, name)
	switch {
	case err != nil:
		return 0, err
	case found && e.Again:
		// Finished, but the agent died before it was noted.
		size := m.memorySize(stores, name)
		return size, m.endOperation(e.Operation, size)
	case found:
		return 0, &resource.Error{Code: resource.Exists, Kind: resource.KindSnapshot, Name: m.name() + "/" + name, Reason: "NAME_TAKEN", Message: "exists already"}
	}
	p := m.process()
	if req.GetMemory() && p == nil {
		return 0, m.notRunning()
	}
	var size int64
	if p == nil {
		err = m.snapshotOff(ctx, stores, name)
	} else {
		size, err = m.snapshotLive(ctx, p, stores, req, step)
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("snapshot %s of VM %s: %w", name, m.name(), err), m.dropOperation(e.Operation))
	}
	m.local.Snapshot = m.name() + "/" + name
	if err := m.save(); err != nil {
		return 0, err
	}
	return size, m.endOperation(e.Operation, size)
}

func (m *machine) precondition(reason, message, remedy string) error {
	return &resource.Error{Code: resource.Precondition, Kind: resource.KindVM, Name: m.name(), Reason: reason, Message: message, Remedy: remedy}
}

// snapRecordOf is the machine as it is.
func (m *machine) snapRecordOf(q *qemu.Spec) (snapRecord, error) {
	spec := m.local.Run.spec()
	if m.local.Run == nil {
		spec = m.vmSpec()
	}
	data, err := proto.Marshal(spec)
	return snapRecord{Version: 1, Spec: data, QEMU: q, Accel: m.a.accel.name, Places: m.local.Places, Made: m.local.Made}, err
}

// writeSnapRecord notes the machine as it is.
func (m *machine) writeSnapRecord(name string, q *qemu.Spec) error {
	r, err := m.snapRecordOf(q)
	if err != nil {
		return err
	}
	if err := writeJSON(m.snapPath(name), r); err != nil {
		return err
	}
	vars, err := os.ReadFile(filepath.Join(m.dir, firmwareVars))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return writeFile(m.snapVarsPath(name), vars, 0o600)
}

func (m *machine) snapshotOff(ctx context.Context, stores []*disk.Store, name string) error {
	if err := m.writeSnapRecord(name, nil); err != nil {
		return err
	}
	for i, st := range stores {
		if err := st.Snapshot(ctx, m.uid, name); err != nil {
			for _, done := range stores[:i] {
				_, derr := done.DeleteSnapshot(context.WithoutCancel(ctx), m.uid, name, false)
				err = errors.Join(err, derr)
			}
			return errors.Join(err, m.dropSnapRecord(name))
		}
	}
	return nil
}

func (m *machine) dropSnapRecord(name string) error {
	return errors.Join(os.RemoveAll(m.snapPath(name)), os.RemoveAll(m.snapVarsPath(name)))
}

func (m *machine) snapshotLive(ctx context.Context, p *qemu.Process, stores []*disk.Store, req *v1.NodeSnapshotRequest, step func(string)) (size int64, err error) {
	name := req.GetSnapshot()
	begun := 0
	done := false
	undo := context.WithoutCancel(ctx)
	defer func() {
		if done {
			return
		}
		for _, st := range stores[:begun] {
			err = errors.Join(err, st.AbortSnapshot(undo, m.uid, name))
		}
		err = errors.Join(err, m.dropSnapRecord(name))
	}()
	for _, st := range stores {
		if err := st.BeginSnapshot(ctx, m.uid, name); err != nil {
			return 0, err
		}
		begun++
	}
	overlays := map[string]qemu.Layer{}
	for _, d := range m.local.Run.spec().GetDisks() {
		if d.GetReadOnly() {
			continue
		}
		q, err := m.qemuDisk(d)
		if err != nil {
			return 0, err
		}
		overlays[q.ID] = q.Layers[len(q.Layers)-1]
	}
	var memory *os.File
	if req.GetMemory() {
		if memory, err = stores[0].CreateMemory(ctx, m.uid, name); err != nil {
			return 0, err
		}
		defer memory.Close()
		step("saving memory")
	}
	if req.GetQuiesce() {
		thaw, err := m.freeze(ctx)
		if err != nil {
			return 0, err
		}
		defer thaw()
	}
	spec := p.Spec()
	if err := m.writeSnapRecord(name, &spec); err != nil {
		return 0, err
	}
	if err := p.Snapshot(ctx, overlays, memory); err != nil {
		return 0, m.busyError(err)
	}
	// From here QEMU writes to the new layers: there is no way back but by a delete.
	done = true
	if memory != nil {
		if err := memory.Sync(); err != nil {
			return 0, err
		}
		if info, err := memory.Stat(); err == nil {
			size = info.Size()
		}
	}
	for _, st := range stores {
		if err := st.FinishSnapshot(undo, m.uid, name); err != nil {
			return 0, err
		}
	}
	return size, m.carryTracks() // saved with the snapshot's name
}

// freeze has the guest write everything out and hold still. The returned function ends that, whatever happens.
func (m *machine) freeze(ctx context.Context) (thaw func(), err error) {
	g := m.watchOfGuest()
	if g == nil {
		return nil, m.notRunning()
	}
	undo := context.WithoutCancel(ctx)
	thaw = func() {
		tctx, cancel := context.WithTimeout(undo, freezeTimeout)
		defer cancel()
		if _, err := g.client.Thaw(tctx); err != nil {
			m.log.Error("the guest's file systems were frozen and may be so still", "err", err)
			m.event(v1.Severity_SEVERITY_ERROR, "VM_NOT_THAWED", "the guest agent did not thaw the guest's file systems: "+err.Error())
			return
		}
		m.local.Frozen = false
		m.note()
	}
	// Written down before, so that an agent that dies now leaves no guest that stands still.
	m.local.Frozen = true
	if err := m.save(); err != nil {
		return nil, err
	}
	fctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	if _, err := g.client.Freeze(fctx); err != nil {
		thaw()
		return nil, m.guestError("freeze the file systems", err)
	}
	return thaw, nil
}

// thawLeft thaws a guest that an agent before has frozen.
func (m *machine) thawLeft(ctx context.Context) {
	g := m.watchOfGuest()
	if !m.local.Frozen || g == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	if _, err := g.client.Thaw(ctx); err != nil {
		m.log.Error("the guest's file systems were frozen by an agent before and may be so still", "err", err)
		m.event(v1.Severity_SEVERITY_ERROR, "VM_NOT_THAWED", "the guest agent did not thaw the guest's file systems: "+err.Error())
	}
	m.local.Frozen = false
	m.note()
}

// notRead refuses to change the layers of a running VM that is being read.
func (m *machine) notRead() error {
	m.mu.Lock()
	busy := m.backingUp
	m.mu.Unlock()
	if m.process() != nil && (busy || len(m.points) > 0) {
		return m.busyError(qemu.ErrBusy)
	}
	return nil
}

// busyError says in words that a backup is in the way.
func (m *machine) busyError(err error) error {
	if !errors.Is(err, qemu.ErrBusy) {
		return err
	}
	m.mu.Lock()
	busy := m.backingUp
	var open []string
	for id, p := range m.points {
		open = append(open, fmt.Sprintf("%s (open until %s)", id, p.expire.UTC().Format(time.RFC3339)))
	}
	m.mu.Unlock()
	if len(open) == 0 || busy {
		return m.precondition("BACKUP_RUNNING", "is being backed up: its layers can't change meanwhile", "wait until the backup has ended, or cancel its task")
	}
	slices.Sort(open)
	return m.precondition("BACKUP_RUNNING", "is being read through protection point "+strings.Join(open, ", ")+": its layers can't change meanwhile",
		"have the program that opened it release it, or wait until it expires")
}

func (m *machine) memorySize(stores []*disk.Store, name string) int64 {
	for _, st := range stores {
		if f, err := st.OpenMemory(m.uid, name); err == nil {
			defer f.Close()
			if info, err := f.Stat(); err == nil {
				return info.Size()
			}
		}
	}
	return 0
}

// mendSnapshots finishes or takes back what an agent before left half done. It is called once, before the actor acts.
func (m *machine) mendSnapshots(ctx context.Context) error {
	stores, err := m.storesInUse()
	if err != nil {
		return err
	}
	tops := map[string]bool{}
	p := m.process()
	if p != nil {
		for _, d := range p.Spec().Disks {
			for _, l := range d.Layers {
				tops[l.ID] = true
			}
		}
	}
	for _, st := range stores {
		list, err := st.Snapshots(m.uid)
		if errors.Is(err, disk.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		for _, s := range list {
			if s.Pending {
				if err := m.mendSnapshot(ctx, st, s, p != nil, tops); err != nil {
					return fmt.Errorf("snapshot %s, which was cut off: %w", s.Name, err)
				}
			}
		}
		if err := m.mendMerges(ctx, st, p != nil, tops); err != nil {
			return err
		}
	}
	return nil
}

// mendSnapshot: if QEMU switched to the new layers, the snapshot is whole. If it did not, it never was. If QEMU is gone
// nobody can tell, but the disks are right with the new layers; then the snapshot goes, and the manager asks again.
func (m *machine) mendSnapshot(ctx context.Context, st *disk.Store, s disk.Snapshot, running bool, there map[string]bool) error {
	switched := false
	for _, name := range s.Disks {
		chain, err := st.Chain(m.uid, name)
		if err != nil {
			return err
		}
		switched = switched || there[nodeName(chain[0])]
	}
	switch {
	case switched:
		return st.FinishSnapshot(ctx, m.uid, s.Name)
	case running:
		return errors.Join(st.AbortSnapshot(ctx, m.uid, s.Name), m.dropSnapRecord(s.Name))
	}
	if err := st.FinishSnapshot(ctx, m.uid, s.Name); err != nil {
		return err
	}
	m.local.Compact = true
	_, err := st.DeleteSnapshot(ctx, m.uid, s.Name, false)
	return errors.Join(err, m.dropSnapRecord(s.Name))
}

// deleteSnapshot forgets a snapshot and folds what only it kept apart.
func (m *machine) deleteSnapshot(ctx context.Context, req *v1.NodeSnapshotRequest, step func(string)) error {
	name := req.GetSnapshot()
	if err := m.settledRevert(); err != nil {
		return err
	}
	if err := m.notRead(); err != nil {
		return err
	}
	e, err := m.beginOperation(entry{Operation: req.GetOperation(), Kind: "delete", Snapshot: name})
	if err != nil || e.Done {
		return err
	}
	stores, err := m.storesInUse()
	if err != nil {
		return err
	}
	p := m.process()
	found := false
	for _, st := range stores {
		_, err := st.DeleteSnapshot(ctx, m.uid, name, p != nil)
		var used *disk.InUseError
		switch {
		case errors.Is(err, disk.ErrNotFound):
			continue
		case errors.As(err, &used):
			return errors.Join(m.precondition("HAS_CLONES", used.Error(), "delete the clones first"), m.dropOperation(e.Operation))
		case err != nil:
			return err
		}
		found = true
	}
	if err := m.dropSnapRecord(name); err != nil {
		return err
	}
	if m.local.Snapshot == m.name()+"/"+name {
		m.local.Snapshot = m.parentSnapshot(stores)
	}
	m.local.Compact = true
	if err := m.save(); err != nil {
		return err
	}
	if !found && !e.Again {
		return errors.Join(&resource.Error{Code: resource.NotFound, Kind: resource.KindSnapshot, Name: m.name() + "/" + name,
			Reason: "NOT_FOUND", Message: "is not on this host"}, m.dropOperation(e.Operation))
	}
	step("merging layers")
	if p == nil {
		err = m.compact(ctx)
	} else {
		err = m.mergeLive(ctx, p, stores)
	}
	if err != nil {
		return err
	}
	return m.endOperation(e.Operation, 0)
}

// parentSnapshot is the snapshot that the disks descend from, by name.
func (m *machine) parentSnapshot(stores []*disk.Store) string {
	for _, st := range stores {
		list, err := st.Snapshots(m.uid)
		if err != nil {
			continue
		}
		for _, s := range list {
			if s.Current {
				return m.name() + "/" + s.Name
			}
		}
	}
	return ""
}

func readSnapRecord(path string) (*snapRecord, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(snapRecord)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if r.Version != 1 {
		return nil, fmt.Errorf("read %s: version %d; this Drover knows 1", path, r.Version)
	}
	return r, nil
}
