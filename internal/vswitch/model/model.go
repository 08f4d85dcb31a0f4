package model

import (
	"fmt"
	"maps"
	"net"

	"drover/internal/vswitch/table"
)

// Namer knows the names behind numbers.
type Namer interface {
	// Port is what the port behind a device is called: "web/net0".
	Port(ifindex uint32) string
	// Network is what a network is called.
	Network(net uint32) string
	// Device is the name of a device of this host.
	Device(ifindex uint32) string
	// Host is whose tunnel endpoint that is.
	Host(vtep uint32) string
}

// numbers is a Namer that knows no names.
type numbers struct{}

func (numbers) Port(i uint32) string    { return fmt.Sprintf("port %d", i) }
func (numbers) Network(n uint32) string { return fmt.Sprintf("network %d", n) }
func (numbers) Device(i uint32) string  { return fmt.Sprintf("device %d", i) }
func (numbers) Host(v uint32) string    { return fmt.Sprintf("host %d", v) }

// Model is a host's datapath on paper. Frames spend its rates, one after another, and leave notes in its bindings.
type Model struct {
	// Trace asks for Steps.
	Trace bool

	t     *table.Tables
	names Namer
	// stamps are when buckets are full again, in 1/16 ns: those of t.Meters and what frames spent since.
	stamps map[bucketKey]uint64
	// notes are bindings that frames made, and nil for those that they took away; last is each slot's, if its lease is provisional.
	notes map[table.BindingKey]*table.Binding
	last  map[uint32]table.BindingKey
}

// New makes a model of t, which is only read and must not change as long as the model is used. Without names nil numbers are shown.
func New(t *table.Tables, names Namer) *Model {
	if names == nil {
		names = numbers{}
	}
	return &Model{t: t, names: names, stamps: map[bucketKey]uint64{}, notes: map[table.BindingKey]*table.Binding{}, last: map[uint32]table.BindingKey{}}
}

// Bindings is a copy of the bindings, with what frames changed.
func (m *Model) Bindings() map[table.BindingKey]table.Binding {
	out := maps.Clone(m.t.Bindings)
	for k, b := range m.notes {
		if b == nil {
			delete(out, k)
		} else {
			out[k] = *b
		}
	}
	return out
}

// Tag is a VLAN tag that the kernel keeps beside the frame.
type Tag struct {
	Present bool
	VID     uint16 // 0 to 4095
	TPID    uint16
}

// Frame is what comes in by a device.
type Frame struct {
	Bytes   []byte
	Tag     Tag
	GSOSize uint32
	// Checksum is where in Bytes, less a tag that is there, the kernel is yet to write a checksum; 0: nowhere.
	Checksum int
	// Now is CLOCK_BOOTTIME, Monotonic CLOCK_MONOTONIC, both in ns: leases go by the one, rates by the other.
	Now, Monotonic uint64
}

// Verdict is what becomes of a frame.
type Verdict int

// Verdicts.
const (
	// Dropped has a Reason. Frames taken by user space are dropped as PUNTED.
	Dropped Verdict = iota
	// Redirected has one output that is not a copy.
	Redirected
	// Flooded has any number of outputs, also none.
	Flooded
	// Answered went back as the answer.
	Answered
	// Passed goes on to the kernel.
	Passed
)

func (v Verdict) String() string {
	if v < Dropped || v > Passed {
		return fmt.Sprintf("VERDICT_%d", int(v))
	}
	return [...]string{"DROPPED", "REDIRECTED", "FLOODED", "ANSWERED", "PASSED"}[v]
}

// Output is a frame that leaves.
type Output struct {
	// Ifindex is the device: a port's, an uplink's, or the tunnels'.
	Ifindex uint32
	Place   table.Place
	// VTEP is the other end, of PlaceTunnel.
	VTEP uint32
	// Tagged says that the tag VID with the priority CoS was pushed.
	Tagged bool
	VID    uint16
	CoS    uint8
	// Copy says that it is a clone: of a flood, a mirror, or for a promiscuous port.
	Copy   bool
	Mirror bool
	// Bytes is the frame as it leaves, without that tag.
	Bytes []byte
}

// Drop is a frame that ended, and which slot's counters have it.
type Drop struct {
	Slot   uint32
	Reason table.Reason
	Bytes  int
}

// Count is a frame that a slot's counters have: in, or out.
type Count struct {
	Slot  uint32
	Out   bool
	Bytes int
}

