package host

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
	"drover/internal/disk"
	"drover/internal/nbd"
	"drover/internal/resource"
)

// imported is a disk that others write to.
type imported struct {
	off  *offRead
	disk *lentDisk
	ends context.CancelFunc
}

// OpenImport makes a disk of a VM that is off writable.
func (n *node) OpenImport(ctx context.Context, req *v1.NodePointRequest) (*v1.NodePointResponse, error) {
	m, err := n.find(req.GetUid(), req.GetEpoch())
	if err != nil {
		return nil, err
	}
	address, err := n.a.lending.address(n.a)
	if err != nil {
		return nil, err
	}
	id := pointID(req.GetOperation())
	var out *v1.Import
	err = m.ask(ctx, func(ctx context.Context) error {
		var err error
		out, err = m.openImport(ctx, id, req)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open disk %s of VM %s for writing: %w", req.GetDisk(), m.name(), err)
	}
	out.Name, out.Uri = m.name()+"/"+id, "nbds://"+address+"/"+out.Uri
	return &v1.NodePointResponse{Import: out}, nil
}

func (m *machine) openImport(ctx context.Context, id string, req *v1.NodePointRequest) (out *v1.Import, err error) {
	if err := m.settledRevert(); err != nil {
		return nil, err
	}
	if m.local.Run != nil || m.wantsToRun() {
		return nil, m.precondition("VM_NOT_OFF", "is not off", "stop it first")
	}
	if len(m.readings) > 0 || len(m.imports) > 0 {
		return nil, m.precondition("BACKUP_RUNNING", "is being read by a backup or through a protection point, or written to by another import", "wait until that has ended, or release it")
	}
	j := &backupJob{m: m}
	if err := m.disksOf(j); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(j.disks, func(d *pointDisk) bool { return d.name == req.GetDisk() })
	if i < 0 {
		return nil, &resource.Error{Code: resource.NotFound, Kind: resource.KindDisk, Name: m.name() + "/" + req.GetDisk(), Reason: "NOT_FOUND", Message: "is not on this host"}
	}
	d := j.disks[i]
	// Whoever writes now is not seen by what tracks changes.
	m.local.doubt(d.name, "it was open for writing by an import")
	if err := m.save(); err != nil {
		return nil, err
	}
	off, err := m.newOffRead()
	if err != nil {
		return nil, err
	}
	m.forgetReading(off)
	path, err := off.lend(m.uid, d.name, d.store, disk.Lend{Write: true})
	var client *nbd.Client
	if err == nil {
		dctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		client, err = nbd.Dial(dctx, "unix", path, nbd.Options{Export: d.name, Contexts: []string{nbd.Allocation}, InFlight: sourceInFlight})
	}
	if err != nil {
		off.end(nil)
		return nil, err
	}
	l := &lentDisk{pointDisk: d, token: newSecret(), src: &diskSource{point: client}}
	life, ends := context.WithCancel(off.ctx)
	if m.imports == nil {
		m.imports = map[string]*imported{}
	}
	m.imports[id] = &imported{off: off, disk: l, ends: ends}
	m.a.lending.put(l.token, importExport{lentExport{l.src}})
	wait := lifetimeOf(req)
	m.a.actors.Go(func() {
		t := m.a.clk.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-life.Done():
		}
		if m.a.life.Err() != nil {
			m.closeLent([]*lentDisk{l})
			off.end(nil)
			return
		}
		err := m.ask(m.a.life, func(context.Context) error { return m.releaseImport(id) })
		if err != nil && !errors.Is(err, errEnded) {
			m.log.Warn("an import was not released", "import", id, "err", err)
		}
	})
	return &v1.Import{Uri: l.token, SizeBytes: client.Size(), ExpireTime: timestamppb.New(m.a.clk.Now().Add(wait))}, nil
}

// releaseImport makes what was written durable and lets go of the disk. It runs in the VM's actor.
func (m *machine) releaseImport(id string) error {
	i := m.imports[id]
	if i == nil {
		return nil
	}
	delete(m.imports, id)
	m.a.lending.drop(i.disk.token)
	ctx, cancel := context.WithTimeout(i.off.ctx, askTimeout)
	defer cancel()
	err := i.disk.src.point.Flush(ctx)
	m.closeLent([]*lentDisk{i.disk})
	i.off.end(nil)
	i.ends()
	m.poke()
	if err != nil {
		return fmt.Errorf("what was written to disk %s may not be durable: %w", i.disk.name, err)
	}
	return nil
}

// importsOpen keeps a VM from starting while others write to its disks.
func (m *machine) importsOpen() error {
	for id, i := range m.imports {
		return notYet("disk %s is open for writing by an import; it ends with: drover protection release %s/%s", i.disk.name, m.name(), id)
	}
	return nil
}
