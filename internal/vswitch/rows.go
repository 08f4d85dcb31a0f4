package vswitch

import (
	"errors"
	"fmt"

	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
)

// batch is how many rows go to the kernel or come from it at once.
const batch = 4096

// rows is a map of the kernel whose keys and values have the same bytes as K and V.
type rows[K, V comparable] struct {
	m    *ebpf.Map
	name string
}

// mapSet has the maps that hold configuration.
type mapSet struct {
	ports       rows[uint32, table.Port]
	fdb         rows[table.FDBKey, table.FDBEntry]
	networks    rows[uint32, table.Network]
	members     rows[table.MemberKey, table.Member]
	groups      rows[table.GroupKey, uint8]
	bindings    rows[table.BindingKey, table.Binding]
	macs        rows[table.MACKey, uint8]
	trunks      rows[table.TrunkKey, uint32]
	uplinks     rows[uint32, table.Uplink]
	uplinkVLANs rows[table.UplinkKey, table.UplinkVLAN]
	teams       rows[uint32, table.Team]
	vteps       rows[uint32, table.VTEP]
	vtepSources rows[table.IP, uint32]
	meters      rows[uint32, table.Meter]
}

func newMaps(m *datapathMaps) mapSet {
	return mapSet{
		ports:       rows[uint32, table.Port]{m.Ports, datapathMapPorts},
		fdb:         rows[table.FDBKey, table.FDBEntry]{m.Fdb, datapathMapFdb},
		networks:    rows[uint32, table.Network]{m.Networks, datapathMapNetworks},
		members:     rows[table.MemberKey, table.Member]{m.Members, datapathMapMembers},
		groups:      rows[table.GroupKey, uint8]{m.Groups, datapathMapGroups},
		bindings:    rows[table.BindingKey, table.Binding]{m.Bindings, datapathMapBindings},
		macs:        rows[table.MACKey, uint8]{m.Macs, datapathMapMacs},
		trunks:      rows[table.TrunkKey, uint32]{m.Trunks, datapathMapTrunks},
		uplinks:     rows[uint32, table.Uplink]{m.Uplinks, datapathMapUplinks},
		uplinkVLANs: rows[table.UplinkKey, table.UplinkVLAN]{m.UplinkVlans, datapathMapUplinkVlans},
		teams:       rows[uint32, table.Team]{m.Teams, datapathMapTeams},
		vteps:       rows[uint32, table.VTEP]{m.Vteps, datapathMapVteps},
		vtepSources: rows[table.IP, uint32]{m.VtepSources, datapathMapVtepSources},
		meters:      rows[uint32, table.Meter]{m.Meters, datapathMapMeters},
	}
}

// read is what the maps hold. Rows of arrays that are all zero count as not there; what the datapath itself keeps in meters is left out.
func (m *mapSet) read() (*table.Tables, error) {
	t := table.New()
	err := errors.Join(
		m.ports.read(t.Ports), m.fdb.read(t.FDB), m.networks.read(t.Networks), m.members.read(t.Members), m.groups.read(t.Groups),
		m.bindings.read(t.Bindings), m.macs.read(t.MACs), m.trunks.read(t.Trunks), m.uplinks.read(t.Uplinks), m.uplinkVLANs.read(t.UplinkVLANs),
		m.teams.read(t.Teams), m.vteps.read(t.VTEPs), m.vtepSources.read(t.VTEPSources), m.meters.read(t.Meters))
	if err != nil {
		return nil, err
	}
	for slot, row := range t.Meters {
		if row = configured(row); row == (table.Meter{}) {
			delete(t.Meters, slot)
		} else {
			t.Meters[slot] = row
		}
	}
	return t, nil
}

func (r rows[K, V]) array() bool { return r.m.Type() == ebpf.Array }