// Capture is a copy for the capture ring.
type Capture struct {
	Ifindex uint32
	Point   table.CapturePoint
	Reason  table.Reason
	VID     uint16 // as in table.Capture
}

// Punt is a copy for user space.
type Punt struct {
	Kind      table.PuntKind
	ToIfindex uint32
}

// Note is a lease that the datapath took down by itself.
type Note struct {
	Key     table.BindingKey
	Binding table.Binding
}

// Step is one thing that was looked at.
type Step struct {
	// Stage is "port", "tag", "network", "control", "source-mac", "guard", "rate", "mtu", "answer", "lookup", "deliver", "uplink", "tunnel" or "flood".
	Stage  string
	Text   string
	Passed bool
}

// Result is what became of a frame.
type Result struct {
	Verdict Verdict
	Reason  table.Reason // of Dropped; else DropNone
	Net     uint32
	// Mark and Priority are what skb->mark and skb->priority are in the end.
	Mark, Priority uint32
	Outputs        []Output
	// Drops has the frame if it was dropped and that is a loss.
	Drops    []Drop
	Counts   []Count
	Captures []Capture
	Punts    []Punt
	Notes    []Note
	Steps    []Step
}

// packet is the second part of struct packet: what is behind the Ethernet header.
type packet struct {
	family       int // 4, 6 or 0
	l4           uint8
	fragment     int // 0 whole, 1 first, 2 later
	l4Offset     int
	end          int // of the IP packet in the frame
	sport, dport uint16
	hopLimit     uint8
	icmp         uint8 // ICMPv6 type
	src, dst     table.IP
}

// origin is by what kind of device a frame came in.
type origin int

const (
	fromPort origin = iota
	fromUplink
	fromTunnel
)

// walk is one frame's way.
type walk struct {
	m         *Model
	f         *Frame
	b         []byte // tag off, once rule 3 took it
	origin    origin
	ifindex   uint32
	slot      uint32
	net       uint32
	network   table.Network
	port      *table.Port // where it came from, if that is a port
	pvlan     table.PVLAN // the sender's
	community uint16
	captured  bool // somebody looks at the device
	tag       tag
	proto     uint16
	dst       table.MAC
	src       table.MAC
	p         packet
	parsed    bool
	fault     table.Reason // what parse found
	result    Result
	trace     bool
}

func (m *Model) walk(f *Frame, ifindex uint32) *walk {
	return &walk{m: m, f: f, b: f.Bytes, ifindex: ifindex, trace: m.Trace}
}

func (w *walk) say(stage string, passed bool, format string, args ...any) {
	w.result.Steps = append(w.result.Steps, Step{stage, fmt.Sprintf(format, args...), passed})
}

// drop ends the frame.
func (w *walk) drop(r table.Reason) {
	w.result.Verdict, w.result.Reason = Dropped, r
	w.result.Drops = append(w.result.Drops, Drop{w.slot, r, len(w.b)})
	if w.captured {
		w.capture(w.ifindex, table.CaptureDropped, r, w.tag.word())
	}
}

func (w *walk) count(slot uint32, out bool, bytes int) {
	w.result.Counts = append(w.result.Counts, Count{slot, out, bytes})
}

func (w *walk) capture(ifindex uint32, at table.CapturePoint, r table.Reason, vid uint16) {
	w.result.Captures = append(w.result.Captures, Capture{ifindex, at, r, vid})
}

func (w *walk) punt(kind table.PuntKind, to uint32) {
	if !w.pay(w.slot, bucketPunt, 1) {
		return
	}
	w.result.Punts = append(w.result.Punts, Punt{kind, to})
}

// binding is a row of bindings that has not expired.
func (w *walk) binding(a table.IP) (table.Binding, bool) {
	k := table.BindingKey{Net: w.net, IP: a}
	b, ok := w.m.t.Bindings[k]
	if n, noted := w.m.notes[k]; noted {
		if n == nil {
			return table.Binding{}, false
		}
		b, ok = *n, true
	}
	if !ok || b.Expires != 0 && b.Expires <= w.f.Now {
		return table.Binding{}, false
	}
	return b, true
}

func text(m table.MAC) string { return net.HardwareAddr(m[:]).String() }

// isGroup says whether a MAC is a group's.
func isGroup(m table.MAC) bool { return m[0]&1 != 0 }

var broadcast = table.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
