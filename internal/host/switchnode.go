package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/vswitch"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/frame"
	"drover/internal/vswitch/model"
	"drover/internal/vswitch/pcapng"
	"drover/internal/vswitch/table"
)

// place is what looking at the switch needs, copied out of the fabric. It is not changed.
type place struct {
	dp       *vswitch.Datapath
	ports    map[uint32]*nicPort
	uplinks  map[uint32]string
	networks map[string]*compile.Connection
	peers    map[netip.Addr]string
	vxlan    uint32
	booted   time.Time
}

func (f *fabric) place(ctx context.Context) (*place, error) {
	var out *place
	err := f.do(ctx, func(context.Context) error {
		if f.dp == nil || f.result == nil {
			return &resource.Error{Code: resource.Unavailable, Kind: resource.KindHost, Name: f.a.id.Host, Reason: "SWITCH_UNAVAILABLE", Message: "has no switch: " + f.broken}
		}
		out = &place{dp: f.dp, ports: maps.Clone(f.index), uplinks: map[uint32]string{}, networks: f.result.Connections, peers: map[netip.Addr]string{}, vxlan: f.vxlan.Ifindex, booted: f.booted}
		for _, u := range f.uplinks {
			if u.attached {
				out.uplinks[uint32(u.link.Index)] = u.name
			}
		}
		f.a.world.mu.Lock()
		defer f.a.world.mu.Unlock()
		for _, p := range f.a.world.peers {
			for _, s := range []string{p.GetOverlayAddress(), p.GetTunnelAddress()} {
				if a, err := netip.ParseAddr(s); err == nil {
					out.peers[a.Unmap()] = p.GetHost()
				}
			}
		}
		return nil
	})
	return out, err
}

func (p *place) port(name string) (*nicPort, error) {
	for _, x := range p.ports {
		if x.name == name {
			return x, nil
		}
	}
	return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindPort, Name: name, Reason: "PORT_OFF", Message: "has no device on this host", Remedy: "start its VM"}
}

func (p *place) network(net uint32) string {
	for name, c := range p.networks {
		if c.Net == net {
			return name
		}
	}
	return fmt.Sprintf("network %d", net)
}

// placeNames says what things are called, for the model.
type placeNames struct {
	*place
	vteps map[uint32]table.VTEP
}

func (n placeNames) Port(ifindex uint32) string {
	if p := n.ports[ifindex]; p != nil {
		return p.name
	}
	return fmt.Sprintf("device %d", ifindex)
}

func (n placeNames) Network(net uint32) string { return n.network(net) }

func (n placeNames) Device(ifindex uint32) string {
	if p := n.ports[ifindex]; p != nil {
		return p.device
	}
	if ifindex == n.vxlan {
		return "the overlay"
	}
	return cmp.Or(n.uplinks[ifindex], fmt.Sprintf("device %d", ifindex))
}

func (n placeNames) Host(vtep uint32) string {
	a := n.vteps[vtep].Addr.Addr()
	return cmp.Or(n.peers[a], a.String())
}

// tableChunk is how many rows one message has.
const tableChunk = 500

// Table streams the registrations as the datapath holds them.
func (n *node) Table(ctx context.Context, req *v1.SwitchTableRequest, stream *connect.ServerStream[v1.SwitchTableResponse]) error {
	p, err := n.a.fabric.place(ctx)
	if err != nil {
		return err
	}
	t, err := p.dp.Tables()
	if err != nil {
		return err
	}
	only := uint32(0)
	if req.GetNetwork() != "" {
		c := p.networks[req.GetNetwork()]
		if c == nil {
			return &resource.Error{Code: resource.NotFound, Kind: resource.KindNetwork, Name: req.GetNetwork(), Reason: "NETWORK_NOT_HERE", Message: "is not on host " + n.a.id.Host}
		}
		only = c.Net
	}
	addresses := map[table.FDBKey][]string{}
	for k, b := range t.Bindings {
		key := table.FDBKey{Net: k.Net, MAC: b.MAC}
		addresses[key] = append(addresses[key], k.IP.Addr().String())
	}
	names := placeNames{p, t.VTEPs}
	keys := slices.SortedFunc(maps.Keys(t.FDB), func(a, b table.FDBKey) int {
		return cmp.Or(cmp.Compare(a.Net, b.Net), slices.Compare(a.MAC[:], b.MAC[:]))
	})
	out := &v1.SwitchTableResponse{}
	for _, k := range keys {
		if only != 0 && k.Net != only {
			continue
		}
		e := t.FDB[k]
		row := &v1.TableEntry{Network: p.network(k.Net), Vni: int32(k.Net), Mac: net.HardwareAddr(k.MAC[:]).String(), Addresses: addresses[k]}
		slices.Sort(row.Addresses)
		switch e.Place {
		case table.PlaceLocal:
			row.Place, row.Target = "local", names.Port(e.Target)+" ("+names.Device(e.Target)+")"
		case table.PlaceTunnel:
			row.Place, row.Target = "tunnel", names.Host(e.Target)
		default:
			row.Place = "uplink"
		}
		if out.Entries = append(out.Entries, row); len(out.Entries) == tableChunk {
			if err := stream.Send(out); err != nil {
				return err
			}
			out = &v1.SwitchTableResponse{}
		}
	}
	if len(out.Entries) == 0 {
		return nil
	}
	return stream.Send(out)
}

