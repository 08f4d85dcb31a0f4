package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/backup"
	"drover/internal/backup/remote"
	"drover/internal/resource"
	"drover/internal/rpc"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
)

// What the test's host does for backups: it has disks in memory, and is a real client of the vault that it is sent to.

func (r *rig) repositories() droverv1connect.RepositoryServiceClient {
	return droverv1connect.NewRepositoryServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

func (r *rig) policies() droverv1connect.BackupPolicyServiceClient {
	return droverv1connect.NewBackupPolicyServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

func (r *rig) backups() droverv1connect.BackupServiceClient {
	return droverv1connect.NewBackupServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}

// disk is what a VM's disk holds; block n of a new one is full of a number that follows from the VM.
func (h *testHost) disk(uid, name string, size int64) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.content == nil {
		h.content = map[string][]byte{}
	}
	key := uid + "/" + name
	if h.content[key] == nil {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(i>>9) ^ uid[i%8]
		}
		h.content[key] = b
	}
	return h.content[key]
}

func (h *testHost) write(uid, name string, off int, data []byte) {
	b := h.disk(uid, name, 1<<20)
	h.mu.Lock()
	defer h.mu.Unlock()
	copy(b[off:], data)
}

func (h *testHost) dial(t *v1.VaultTarget) (*remote.Repository, func(), error) {
	c, done, err := remote.Dial(t.Vault, h.credential, h.trust)
	if err != nil {
		return nil, nil, err
	}
	return remote.New(remote.Options{Client: c, Repository: t.Vault.Repository, Grant: t.Vault.Grant, Retry: 2 * time.Second}), done, nil
}

