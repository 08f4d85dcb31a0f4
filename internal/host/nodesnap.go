package host

import (
	"context"

	"connectrpc.com/connect"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
)

// snapshotCall runs one of the snapshot operations in the VM's actor and tells its steps.
func (n *node) snapshotCall(ctx context.Context, req *v1.NodeSnapshotRequest, stream *connect.ServerStream[v1.NodeProgress],
	do func(context.Context, *machine, func(string)) (int64, error),
) error {
	m, err := n.find(req.GetUid(), req.GetEpoch())
	if err != nil {
		return err
	}
	if !snapshotForm.MatchString(req.GetSnapshot()) {
		return &resource.Error{Code: resource.Invalid, Kind: resource.KindSnapshot, Name: req.GetSnapshot(), Reason: "NAME_INVALID", Message: "is not a snapshot's name"}
	}
	steps := make(chan string, 16)
	result := make(chan error, 1)
	var size int64
	go func() {
		result <- m.ask(ctx, func(ctx context.Context) error {
			defer m.poke()
			// Asked again: while this waited, the VM may have been given to another host.
			if _, err := n.find(req.GetUid(), req.GetEpoch()); err != nil {
				return err
			}
			var err error
			size, err = do(ctx, m, func(s string) {
				select {
				case steps <- s:
				default:
				}
			})
			return err
		})
	}()
	for {
		select {
		case s := <-steps:
			if err := stream.Send(&v1.NodeProgress{Step: s, Progress: 0.5}); err != nil {
				<-result // ctx has ended with the stream
				return err
			}
		case err := <-result:
			if err != nil {
				return err
			}
			return stream.Send(&v1.NodeProgress{Progress: 1, Done: true, MemorySizeBytes: size})
		}
	}
}

// CreateSnapshot freezes a VM's disks, and with memory the whole machine.
func (n *node) CreateSnapshot(ctx context.Context, req *v1.NodeSnapshotRequest, stream *connect.ServerStream[v1.NodeProgress]) error {
	return n.snapshotCall(ctx, req, stream, func(ctx context.Context, m *machine, step func(string)) (int64, error) {
		return m.takeSnapshot(ctx, req, step)
	})
}

// RevertSnapshot takes a VM back.
func (n *node) RevertSnapshot(ctx context.Context, req *v1.NodeSnapshotRequest, stream *connect.ServerStream[v1.NodeProgress]) error {
	return n.snapshotCall(ctx, req, stream, func(ctx context.Context, m *machine, step func(string)) (int64, error) {
		return 0, m.revert(ctx, req, step)
	})
}

// DeleteSnapshot forgets a snapshot and merges what it held.
func (n *node) DeleteSnapshot(ctx context.Context, req *v1.NodeSnapshotRequest, stream *connect.ServerStream[v1.NodeProgress]) error {
	return n.snapshotCall(ctx, req, stream, func(ctx context.Context, m *machine, step func(string)) (int64, error) {
		return 0, m.deleteSnapshot(ctx, req, step)
	})
}