// captureQueue is how many frames wait for a slow reader before they are lost.
const captureQueue = 1024

// captureTime is how long a capture runs that does not say.
const captureTime = time.Minute

// Capture streams copies of a port's frames as a pcapng file.
func (n *node) Capture(ctx context.Context, req *v1.CapturePortRequest, stream *connect.ServerStream[v1.CapturePortResponse]) error {
	p, err := n.a.fabric.place(ctx)
	if err != nil {
		return err
	}
	port, err := p.port(req.GetName())
	if err != nil {
		return err
	}
	w := pcapng.New(pcapng.Options{
		Application: "Drover " + n.a.cfg.Version, Boot: p.booted, Snap: int(req.GetSnapLength()),
		Name: func(ifindex uint32) string { return placeNames{place: p}.Port(ifindex) },
	})
	points := map[table.CapturePoint]bool{}
	for _, x := range []table.CapturePoint{table.CaptureFromGuest, table.CaptureAccepted, table.CaptureToGuest, table.CaptureDropped} {
		points[x] = slices.Contains(req.GetPoints(), pcapng.PointName(x)) || len(req.GetPoints()) == 0 && x != table.CaptureAccepted
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(req.GetTime().AsDuration(), captureTime))
	defer cancel()
	frames := make(chan *table.Capture, captureQueue)
	var lost atomic.Int64
	ended := make(chan error, 1)
	go func() {
		ended <- p.dp.Capture(ctx, int(port.ifindex), func(c *table.Capture) {
			if !points[c.Point] {
				return
			}
			x := *c
			select {
			case frames <- &x:
			default:
				lost.Add(1)
			}
		})
	}()
	err = pump(ctx, w, p, port, points, frames, &lost, req.GetCount(), stream.Send)
	cancel()
	cerr := <-ended
	if errors.Is(cerr, context.Canceled) || errors.Is(cerr, context.DeadlineExceeded) {
		cerr = nil
	}
	return errors.Join(err, cerr)
}

// pump writes frames as they come, until ctx ends or there were enough.
func pump(ctx context.Context, w *pcapng.Writer, p *place, port *nicPort, points map[table.CapturePoint]bool, frames <-chan *table.Capture, lost *atomic.Int64, most int64, send func(*v1.CapturePortResponse) error) error {
	head := w.AppendHeader(nil)
	for x := table.CaptureFromGuest; x <= table.CaptureDropped; x++ {
		if points[x] {
			head = w.AppendInterface(head, port.ifindex, x)
		}
	}
	if err := send(&v1.CapturePortResponse{Data: head}); err != nil {
		return err
	}
	var count int64
	for ctx.Err() == nil && (most == 0 || count < most) {
		var data []byte
		select {
		case c := <-frames:
			data = w.AppendFrame(data, c)
			count++
		case <-ctx.Done():
			continue
		}
		for more := true; more && (most == 0 || count < most) && len(data) < 64<<10; { // what waits goes with it
			select {
			case c := <-frames:
				data = w.AppendFrame(data, c)
				count++
			default:
				more = false
			}
		}
		if err := send(&v1.CapturePortResponse{Data: data, Frames: count, Lost: lost.Load()}); err != nil {
			return err
		}
	}
	gone := lost.Load()
	return send(&v1.CapturePortResponse{Data: w.AppendStatistics(nil, uint64(max(time.Since(p.booted), 0)), uint64(gone)), Frames: count, Lost: gone})
}

// hush is how long an event of a traced frame may take to come; it is no threat.
const hush = time.Second

// Trace says what the datapath would do with a frame, and asks it, too, where that sends nothing.
func (n *node) Trace(ctx context.Context, req *v1.TracePortRequest) (*v1.TracePortResponse, error) {
	p, err := n.a.fabric.place(ctx)
	if err != nil {
		return nil, err
	}
	t, err := p.dp.Tables()
	if err != nil {
		return nil, err
	}
	kind, ifindex, env, err := p.entry(req, t)
	if err != nil {
		return nil, err
	}
	data := req.GetFrame()
	if req.GetDescribe() != "" {
		if data, err = frame.Describe(req.GetDescribe(), env); err != nil {
			return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindPort, Name: req.GetName(), Field: "describe", Reason: "PACKET_INVALID", Message: err.Error(), Err: err}
		}
	}
	m := model.New(t, placeNames{p, t.VTEPs})
	m.Trace = true
	f := model.Frame{Bytes: slices.Clone(data), Now: clockNow(unix.CLOCK_BOOTTIME), Monotonic: clockNow(unix.CLOCK_MONOTONIC)}
	var r model.Result
	if kind == vswitch.KindUplink {
		r = m.UplinkIn(ifindex, f)
	} else {
		r = m.PortIn(ifindex, f)
	}
	out := p.told(r, t)
	out.Frame = frame.Summary(data)
	// A frame that is flooded would really go out, and one that is punted would be believed.
	if len(data) >= 14 && len(r.Punts) == 0 && slices.Contains([]model.Verdict{model.Dropped, model.Redirected, model.Answered}, r.Verdict) && !hasCopies(r) {
		if err := n.a.fabric.expectEvent(ctx, ifindex, r.Reason); err != nil {
			return nil, err
		}
		action, _, err := p.dp.Try(kind, int(ifindex), data)
		out.Confirmed = err == nil && (action == actionShot) == (r.Verdict == model.Dropped)
	}
	return out, nil
}

