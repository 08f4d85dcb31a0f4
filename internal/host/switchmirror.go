package host

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/hostnet"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/erspan"
	"drover/internal/vswitch/table"
)

// extras are what ports have by their profiles besides rows: mirrors to addresses, and classes on uplinks. It belongs to the fabric's goroutine.
type extras struct {
	mirrors map[string]*mirror // by port
	classes map[string]string  // what each uplink's queue was last set to
	faults  []compile.Problem
}

// mirror is a port whose frames go to an address.
type mirror struct {
	want mirrorWish
	end  context.CancelFunc
}

type mirrorWish struct {
	ifindex uint32
	in, out bool
	to      netip.Addr
	session uint16
}

// policyOf is a port's profile in force.
func (f *fabric) policyOf(p *nicPort) *v1.PortProfileSpec {
	f.a.world.mu.Lock()
	defer f.a.world.mu.Unlock()
	return f.a.world.profiles[f.profileOf(p)].GetStatus().GetEffective()
}

// applyExtras brings mirrors and classes to what the profiles say. A fault of one is told and keeps nothing else back.
func (f *fabric) applyExtras() {
	f.faults = nil
	wish := map[string]mirrorWish{}
	classes := map[string]map[uint32]uint64{}
	for _, p := range f.sorted() {
		row, there := f.result.Tables.Ports[p.ifindex]
		policy := f.policyOf(p)
		if !there || policy == nil {
			continue
		}
		if m := policy.GetMirror(); m.GetAddress() != "" && m.GetPort() == "" && (m.GetIn() || m.GetOut()) {
			to, err := netip.ParseAddr(m.GetAddress())
			if err != nil {
				f.fault(p, "MIRROR_MISSING", err)
			} else {
				wish[p.key()] = mirrorWish{p.ifindex, m.GetIn(), m.GetOut(), to, uint16(m.GetSession())}
			}
		}
		c := f.result.Connections[p.network]
		if g := policy.GetQos().GetIn().GetGuaranteeBps(); g > 0 && c != nil {
			for _, u := range c.Uplinks {
				if classes[u] == nil {
					classes[u] = map[uint32]uint64{}
				}
				classes[u][row.Slot] = uint64(g)
			}
		}
	}
	f.mirrorAll(wish)
	f.shareUplinks(classes)
}

func (f *fabric) fault(p *nicPort, reason string, err error) {
	f.faults = append(f.faults, compile.Problem{Port: p.name, Network: p.network, Reason: reason, Message: err.Error()})
}

func (f *fabric) mirrorAll(wish map[string]mirrorWish) {
	for key, m := range f.mirrors {
		if w, ok := wish[key]; !ok || w != m.want {
			m.end()
			delete(f.mirrors, key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(wish)) {
		if f.mirrors[key] != nil {
			continue
		}
		w := wish[key]
		s, err := erspan.Open(f.a.net, w.to, w.session)
		if err != nil {
			f.fault(f.ports[key], "MIRROR_MISSING", err)
			continue
		}
		ctx, end := context.WithCancel(f.life)
		if f.mirrors == nil {
			f.mirrors = map[string]*mirror{}
		}
		f.mirrors[key] = &mirror{w, end}
		dp := f.dp
		f.parts.Go(func() {
			defer s.Close()
			err := dp.Capture(ctx, int(w.ifindex), func(c *table.Capture) {
				if w.in && c.Point == table.CaptureAccepted || w.out && c.Point == table.CaptureToGuest {
					_ = s.Send(c) // what does not fit is lost; the numbers show it
				}
			})
			if err != nil && ctx.Err() == nil {
				f.log.Error("a port's frames are not mirrored", "to", w.to, "err", err)
			}
		})
	}
}

// shareUplinks gives ports with a guarantee their classes on the uplinks.
func (f *fabric) shareUplinks(classes map[string]map[uint32]uint64) {
	if f.classes == nil {
		f.classes = map[string]string{}
	}
	for name, u := range f.uplinks {
		if !u.attached {
			continue
		}
		want := classes[name]
		text := fmt.Sprint(u.link.Index, u.link.SpeedMbit, want)
		if len(want) == 0 {
			text = ""
		}
		if old, known := f.classes[name]; known && old == text {
			continue
		}
		var err error
		switch {
		case len(want) == 0:
			err = f.a.net.RemoveHTB(name) // also what an earlier agent left
		case u.link.SpeedMbit == 0:
			err = fmt.Errorf("uplink %s does not say how fast it is, so nothing can be guaranteed on it", name)
		default:
			err = f.a.net.EnsureHTB(name, hostnet.HTB{RateBPS: uint64(u.link.SpeedMbit) * 1e6, Classes: want})
		}
		if err != nil {
			f.faults = append(f.faults, compile.Problem{Reason: "GUARANTEE", Message: fmt.Sprintf("rates are not guaranteed on uplink %s: %v", name, err)})
			delete(f.classes, name)
			continue
		}
		f.classes[name] = text
	}
}
