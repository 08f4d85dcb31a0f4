package vswitch

import (
	"maps"
	"slices"
	"testing"

	"drover/internal/vswitch/table"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestArrange(t *testing.T) {
	list := func(targets ...uint32) map[table.MemberKey]table.Member {
		out := map[table.MemberKey]table.Member{}
		for i, target := range targets {
			if target != 0 {
				out[table.MemberKey{Net: 1, Row: uint32(i)}] = table.Member{Target: target, Place: table.PlaceLocal}
			}
		}
		return out
	}
	for _, c := range []struct {
		name             string
		have, want, rows []uint32
		count            uint32
	}{
		{"first", nil, []uint32{5, 6}, []uint32{5, 6}, 2},
		{"reordered", []uint32{5, 6, 7}, []uint32{7, 5, 6}, []uint32{5, 6, 7}, 3},
		{"one less in the middle", []uint32{5, 6, 7}, []uint32{5, 7}, []uint32{5, 0, 7}, 3},
		{"one less at the end", []uint32{5, 6, 7}, []uint32{5, 6}, []uint32{5, 6}, 2},
		{"a hole is filled", []uint32{5, 0, 7}, []uint32{5, 7, 8}, []uint32{5, 8, 7}, 3},
		{"all replaced", []uint32{5, 6}, []uint32{7}, []uint32{7}, 1},
		{"none", []uint32{5, 6}, nil, nil, 0},
	} {
		rows, counts := arrange(list(c.have...), list(c.want...))
		if diff := cmp.Diff(list(c.rows...), rows); diff != "" || counts[1] != c.count {
			t.Errorf("%s: count %d, want %d; rows (-want +got):\n%s", c.name, counts[1], c.count, diff)
		}
	}
}

// TestArrangeKeeps checks on random lists what floods rely on: all are in, each once, and who stays does not move.
func TestArrangeKeeps(t *testing.T) {
	member := rapid.Custom(func(r *rapid.T) table.Member {
		return table.Member{Target: uint32(rapid.IntRange(1, 12).Draw(r, "target")), Place: table.PlaceLocal, PVLAN: table.PVLAN(rapid.IntRange(0, 3).Draw(r, "pvlan"))}
	})
	lists := rapid.Custom(func(r *rapid.T) map[table.MemberKey]table.Member {
		out := map[table.MemberKey]table.Member{}
		for net := range uint32(3) {
			for i, m := range rapid.SliceOfNDistinct(member, 0, 12, func(m table.Member) uint32 { return m.Target }).Draw(r, "members") {
				out[table.MemberKey{Net: net, Row: uint32(i)}] = m
			}
		}
		return out
	})
	rapid.Check(t, func(r *rapid.T) {
		have := map[table.MemberKey]table.Member{}
		for range rapid.IntRange(1, 5).Draw(r, "changes") {
			want := lists.Draw(r, "want")
			rows, counts := arrange(have, want)
			sorted := func(m map[table.MemberKey]table.Member, net uint32) []table.Member {
				var out []table.Member
				for k, v := range m {
					if k.Net == net {
						out = append(out, v)
					}
				}
				slices.SortFunc(out, func(a, b table.Member) int { return int(a.Target) - int(b.Target) })
				return out
			}
			for net := range uint32(3) {
				if diff := cmp.Diff(sorted(want, net), sorted(rows, net)); diff != "" {
					r.Fatalf("network %d (-want +got):\n%s", net, diff)
				}
			}
			for k, m := range rows {
				if k.Row >= counts[k.Net] {
					r.Fatalf("row %v is behind the count %d", k, counts[k.Net])
				}
				for old, o := range have {
					if old.Net == k.Net && o.Target == m.Target && old != k {
						r.Fatalf("member %d moved from row %d to %d", m.Target, old.Row, k.Row)
					}
				}
			}
			have = maps.Clone(rows)
		}
	})
}