// actionShot is TC_ACT_SHOT.
const actionShot = 2

func hasCopies(r model.Result) bool {
	return slices.ContainsFunc(r.Outputs, func(o model.Output) bool { return o.Copy })
}

func clockNow(clock int32) uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}

// entry is where a traced frame comes in, and what a description leaves out.
func (p *place) entry(req *v1.TracePortRequest, t *table.Tables) (kind vswitch.Kind, ifindex uint32, env frame.Env, err error) {
	macOf := func(net uint32) func(netip.Addr) (table.MAC, bool) {
		return func(a netip.Addr) (table.MAC, bool) {
			b, ok := t.Bindings[table.BindingKey{Net: net, IP: table.IPOf(a)}]
			return b.MAC, ok
		}
	}
	if req.GetUplink() != "" {
		_, device, _ := strings.Cut(req.GetUplink(), "/")
		for i, name := range p.uplinks {
			if name == device {
				return vswitch.KindUplink, i, frame.Env{MAC: frame.Nobody, MACOf: macOf(t.UplinkVLANs[table.UplinkKey{Ifindex: i}].Net)}, nil
			}
		}
		return 0, 0, env, &resource.Error{Code: resource.NotFound, Kind: resource.KindHost, Name: req.GetUplink(), Field: "uplink", Reason: "UPLINK_NOT_FOUND", Message: "is no uplink that the switch uses"}
	}
	port, err := p.port(req.GetName())
	if err != nil {
		return 0, 0, env, err
	}
	row := t.Ports[port.ifindex]
	env = frame.Env{MAC: port.mac, MACOf: macOf(row.Net)}
	if row.IP4Count > 0 {
		env.IP4 = netip.AddrFrom4(row.IP4[0])
	}
	if row.IP6Count > 0 {
		env.IP6 = row.IP6[0].Addr()
	}
	return vswitch.KindPort, port.ifindex, env, nil
}

// told puts the model's result into words.
func (p *place) told(r model.Result, t *table.Tables) *v1.TracePortResponse {
	out := &v1.TracePortResponse{Verdict: r.Verdict.String()}
	for _, s := range r.Steps {
		out.Steps = append(out.Steps, &v1.TraceStep{Stage: s.Stage, Text: s.Text, Passed: s.Passed})
	}
	if r.Verdict == model.Dropped {
		out.Reason = r.Reason.String()
	}
	names := placeNames{p, t.VTEPs}
	for _, o := range r.Outputs {
		var to string
		switch o.Place {
		case table.PlaceUplink:
			to = "uplink " + names.Device(o.Ifindex)
		case table.PlaceTunnel:
			to = "host " + names.Host(o.VTEP)
		default:
			to = names.Port(o.Ifindex)
		}
		if o.Mirror {
			to += " (mirror)"
		}
		if r.Verdict == model.Redirected && !o.Copy {
			out.Verdict = map[table.Place]string{table.PlaceUplink: "UPLINK", table.PlaceTunnel: "TUNNEL"}[o.Place]
			out.Verdict = cmp.Or(out.Verdict, "DELIVERED")
		}
		out.Outputs = append(out.Outputs, to)
	}
	return out
}

// expectEvent has the fabric keep quiet about the drop of a frame that is tried.
func (f *fabric) expectEvent(ctx context.Context, ifindex uint32, reason table.Reason) error {
	return f.do(ctx, func(context.Context) error {
		if f.quiet == nil {
			f.quiet = map[quietKey]time.Time{}
		}
		f.quiet[quietKey{ifindex, reason}] = f.clk.Now().Add(hush)
		return nil
	})
}

// quietKey is a drop that is not told.
type quietKey struct {
	ifindex uint32
	reason  table.Reason
}

// hushed says whether an event is that of a traced frame.
func (f *fabric) hushed(e *table.Event) bool {
	key := quietKey{e.Ifindex, e.Reason}
	until, ok := f.quiet[key]
	delete(f.quiet, key)
	return ok && e.Count <= 1 && !f.clk.Now().After(until)
}
