package index

import (
	"bytes"
	"slices"

	"drover/internal/chunkstore/pack"
)

// loc is a record's place: the number of its pack in a table or run, and its number in the pack.
type loc struct {
	pack   uint32
	record uint16
}

// table holds whole packs in memory. Index.mu guards it; once frozen only dead changes.
type table struct {
	ids   map[pack.ID]loc
	packs []pack.PackID
	dead  []bool
	num   map[pack.PackID]uint32
}

func newTable() *table {
	return &table{ids: map[pack.ID]loc{}, num: map[pack.PackID]uint32{}}
}

// add takes a pack's records in their order.
func (t *table) add(p pack.PackID, records []pack.Entry) {
	n, ok := t.num[p]
	if !ok {
		n = uint32(len(t.packs))
		t.packs = append(t.packs, p)
		t.dead = append(t.dead, false)
		t.num[p] = n
	}
	t.dead[n] = false
	for i := range records {
		t.ids[records[i].ID] = loc{pack: n, record: uint16(i)}
	}
}

func (t *table) lookup(id *pack.ID) (hit, bool) {
	at, ok := t.ids[*id]
	if !ok || t.dead[at.pack] {
		return hit{}, false
	}
	return hit{pack: t.packs[at.pack], record: at.record}, true
}

// remove reports whether the pack was here.
func (t *table) remove(p pack.PackID) bool {
	n, ok := t.num[p]
	if ok {
		t.dead[n] = true
	}
	return ok
}

func (t *table) has(p pack.PackID) bool {
	n, ok := t.num[p]
	return ok && !t.dead[n]
}

// sorted gives the pack ids in order without the dead, and for each number its place there or gone.
func (t *table) sorted(dead []bool) (ids []pack.PackID, number []uint32) {
	order := make([]uint32, 0, len(t.packs))
	number = make([]uint32, len(t.packs))
	for i := range t.packs {
		number[i] = gone
		if !dead[i] {
			order = append(order, uint32(i))
		}
	}
	slices.SortFunc(order, func(a, b uint32) int { return bytes.Compare(t.packs[a][:], t.packs[b][:]) })
	for i, n := range order {
		number[n] = uint32(i)
		ids = append(ids, t.packs[n])
	}
	return ids, number
}

// entries are the ids in order.
func (t *table) entries() []pack.ID {
	keys := make([]pack.ID, 0, len(t.ids))
	for id := range t.ids {
		keys = append(keys, id)
	}
	slices.SortFunc(keys, func(a, b pack.ID) int { return bytes.Compare(a[:], b[:]) })
	return keys
}
