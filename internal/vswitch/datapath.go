package vswitch

import (
	"context"
	"errors"
	"log/slog"

	"drover/internal/vswitch/table"
)

// Config says where a datapath is kept.
type Config struct {
	// Dir is the directory of pins, in a bpffs: BPFFS/drover-TAG. It is made.
	Dir string
	Log *slog.Logger
}

// ErrUnsupported is wrapped when the kernel can't do what the datapath needs.
var ErrUnsupported = errors.New("vswitch: not supported by this kernel")

// Kind says which program a device gets.
type Kind int

// Kinds of devices.
const (
	KindPort Kind = iota
	KindUplink
	KindTunnel
)

// Device is a device of the switch.
type Device struct {
	Ifindex int
	Name    string
	Kind    Kind
}

// Datapath is one host's datapath. Its methods may be called from several goroutines.
type Datapath struct{}

// Open makes the datapath in cfg.Dir or takes over the one that is there, also one of another layout: then it copies what only the
// maps know and switches each link. No packet is lost on the way. It runs in the network namespace of the caller's thread.
func Open(ctx context.Context, cfg Config) (*Datapath, error) { return nil, errors.ErrUnsupported }

// Close lets go of the datapath, which goes on.
func (d *Datapath) Close() error { return nil }

// Remove detaches and unpins everything: the host leaves the switch.
func (d *Datapath) Remove() error { return errors.ErrUnsupported }

// Tables is a copy of the configuration as the maps hold it.
func (d *Datapath) Tables() (*table.Tables, error) { return nil, errors.ErrUnsupported }

// Apply brings the maps to want. Rows that are equal are not written; leases that the datapath noted itself (PROVISIONAL) stay.
func (d *Datapath) Apply(ctx context.Context, want *table.Tables) error { return errors.ErrUnsupported }

// Register changes rows of fdb and bindings alone: what changes most.
func (d *Datapath) Register(ctx context.Context, set map[table.FDBKey]table.FDBEntry, removed []table.FDBKey, bind map[table.BindingKey]table.Binding, unbind []table.BindingKey) error {
	return errors.ErrUnsupported
}

// Attach puts the programs of its kind on a device, at the tail. One that has them keeps its link. A port whose row is not there yet passes nothing.
func (d *Datapath) Attach(ctx context.Context, dev Device) error { return errors.ErrUnsupported }

// Detach takes the programs off a device and removes its rows, first that of the port. A device that is gone is no error.
func (d *Datapath) Detach(ifindex int) error { return errors.ErrUnsupported }

// Attached lists devices that have links here, also those that are gone.
func (d *Datapath) Attached() ([]Device, error) { return nil, errors.ErrUnsupported }

// Foreign describes programs of others on the device, tcx and classic tc.
func (d *Datapath) Foreign(ifindex int) ([]string, error) { return nil, errors.ErrUnsupported }

// Counters are a slot's.
type Counters struct {
	table.Traffic
	Drops map[table.Reason]table.DropCount
}

// Counters sums over processors.
func (d *Datapath) Counters(slots []uint32) (map[uint32]Counters, error) {
	return nil, errors.ErrUnsupported
}

// ResetCounters sets a slot's counters to zero: a new port has it now.
func (d *Datapath) ResetCounters(slot uint32) error { return errors.ErrUnsupported }

// Events calls each for every event until ctx ends. One caller at a time.
func (d *Datapath) Events(ctx context.Context, each func(*table.Event)) error {
	return errors.ErrUnsupported
}

// Punts does the same for punts.
func (d *Datapath) Punts(ctx context.Context, each func(*table.Punt)) error {
	return errors.ErrUnsupported
}

// Capture switches copies of a port's or uplink's frames on, calls each until ctx ends, and switches them off. Several at a time share the ring.
func (d *Datapath) Capture(ctx context.Context, ifindex int, each func(*table.Capture)) error {
	return errors.ErrUnsupported
}

// Try runs a program on a frame without sending anything that is not flooded, and returns the action and the frame as it left. For traces and tests.
func (d *Datapath) Try(kind Kind, ifindex int, frame []byte) (action uint32, out []byte, err error) {
	return 0, nil, errors.ErrUnsupported
}
