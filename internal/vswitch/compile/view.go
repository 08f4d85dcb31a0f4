package compile

import (
	"cmp"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"

	v1 "drover/api/drover/v1"
	"drover/internal/vswitch/table"
)

// View is an input without its registrations, prepared to place them. It is not changed once Compile has returned it.
type View struct {
	host, site string
	overlay    Overlay
	uplinks    []Uplink // by name
	teams      map[string]uint32
	byNet      map[uint32]*Connection
	byName     map[string]*Connection
	peers      map[string]*peer
	ports      []*port // by slot
	byPort     map[string]*port
	local      map[table.FDBKey]*port
	problems   []Problem
}

// peer is another host. Its tunnel ends are 0 where it has none.
type peer struct {
	site             string
	physical         map[string]bool
	plain, encrypted uint32
}

func (v *View) problem(p Problem) { v.problems = append(v.problems, p) }

// prepare makes the view of an input, but for its peers.
func prepare(in Input) *View {
	v := &View{
		host: in.Host, site: in.Site, overlay: in.Overlay, teams: map[string]uint32{}, byNet: map[uint32]*Connection{}, byName: map[string]*Connection{},
		peers: map[string]*peer{}, byPort: map[string]*port{}, local: map[table.FDBKey]*port{},
	}
	v.uplinks = slices.SortedFunc(slices.Values(in.Uplinks), func(a, b Uplink) int { return cmp.Compare(a.Name, b.Name) })
	v.number(in)
	v.connect(in.Networks)
	v.takePorts(in)
	return v
}

// number gives teams their indexes: "default" is 0, the rest by name.
func (v *View) number(in Input) {
	names := map[string]bool{}
	for _, t := range in.Teams {
		names[t.Name] = true
	}
	for _, u := range in.Uplinks {
		names[u.Team] = true
	}
	delete(names, DefaultTeam)
	v.teams[DefaultTeam] = 0
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if len(v.teams) == table.MaxTeams {
			v.problem(Problem{Reason: "TOO_MANY_TEAMS", Message: "this host has more teams of uplinks than the switch takes; team " + name + " is left out"})
			continue
		}
		v.teams[name] = uint32(len(v.teams))
	}
}

// takePeers gives each tunnel end of each peer its key, from its name, so that a host that comes or goes changes no other's.
func (v *View) takePeers(t *table.Tables, peers []*v1.Peer) {
	peers = slices.SortedFunc(slices.Values(peers), func(a, b *v1.Peer) int { return cmp.Compare(a.GetHost(), b.GetHost()) })
	for _, p := range peers {
		if p.GetHost() == v.host || p.GetHost() == "" {
			continue
		}
		x := &peer{site: p.GetSite(), physical: map[string]bool{}}
		for _, n := range p.GetPhysicalNetworks() {
			x.physical[n] = true
		}
		v.peers[p.GetHost()] = x
		x.plain = v.endpoint(t, p.GetHost(), p.GetOverlayAddress(), "", v.overlay.Address, p.GetSite() == v.site)
		if v.overlay.Encrypted && p.GetTunnelKey() != "" {
			x.encrypted = v.endpoint(t, p.GetHost(), p.GetTunnelAddress(), "/encrypted", v.overlay.Tunnel, true)
		}
	}
}

// endpoint adds a tunnel end's rows and gives its key, 0 if it has none. private says that frames of encrypted networks may come from it.
func (v *View) endpoint(t *table.Tables, host, address, kind string, local netip.Addr, private bool) uint32 {
	if address == "" || v.overlay.Ifindex == 0 {
		return 0
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		v.problem(Problem{Reason: "PEER_ADDRESS", Message: "host " + host + " has no usable overlay address: " + address})
		return 0
	}
	a = a.Unmap()
	if a.IsLoopback() {
		return 0 // it is reached by nobody but itself
	}
	if other, taken := t.VTEPSources[table.IPOf(a)]; taken {
		if t.VTEPs[other].Addr == table.IPOf(a) {
			v.problem(Problem{Reason: "PEER_ADDRESS", Message: "host " + host + " has the overlay address " + address + " of another host; it is not reached by tunnels"})
		}
		return 0
	}
	if len(t.VTEPs) == table.MaxVTEPs {
		v.problem(Problem{Reason: "TOO_MANY_HOSTS", Message: "host " + host + " is not reached: the switch takes no more tunnel ends"})
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(host + kind))
	id := h.Sum32()
	for _, taken := t.VTEPs[id]; id == 0 || taken; _, taken = t.VTEPs[id] {
		id++
	}
	row := table.VTEP{Addr: table.IPOf(a), Family: table.FamilyIP4, Ifindex: v.overlay.Ifindex}
	if a.Is6() {
		row.Family = table.FamilyIP6
	}
	if local = local.Unmap(); local.IsValid() && local.Is6() == a.Is6() {
		row.Local = table.IPOf(local)
	}
	if private {
		row.Flags = table.VTEPPrivate
	}
	t.VTEPs[id], t.VTEPSources[row.Addr] = row, id
	return id
}