// read puts all rows into out.
func (r rows[K, V]) read(out map[K]V) error {
	return each(r.m, r.name, 1, func(key K, value []V) error {
		var zero V
		if value[0] != zero || !r.array() {
			out[key] = value[0]
		}
		return nil
	})
}

// each calls f for each row of m, with one value or, of maps with one for each processor, with width of them. The slice is good until f returns.
func each[K comparable, V any](m *ebpf.Map, name string, width int, f func(K, []V) error) error {
	size := min(batch, int(m.MaxEntries()))
	keys, values := make([]K, size), make([]V, size*width)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		last := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !last {
			return fmt.Errorf("read the datapath's map %s: %w", name, err)
		}
		for i := range n {
			if err := f(keys[i], values[i*width:(i+1)*width]); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
	}
}

// put writes rows and returns those that could not be written.
func (r rows[K, V]) put(keys []K, values []V) map[K]error {
	bad := map[K]error{}
	for len(keys) > 0 {
		n := min(batch, len(keys))
		done, err := r.m.BatchUpdate(keys[:n], values[:n], nil)
		if err == nil {
			done = n
		} else { // the row behind those that are done was refused: ask for it alone, then go on behind it
			done = min(max(done, 0), n-1)
			if err := r.m.Put(&keys[done], &values[done]); err != nil {
				bad[keys[done]] = r.errorf("write", keys[done], err)
			}
			done++
		}
		keys, values = keys[done:], values[done:]
	}
	return bad
}

// remove deletes rows and returns those that could not be; one that is not there is no error. Rows of an array become zero.
func (r rows[K, V]) remove(keys []K) map[K]error {
	if r.array() {
		return r.put(keys, make([]V, len(keys)))
	}
	bad := map[K]error{}
	for len(keys) > 0 {
		n := min(batch, len(keys))
		done, err := r.m.BatchDelete(keys[:n], nil)
		if err == nil {
			done = n
		} else {
			done = min(max(done, 0), n-1)
			if err := r.m.Delete(&keys[done]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				bad[keys[done]] = r.errorf("remove", keys[done], err)
			}
			done++
		}
		keys = keys[done:]
	}
	return bad
}

func (r rows[K, V]) errorf(op string, key K, err error) error {
	return fmt.Errorf("%s row %v of the datapath's map %s (%d rows at most): %w", op, key, r.name, r.m.MaxEntries(), err)
}

// change is what brings one map from have to want.
type change[K, V comparable] struct {
	rows   rows[K, V]
	have   map[K]V
	keys   []K
	values []V
	raw    []V // what is really written, if it is not values
	gone   []K
}

// changes compares. write and remove bring have up to date with what they did.
func changes[K, V comparable](r rows[K, V], have, want map[K]V) *change[K, V] {
	c := &change[K, V]{rows: r, have: have}
	met := 0
	for k, v := range want {
		old, ok := have[k]
		if ok {
			met++
		}
		if !ok || old != v {
			c.keys, c.values = append(c.keys, k), append(c.values, v)
		}
	}
	if met < len(have) {
		for k := range have {
			if _, ok := want[k]; !ok {
				c.gone = append(c.gone, k)
			}
		}
	}
	return c
}

// write writes new and changed rows, and tells blame of each that was refused.
func (c *change[K, V]) write(blame func(K, V, error)) {
	if len(c.keys) == 0 {
		return
	}
	raw := c.raw
	if raw == nil {
		raw = c.values
	}
	bad := c.rows.put(c.keys, raw)
	for i, k := range c.keys {
		if err := bad[k]; err != nil {
			blame(k, c.values[i], err)
		} else {
			c.have[k] = c.values[i]
		}
	}
}

// remove removes the rows that are wanted no more.
func (c *change[K, V]) remove(failed func(error)) {
	if len(c.gone) == 0 {
		return
	}
	bad := c.rows.remove(c.gone)
	for _, k := range c.gone {
		if err := bad[k]; err != nil {
			failed(err)
		} else {
			delete(c.have, k)
		}
	}
}