// waits is what every operation begins with: it is held, or fails, as the test wants.
func (h *testHost) waits(ctx context.Context, uid string, epoch int64) error {
	h.mu.Lock()
	hold, fail, vm := h.hold, h.fail, h.vms[uid]
	h.mu.Unlock()
	if vm == nil || vm.Status.Epoch != epoch {
		return &resource.Error{Code: resource.Conflict, Reason: "EPOCH_STALE", Message: "not this host's"}
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fail
}

func (h *testHost) Backup(ctx context.Context, req *v1.NodeBackupRequest, st *connect.ServerStream[v1.NodeBackupProgress]) error {
	if err := h.waits(ctx, req.Uid, req.Epoch); err != nil {
		return err
	}
	repo, done, err := h.dial(req.Target)
	if err != nil {
		return err
	}
	defer done()
	have, err := repo.Points(ctx, req.Uid)
	if err != nil {
		return err
	}
	p := backup.Point{ID: req.Point, VMUID: req.Uid, VM: req.Vm, Time: time.Now(), Labels: req.Labels, Consistency: "crash", Parent: req.Parent}
	for _, x := range have {
		if x.ID == req.Point {
			p = x
		}
	}
	if len(p.Disks) == 0 {
		if p, err = h.writePoint(ctx, repo, req, p); err != nil {
			return err
		}
		h.set(func() { h.points++ })
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return st.Send(&v1.NodeBackupProgress{Done: true, Progress: 1, Point: b})
}

func (h *testHost) writePoint(ctx context.Context, repo backup.Repository, req *v1.NodeBackupRequest, p backup.Point) (_ backup.Point, err error) {
	info, err := repo.Info(ctx)
	if err != nil {
		return p, err
	}
	o := backup.SessionOptions{Purpose: "test", VMUID: req.Uid}
	if req.Parent != "" {
		o.Pins = []string{req.Parent}
	}
	s, err := repo.Begin(ctx, o)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for _, d := range req.Definition.Spec.Disks {
		data := bytes.Clone(h.disk(req.Uid, d.Name, max(d.SizeBytes, 1<<20)))
		do := backup.DiskOptions{Name: d.Name, Size: int64(len(data)), ParentPoint: req.Parent}
		if req.Parent != "" {
			do.ParentDisk = d.Name
		}
		w, err := s.Disk(ctx, do)
		if err != nil {
			return p, err
		}
		for i := 0; i*info.BlockSize < len(data); i++ {
			if err := w.Put(ctx, int64(i), data[i*info.BlockSize:min((i+1)*info.BlockSize, len(data))]); err != nil {
				return p, err
			}
		}
		res, err := w.Finish(ctx)
		if err != nil {
			return p, err
		}
		p.Disks = append(p.Disks, backup.Disk{Name: d.Name, Size: int64(len(data))})
		p.Logical += int64(len(data))
		p.Read += res.Read
		p.Lacked += res.Stored
		p.Added += res.Packed
	}
	if p.Definition, err = protojson.Marshal(req.Definition); err != nil {
		return p, err
	}
	return s.Commit(ctx, p)
}

func (h *testHost) Restore(ctx context.Context, req *v1.NodeRestoreRequest, st *connect.ServerStream[v1.NodeRestoreProgress]) error {
	if req.Instant {
		if err := st.Send(&v1.NodeRestoreProgress{Ready: true}); err != nil {
			return err
		}
	}
	if err := h.waits(ctx, req.Uid, req.Epoch); err != nil {
		return err
	}
	repo, done, err := h.dial(req.Source)
	if err != nil {
		return err
	}
	defer done()
	p, err := repo.OpenPoint(ctx, req.Point)
	if err != nil {
		return err
	}
	defer p.Close()
	for _, d := range req.Disks {
		r, err := p.Disk(ctx, d.From)
		if err != nil {
			return err
		}
		b := make([]byte, r.Size())
		if err := errors.Join(r.ReadAt(ctx, b, 0), r.Close()); err != nil {
			return err
		}
		h.set(func() { h.content[req.Uid+"/"+d.To] = b })
	}
	return st.Send(&v1.NodeRestoreProgress{Done: true, Progress: 1})
}

func (h *testHost) TestPoint(ctx context.Context, req *v1.NodeTestRequest, st *connect.ServerStream[v1.NodeTestProgress]) error {
	h.mu.Lock()
	fail := h.fail
	h.mu.Unlock()
	res := &v1.PointTest{Passed: fail == nil, Checks: []string{"agent: answered"}, Screenshot: []byte("\x89PNG")}
	if fail != nil {
		res.Checks = []string{"agent: " + fail.Error()}
	}
	return st.Send(&v1.NodeTestProgress{Done: true, Result: res})
}

// repository makes one in a directory, served by the manager or by a host.
func (r *rig) repository(t *testing.T, name string, change ...func(*v1.Repository)) *v1.Repository {
	t.Helper()
	x := &v1.Repository{Meta: &v1.Meta{Name: name}, Spec: &v1.RepositorySpec{Location: t.TempDir() + "/" + name}}
	for _, c := range change {
		c(x)
	}
	res, err := r.repositories().Create(t.Context(), &v1.CreateRepositoryRequest{Repository: x, Passphrase: "a long passphrase"})
	if err != nil {
		t.Fatalf("create repository %s: %v", name, err)
	}
	if res.RecoveryKey == "" {
		t.Errorf("repository %s has no recovery key", name)
	}
	return res.Repository
}

// backUp makes a point and returns it.
func (r *rig) backUp(t *testing.T, vm, repository string) *v1.RestorePoint {
	t.Helper()
	task, err := r.backups().Create(t.Context(), &v1.CreateBackupRequest{Vm: vm, Repository: repository})
	if err != nil {
		t.Fatalf("back up %s: %v", vm, err)
	}
	if got := r.awaitTask(t, task.Meta.Name); got.Status.State != v1.TaskState_TASK_STATE_SUCCEEDED {
		t.Fatalf("back up %s: %v", vm, got.Status)
	}
	list, err := r.backups().List(t.Context(), &v1.ListRequest{Filter: fmt.Sprintf("status.vm = %q", vm), OrderBy: "status.time desc"})
	if err != nil || len(list.Points) == 0 {
		t.Fatalf("points of %s: %v, %v", vm, list, err)
	}
	return list.Points[0]
}

// done waits for a task that must succeed.
func (r *rig) done(t *testing.T, task *v1.Task, err error) *v1.Task {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	got := r.awaitTask(t, task.Meta.Name)
	if got.Status.State != v1.TaskState_TASK_STATE_SUCCEEDED {
		t.Fatalf("%s of %s: %v", got.Spec.Kind, got.Spec.Target, got.Status)
	}
	return got
}

// beat has the host be heard until the test ends.
func (h *testHost) beat(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			_ = h.hello(ctx) // the manager may be restarting
			select {
			case <-time.After(300 * time.Millisecond):
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() { stop(); <-done })
}
