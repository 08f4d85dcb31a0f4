package vswitch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"drover/internal/hostnet"
	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// Config says where a datapath is kept.
type Config struct {
	// Dir is the directory of pins, in a bpffs: BPFFS/drover-TAG. It is made.
	Dir string
	// Log hears what is no error of the caller's: pins of gone devices, an upgrade. Nil: nobody.
	Log *slog.Logger
}

// Validate says what is wrong with the configuration.
func (c *Config) Validate() error {
	if !filepath.IsAbs(c.Dir) || filepath.Clean(c.Dir) == "/" {
		return fmt.Errorf("datapath directory %q: want an absolute path below a bpffs, such as /sys/fs/bpf/drover-1", c.Dir)
	}
	return nil
}

// ErrUnsupported is wrapped when the kernel can't do what the datapath needs.
var ErrUnsupported = errors.New("vswitch: not supported by this kernel")

// ErrClosed is what methods return after Close.
var ErrClosed = errors.New("vswitch: the datapath is closed")

// Kind says which program a device gets.
type Kind int

// Kinds of devices.
const (
	KindPort Kind = iota
	KindUplink
	KindTunnel
)

// String is the kind's name in errors and logs.
func (k Kind) String() string {
	switch k {
	case KindPort:
		return "port"
	case KindUplink:
		return "uplink"
	case KindTunnel:
		return "tunnel"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Device is a device of the switch.
type Device struct {
	Ifindex int
	Name    string // of Attached: empty if the device is gone
	Kind    Kind
	Gone    bool // of Attached: the device is no more; its pins and rows were removed
}

// Datapath is one host's datapath. Its methods may be called from several goroutines.
type Datapath struct {
	cfg   Config
	build build
	log   *slog.Logger
	net   *hostnet.Net // the namespace that the devices are in
	objs  datapathObjects
	maps  mapSet
	rings rings

	life sync.RWMutex // held by who uses maps without mu, and by Close

	mu sync.Mutex
	// have is what the maps hold, but for bindings, which the datapath writes too; members have the rows of the maps.
	have     *table.Tables
	captured map[uint32]int // how many captures want a device's frames
	old      []uint32       // layouts whose maps the links still use, until the first Apply
	closed   bool
}

// build is a version of the datapath: one for users, others for tests of upgrades.
type build struct {
	layout     uint32
	spec       func() (*ebpf.CollectionSpec, error)
	converters map[uint32]converter // by the old layout
	// reached is called at each step at which a crash must do no harm; an error ends the work there. Nil: nothing is called.
	reached func(step string) error
}

func (b *build) at(step string) error {
	if b.reached == nil {
		return nil
	}
	return b.reached(step)
}

func current() build {
	return build{layout: table.Layout, spec: loadDatapath, converters: nil}
}

// Open makes the datapath in cfg.Dir or takes over the one that is there. Programs of another build replace the old ones at once, in each link, if they
// have the same layout of maps. With another layout, Open makes new maps and copies what only the maps know; the old programs go on
// with the old maps until the first Apply, which fills the new ones and then switches each link: call it soon. No packet is lost on
// the way, and a crash anywhere in it is repaired by the next Open. Frames that pass while the links are switched (milliseconds) may be missing in the counters.
//
// Devices are those of the network namespace of the caller's thread; later calls may come from any thread.
// One process at a time may have a directory open.
func Open(ctx context.Context, cfg Config) (*Datapath, error) { return open(ctx, cfg, current()) }

func open(ctx context.Context, cfg Config, b build) (_ *Datapath, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("vswitch: lift the limit on locked memory: %w", err)
	}
	if err := isBPF(filepath.Dir(cfg.Dir)); err != nil {
		return nil, fmt.Errorf("datapath directory %s: %w", cfg.Dir, err)
	}
	d := &Datapath{cfg: cfg, build: b, log: cfg.Log, captured: map[uint32]int{}}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{cfg.Dir, d.linkDir(), d.mapDir(b.layout)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("datapath directory: %w", err)
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.net, err = hostnet.Current(); err != nil {
		return nil, err
	}
	if err := d.load(); err != nil {
		return nil, err
	}
	if err := errors.Join(b.at("loaded"), ctx.Err()); err != nil {
		return nil, err
	}
	if err := d.takeOver(); err != nil {
		return nil, err
	}
	if d.have, err = d.maps.read(); err != nil {
		return nil, err
	}
	if err := errors.Join(d.stopCaptures(), d.removeGone()); err != nil {
		return nil, err
	}
	return d, nil
}

// Close lets go of the datapath, which goes on. It ends captures, events and punts, and waits for those that are being read.
func (d *Datapath) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	var errs []error
	clear(d.captured)
	if d.have != nil {
		errs = append(errs, d.stopCaptures())
	}
	d.mu.Unlock()
	errs = append(errs, d.rings.close())
	d.life.Lock()
	defer d.life.Unlock()
	for _, p := range []*ebpf.Program{d.objs.PortIn, d.objs.PortOut, d.objs.UplinkIn, d.objs.TunnelIn} {
		errs = append(errs, p.Close()) // of nil, too
	}
	if d.objs.Ports != nil {
		errs = append(errs, d.objs.datapathMaps.Close())
	}
	if d.net != nil {
		errs = append(errs, d.net.Close())
	}
	return errors.Join(errs...)
}

// use keeps the maps open until done is called.
func (d *Datapath) use() (done func(), err error) {
	d.life.RLock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		d.life.RUnlock()
		return nil, ErrClosed
	}
	return d.life.RUnlock, nil
}

// Remove detaches and unpins everything: the host leaves the switch. Guests have no connectivity any more. The datapath is closed.
func (d *Datapath) Remove() error {
	err := d.remove()
	return errors.Join(err, d.Close())
}

func (d *Datapath) remove() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	var errs []error
	// Rows first: while links go one by one, no port may pass frames that only half of the datapath sees.
	errs = append(errs, d.clearPorts())
	pins, err := d.pins()
	errs = append(errs, err)
	for _, p := range pins {
		errs = append(errs, d.unpin(p))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the datapath: %w", err)
	}
	if err := os.RemoveAll(d.cfg.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the datapath: %w", err)
	}
	return nil
}

func (d *Datapath) linkDir() string { return filepath.Join(d.cfg.Dir, "links") }

func (d *Datapath) mapDir(layout uint32) string {
	return filepath.Join(d.cfg.Dir, fmt.Sprintf("maps-%d", layout))
}
