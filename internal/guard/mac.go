package guard

import (
	"time"

	"drover/internal/vswitch/table"
)

// Patience for requests: one that was not granted is made again after this long, and counts against the port's limit until then.
const macPatience = 30 * time.Second

// A virtual router's MAC moves whenever the routers want, and back: the wait is only there to ask once for a burst of frames.
const virtualPatience = time.Second

// maxVirtual is how many MACs of virtual routers a port may hold, or be about to.
const maxVirtual = 16

// MACRequest asks the manager to register a further MAC for a port.
type MACRequest struct {
	Port string // Port.Key
	Net  uint32
	MAC  table.MAC
	// Virtual: it is a virtual router's, which may move between ports at any time.
	Virtual bool
}

// MACs turns frames from MACs that are not registered for their port into requests. Make it with NewMACs.
type MACs struct {
	pending map[string][]pendingMAC // by port
}

type pendingMAC struct {
	net     uint32
	mac     table.MAC
	virtual bool
	until   time.Time
}

// NewMACs makes one that waits for nothing.
func NewMACs() *MACs { return &MACs{pending: map[string][]pendingMAC{}} }

// Heard takes PUNT_NEW_MAC and PUNT_VIRTUAL. ok says that there is something to ask for: what was asked for not long ago is not, nor what is beyond the port's limit.
func (m *MACs) Heard(p *table.Punt, find Finder, now time.Time) (r MACRequest, ok bool) {
	virtual := p.Kind == table.PuntVirtual
	port, found := find(p.Ifindex)
	if !found || (!virtual && p.Kind != table.PuntNewMAC) || p.Captured < 14 {
		return r, false
	}
	mac := table.MAC(p.Data[6:12])
	if mac[0]&1 != 0 || mac == (table.MAC{}) || (!virtual && port.has(mac)) {
		return r, false
	}
	var rest []pendingMAC
	count := 0
	for _, x := range m.pending[port.Key] {
		if !x.until.After(now) || (!x.virtual && port.has(x.mac)) {
			continue
		}
		if x.mac == mac && x.net == p.Net {
			return r, false
		}
		rest = append(rest, x)
		if x.virtual == virtual {
			count++
		}
	}
	limit, wait := maxVirtual, virtualPatience
	if !virtual {
		limit, wait = port.Limit, macPatience
		count++
		for _, g := range port.Granted {
			if !virtualMAC(g) {
				count++
			}
		}
	}
	if count >= limit {
		m.keep(port.Key, rest)
		return r, false
	}
	m.keep(port.Key, append(rest, pendingMAC{p.Net, mac, virtual, now.Add(wait)}))
	return MACRequest{port.Key, p.Net, mac, virtual}, true
}

func (m *MACs) keep(port string, pending []pendingMAC) {
	if len(pending) == 0 {
		delete(m.pending, port)
		return
	}
	m.pending[port] = pending
}

// Forget drops what is known of a port that is gone.
func (m *MACs) Forget(port string) { delete(m.pending, port) }
