package manager

import (
	"context"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/resource"
	"drover/internal/rpc"

	"connectrpc.com/connect"
)

// ShowSwitch is the whole switch in one look.
func (m *Manager) ShowSwitch() *v1.SwitchView {
	hosts, _ := m.Hosts.cache.List()
	view := &v1.SwitchView{
		Networks: int32(m.Networks.cache.Len()), Ports: int32(m.board.view.Len()),
		Registrations: int32(m.board.regs.Len()), Revision: m.board.regs.Revision(),
	}
	for _, h := range hosts {
		st := clone(h.GetStatus())
		if st == nil {
			st = &v1.HostStatus{}
		}
		m.heard.show(h.Meta.Name, st)
		view.Hosts = append(view.Hosts, &v1.HostSwitch{
			Host: h.Meta.Name, Site: h.Spec.GetSite(), Status: st.Switch, Uplinks: st.Uplinks, Networks: st.Networks,
			Stale: st.Phase != v1.HostPhase_HOST_PHASE_READY, Conditions: st.Conditions,
		})
	}
	return view
}

// Bounds of a capture.
const (
	defaultCapture = time.Minute
	longestCapture = time.Hour
	longestSnap    = 2048
)

// points where frames are captured.
var points = map[string]bool{"from-guest": true, "accepted": true, "to-guest": true, "dropped": true}

// Capture streams a port's frames from its host.
func (m *Manager) Capture(ctx context.Context, req *v1.CapturePortRequest, send func(*v1.CapturePortResponse) error) error {
	f := resource.FaultsOf(resource.KindPort, req.Name)
	if req.SnapLength < 0 || req.SnapLength > longestSnap {
		f.Add("snap_length", "OUT_OF_RANGE", "%d; must be 1 to %d bytes, or 0 for all", req.SnapLength, longestSnap)
	}
	if req.Count < 0 {
		f.Add("count", "OUT_OF_RANGE", "%d; must not be negative", req.Count)
	}
	if d := req.Time.AsDuration(); d < 0 || d > longestCapture {
		f.Add("time", "OUT_OF_RANGE", "%v; must be at most %v, or 0 for %v", d, longestCapture, defaultCapture)
	}
	for _, p := range req.Points {
		if !points[p] {
			f.Add("points", "VALUE_UNKNOWN", "%q; there are accepted, dropped, from-guest, to-guest", p)
		}
	}
	if err := f.Err(); err != nil {
		return err
	}
	host, node, err := m.atPort(req.Name)
	if err != nil {
		return err
	}
	st, err := node.Capture(ctx, req)
	return relay(host, st, err, send)
}

// Trace asks the host where a frame would come in what would become of it.
func (m *Manager) Trace(ctx context.Context, req *v1.TracePortRequest) (*v1.TracePortResponse, error) {
	f := resource.FaultsOf(resource.KindPort, req.Name)
	switch {
	case req.Name != "" && req.Uplink != "":
		f.Add("uplink", "CONTRADICTION", "a frame comes in by a port or by an uplink, not by both")
	case req.Name == "" && req.Uplink == "":
		f.Add("name", "NAME_MISSING", "a port VM/NIC that sends, or an uplink HOST/DEVICE, is needed")
	}
	switch {
	case req.Describe != "" && len(req.Frame) > 0:
		f.Add("frame", "CONTRADICTION", "a packet is described or given, not both")
	case req.Describe == "" && len(req.Frame) == 0:
		f.Add("describe", "PACKET_MISSING", `says which packet, such as "arp who-has 10.0.0.1"`)
	case len(req.Describe) > 4096:
		f.Add("describe", "TOO_LARGE", "%d bytes; at most 4096", len(req.Describe))
	case len(req.Frame) > 64<<10:
		f.Add("frame", "TOO_LARGE", "%d bytes; at most 65536", len(req.Frame))
	}
	if err := f.Err(); err != nil {
		return nil, err
	}
	var host string
	var node droverv1connect.NodeServiceClient
	var err error
	if req.Name != "" {
		host, node, err = m.atPort(req.Name)
	} else {
		host, node, err = m.atUplink(req.Uplink)
	}
	if err != nil {
		return nil, err
	}
	res, err := node.Trace(ctx, req)
	return res, fromHost(host, err)
}

// SwitchTable streams the registrations as a host's datapath holds them.
func (m *Manager) SwitchTable(ctx context.Context, req *v1.SwitchTableRequest, send func(*v1.SwitchTableResponse) error) error {
	if req.Network != "" {
		if _, err := m.Networks.lookup(req.Network); err != nil {
			return err
		}
	}
	node, err := m.nodes.of(req.Host)
	if err != nil {
		return err
	}
	st, err := node.Table(ctx, req)
	return relay(req.Host, st, err, send)
}

// atPort is the API of the host where a port is now.
func (m *Manager) atPort(name string) (string, droverv1connect.NodeServiceClient, error) {
	vmName, part, ok := resource.Part(name)
	if !ok {
		return "", nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindPort, Name: name, Field: "name", Reason: "NAME_INVALID", Message: "must be VM/NIC"}
	}
	vm, err := m.VMs.lookup(vmName)
	if err != nil {
		return "", nil, err
	}
	if nicOf(vm, part) == nil {
		return "", nil, notFound(resource.KindPort, name)
	}
	if !isUp(vm.GetStatus().GetPhase()) {
		return "", nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindPort, Name: name, Reason: "PORT_OFF", Message: "its VM is off, so there is no port", Remedy: "start it: drover vm start " + vmName}
	}
	owner := vm.GetStatus().GetOwner()
	node, err := m.nodes.of(owner)
	return owner, node, err
}

func (m *Manager) atUplink(name string) (string, droverv1connect.NodeServiceClient, error) {
	host, dev, ok := strings.Cut(name, "/")
	if !ok || dev == "" {
		return "", nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindPort, Field: "uplink", Reason: "NAME_INVALID", Message: "must be HOST/DEVICE"}
	}
	node, err := m.nodes.of(host)
	return host, node, err
}

// relay passes a host's stream on until either side ends.
func relay[T any](host string, st *connect.ServerStreamForClient[T], err error, send func(*T) error) error {
	if err != nil {
		return fromHost(host, err)
	}
	defer st.Close()
	for st.Receive() {
		if err := send(st.Msg()); err != nil {
			return err
		}
	}
	return fromHost(host, st.Err())
}

// fromHost puts an error that came from a host, or from not reaching it, into words.
func fromHost(host string, err error) error {
	if err == nil {
		return nil
	}
	err = rpc.FromError(err)
	if rpc.Detail(err) == nil && resource.CodeOf(err) == resource.Unavailable {
		return &resource.Error{Code: resource.Unavailable, Kind: resource.KindHost, Name: host, Reason: "HOST_UNREACHABLE", Message: "can't be reached: " + err.Error(), Err: err}
	}
	return err
}
