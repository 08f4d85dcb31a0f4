package qemu

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"drover/internal/guest"
	"drover/internal/qmp"
)

// RemoteBase is a base layer that QEMU reads from an NBD server on a Unix socket. QEMU opens the socket by name, as it has
// to come back to a server that was away: its user must be able to.
type RemoteBase struct {
	Socket string `json:"socket"`
	Export string `json:"export"`
}

const (
	// reconnectDelay is how long a read waits for a server that has gone before it fails; the machine then stops, and reads again
	// when it goes on.
	reconnectDelay = 10 * time.Second
	// openTimeout is how long a machine's start waits for the server.
	openTimeout = 5 * time.Second
)

func (l *Layer) remote() bool { return l.Remote != nil }

func (l *Layer) validRemote(overlay bool) error {
	switch r := l.Remote; {
	case overlay || l.Format != Raw || !l.Shared || l.Path != "":
		return bad("layer %s: a remote base is raw and shared, has no path, and is the lowest", l.ID)
	case r.Export == "" || len(r.Export) > 256 || strings.ContainsFunc(r.Export, func(c rune) bool { return c < ' ' || c > '~' }):
		return bad("layer %s: export %q: printable ASCII up to 256 characters", l.ID, r.Export)
	}
	if err := absolute("layer "+l.ID, l.Remote.Socket); err != nil {
		return err
	}
	if len(l.Remote.Socket) > 107 {
		return bad("layer %s: socket %s: longer than 107 characters", l.ID, l.Remote.Socket)
	}
	return nil
}

// remoteNode is the one node of a remote base.
func remoteNode(l Layer, c Cache) guest.Props {
	node := guest.Props{
		{Key: "driver", Value: "nbd"}, {Key: "node-name", Value: l.ID}, {Key: "read-only", Value: true},
		{Key: "server", Value: guest.Props{{Key: "type", Value: "unix"}, {Key: "path", Value: filepath.Clean(l.Remote.Socket)}}},
		{Key: "export", Value: l.Remote.Export},
		{Key: "reconnect-delay", Value: int(reconnectDelay.Seconds())}, {Key: "open-timeout", Value: int(openTimeout.Seconds())},
	}
	return withCache(node, c)
}

// remoteBase is the remote layer of a disk, if it has one.
func (d *Disk) remoteBase() (Layer, bool) {
	if l := d.Layers[0]; l.remote() {
		return l, true
	}
	return Layer{}, false
}

func streamJob(disk string) string { return "stream-" + disk }

// StreamProgress is how far a stream has come, in bytes of the disk.
type StreamProgress struct{ Done, Total int64 }

// Stream copies what a disk still needs of its remote base into the disk, while the machine runs, and takes the base away when
// nothing is needed of it any more. A stream that an earlier call, or an agent before, has begun is gone on with. When ctx
// ends, the copying goes on by itself, until the next Stream or StopStream. A disk without a remote base is done.
// speed bounds it in bytes per second (0: not).
func (p *Process) Stream(ctx context.Context, disk string, speed int64, tell func(StreamProgress)) (err error) {
	defer func() { err = p.wrap("stream disk", disk, err) }()
	d, base, err := p.startStream(ctx, disk, speed)
	if err != nil || d == nil {
		return err
	}
	if err := p.awaitStream(ctx, disk, tell); err != nil {
		return err
	}
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return errors.Join(p.dropLayer(ctx, base.ID), p.change(func(s *state) { s.Spec.dropLayer(disk, base.ID) }))
}

func (p *Process) startStream(ctx context.Context, disk string, speed int64) (*Disk, Layer, error) {
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, Layer{}, err
	}
	defer unlock()
	d, err := p.disk(disk)
	if err != nil {
		return nil, Layer{}, err
	}
	base, ok := d.remoteBase()
	if !ok {
		return nil, Layer{}, nil
	}
	jobs, err := p.qmp.QueryJobs(ctx)
	if err != nil {
		return nil, base, err
	}
	if slices.ContainsFunc(jobs, func(j qmp.Job) bool { return j.ID == streamJob(disk) }) {
		return &d, base, nil
	}
	keep := false
	// Without a base QEMU copies all of the chain below, and forgets the backing in the header. An error ends the job: what was
	// copied stays, and the next one goes on from there.
	return &d, base, p.qmp.BlockStream(ctx, qmp.Stream{
		JobID: streamJob(disk), Device: d.Layers[len(d.Layers)-1].ID, Speed: speed, OnError: "report", AutoDismiss: &keep,
	})
}

// awaitStream waits for the end of the job and forgets it.
func (p *Process) awaitStream(ctx context.Context, disk string, tell func(StreamProgress)) error {
	job := streamJob(disk)
	for {
		wait, cancel := context.WithTimeout(ctx, time.Second)
		state, err := p.qmp.WaitJob(wait, job)
		late := wait.Err() != nil && ctx.Err() == nil
		cancel()
		if tell != nil && state.Total > 0 {
			tell(StreamProgress{Done: state.Progress, Total: state.Total})
		}
		switch {
		case state.Status == qmp.JobConcluded:
			undo, cancel := p.undoContext(ctx)
			defer cancel()
			return errors.Join(err, p.qmp.JobDismiss(undo, job))
		case late && !errors.Is(err, qmp.ErrGone):
			continue
		case err != nil:
			return err
		}
	}
}

// StopStream ends a stream. The disk is right, and still needs its remote base.
func (p *Process) StopStream(ctx context.Context, disk string) (err error) {
	defer func() { err = p.wrap("stop the stream of disk", disk, err) }()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return p.endJob(ctx, streamJob(disk))
}

// UserNet is a network that QEMU itself plays for one NIC: DHCP, and nothing beyond it but the forwarded ports.
type UserNet struct {
	Net     string    `json:"net,omitempty"` // CIDR; empty: 10.0.2.0/24
	Forward []Forward `json:"forward,omitempty"`
}

// Forward leads a TCP port of the host's loopback to one of the guest.
type Forward struct {
	Host  int    `json:"host"`
	Addr  string `json:"addr,omitempty"` // the guest's; empty: the first that DHCP gives
	Guest int    `json:"guest"`
}

func (u *UserNet) validate(nic string) error {
	if u.Net != "" && !cidrRE.MatchString(u.Net) {
		return bad("NIC %s: network %q", nic, u.Net)
	}
	for _, f := range u.Forward {
		if f.Host < 1 || f.Host > 65535 || f.Guest < 1 || f.Guest > 65535 || f.Addr != "" && !ip4RE.MatchString(f.Addr) {
			return bad("NIC %s: forward of port %d to %s port %d", nic, f.Host, f.Addr, f.Guest)
		}
	}
	return nil
}

// netdev is the argument of -netdev.
func (u *UserNet) netdev(id string) string {
	arg := "user,id=" + id + ",ipv6=off,restrict=on"
	if u.Net != "" {
		arg += ",net=" + u.Net
	}
	for _, f := range u.Forward {
		arg += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-%s:%d", f.Host, f.Addr, f.Guest)
	}
	return arg
}