// route says how a host is reached in a network; ok is false if it is not.
func (v *View) route(host string, c *Connection) (e table.FDBEntry, ok bool) {
	p := v.peers[host]
	switch {
	case p == nil:
		return e, false
	case p.site == v.site && len(c.Uplinks) > 0 && p.physical[c.Name]:
		return table.FDBEntry{Place: table.PlaceUplink}, true
	case !c.Overlay:
		return e, false
	}
	id := p.plain
	if c.Encrypted && p.site != v.site {
		id = p.encrypted
	}
	return table.FDBEntry{Place: table.PlaceTunnel, Target: id}, id != 0
}

// Rows are what one registration makes.
type Rows struct {
	FDB      map[table.FDBKey]table.FDBEntry
	Bindings map[table.BindingKey]table.Binding
}

// Place adds the rows of a registration of another host. One of this host's ports, or of a host that is not reached, makes none.
func (v *View) Place(rows Rows, key table.FDBKey, r Registration) (table.FDBEntry, bool) {
	c := v.byNet[key.Net]
	if c == nil || r.Host == v.host || v.local[key] != nil {
		return table.FDBEntry{}, false
	}
	e, ok := v.route(r.Host, c)
	if !ok {
		return e, false
	}
	e.PVLAN, e.Community = r.PVLAN, r.Community
	rows.FDB[key] = e
	for _, a := range r.Addresses {
		k := table.BindingKey{Net: key.Net, IP: table.IPOf(a)}
		b := table.Binding{MAC: key.MAC, Source: table.BindingRemote}
		if old, taken := rows.Bindings[k]; taken && (old.Source != table.BindingRemote || slices.Compare(old.MAC[:], b.MAC[:]) <= 0) {
			continue // the first by MAC, in whatever order they come; a local port's before any
		}
		rows.Bindings[k] = b
	}
	return e, true
}

// Change is what the datapath has to do for registrations that came, changed or went.
type Change struct {
	Set    map[table.FDBKey]table.FDBEntry
	Remove []table.FDBKey
	Bind   map[table.BindingKey]table.Binding
	Unbind []table.BindingKey
}

// Step is one registration's change; nil is: not registered.
type Step struct {
	Key      table.FDBKey
	Old, New *Registration
}

// Registered gives the rows that change with registrations. have is the last whole result's tables with all changes since: a row of a local port there is left alone.
// The flood lists are not in it: Floods says when those have to be made anew.
func (v *View) Registered(have *table.Tables, steps []Step) Change {
	ch := Change{Set: map[table.FDBKey]table.FDBEntry{}, Bind: map[table.BindingKey]table.Binding{}}
	gone := map[table.BindingKey]bool{}
	for _, s := range steps {
		rows := Rows{FDB: map[table.FDBKey]table.FDBEntry{}, Bindings: map[table.BindingKey]table.Binding{}}
		if s.New != nil {
			v.Place(rows, s.Key, *s.New)
		}
		if e, ok := rows.FDB[s.Key]; ok {
			ch.Set[s.Key] = e
		} else if old, ok := have.FDB[s.Key]; ok && old.Place != table.PlaceLocal {
			delete(ch.Set, s.Key)
			ch.Remove = append(ch.Remove, s.Key)
		}
		if s.Old != nil {
			for _, a := range s.Old.Addresses {
				k := table.BindingKey{Net: s.Key.Net, IP: table.IPOf(a)}
				if b, ok := have.Bindings[k]; ok && b.Source == table.BindingRemote && b.MAC == s.Key.MAC {
					gone[k] = true
				}
			}
		}
		for k, b := range rows.Bindings {
			if old, ok := have.Bindings[k]; ok && old.Source != table.BindingRemote {
				continue
			}
			ch.Bind[k] = b
		}
	}
	for k := range gone {
		if _, again := ch.Bind[k]; !again {
			ch.Unbind = append(ch.Unbind, k)
		}
	}
	return ch
}

// Hop is a tunnel end that gets a network's floods.
type Hop struct{ Net, VTEP uint32 }

// Hop says which flood list a registration puts a tunnel end into, if any.
func (v *View) Hop(key table.FDBKey, r Registration) (Hop, bool) {
	c := v.byNet[key.Net]
	if c == nil || r.Host == v.host || v.local[key] != nil {
		return Hop{}, false
	}
	e, ok := v.route(r.Host, c)
	return Hop{key.Net, e.Target}, ok && e.Place == table.PlaceTunnel
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
