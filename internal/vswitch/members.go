package vswitch

import (
	"cmp"
	"maps"
	"slices"

	"drover/internal/vswitch/table"
)

// arrange gives the members of want rows, so that a flood that is on its way while rows are written sends to nobody twice and misses nobody who stays: a
// member keeps the row that it has, newcomers get the row that want names if it is free, else the lowest free one, and rows of leavers stay empty until somebody
// needs them. The datapath skips empty rows. counts is how many rows each network's flood must look at.
func arrange(have, want map[table.MemberKey]table.Member) (rows map[table.MemberKey]table.Member, counts map[uint32]uint32) {
	type who struct { // a member as flooding knows it: two with the same would be two copies
		net, target uint32
		place       table.Place
		vid         uint16
	}
	of := func(k table.MemberKey, m table.Member) who { return who{k.Net, m.Target, m.Place, m.VID} }
	seat := make(map[who]table.MemberKey, len(have))
	for k, m := range have {
		w := of(k, m)
		if old, ok := seat[w]; !ok || k.Row < old.Row {
			seat[w] = k
		}
	}
	rows = make(map[table.MemberKey]table.Member, len(want))
	var standing []table.MemberKey
	for _, k := range slices.SortedFunc(maps.Keys(want), func(a, b table.MemberKey) int {
		return cmp.Or(cmp.Compare(a.Net, b.Net), cmp.Compare(a.Row, b.Row))
	}) {
		w := of(k, want[k])
		if s, ok := seat[w]; ok {
			delete(seat, w)
			rows[s] = want[k]
		} else {
			standing = append(standing, k)
		}
	}
	next := map[uint32]uint32{} // the lowest row of a network that may be free
	for _, k := range standing {
		s := k
		if _, taken := rows[s]; taken {
			for s.Row = next[k.Net]; ; s.Row++ {
				if _, taken := rows[s]; !taken {
					break
				}
			}
			next[k.Net] = s.Row + 1
		}
		rows[s] = want[k]
	}
	counts = map[uint32]uint32{}
	for k := range rows {
		counts[k.Net] = max(counts[k.Net], k.Row+1)
	}
	return rows, counts
}
