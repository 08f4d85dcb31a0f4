package main

import (
	"drover/bench/report"
)

// goals are how many times as fast as the best peer, by step; for the first backup another for encrypted ones.
var goals = map[string]float64{"first": 2.5, "second": 3, "restore": 2, "verify": 2.5, "prune": 3}

var titles = map[string]string{
	"first": "first backup, four disks", "second": "day 2, reading everything", "restore": "restore of one disk", "verify": "verification of all data", "prune": "delete day 1 and reclaim",
}

// results makes the rows: ours against the best peer in any setting, and ours encrypted against the best encrypted one.
func (b *bench) results(list []*contender, runs map[string]*series) {
	for _, encrypted := range []bool{false, true} {
		var mine *contender
		for _, c := range list {
			if c.isOurs() && c.encrypted == encrypted {
				mine = c
			}
		}
		if mine == nil {
			continue
		}
		suffix := ""
		if encrypted {
			suffix = ", encrypted"
		}
		for _, step := range []string{"first", "second", "restore", "verify", "prune"} {
			r := runs[mine.name]
			row := report.Row{Name: titles[step] + suffix, Unit: "s", Ours: report.Median(r.took[step]), Better: report.Less}
			for _, c := range list {
				if c.isOurs() || encrypted && !c.encrypted || len(runs[c.name].took[step]) == 0 {
					continue
				}
				if m := report.Median(runs[c.name].took[step]); row.Peer == nil || m < *row.Peer {
					row.Peer, row.PeerName = report.Ptr(m), c.name
				}
			}
			if row.Peer != nil {
				goal := goals[step]
				if encrypted && step == "first" {
					goal = 4
				}
				row.Goal = report.Ptr(report.Round(*row.Peer / goal))
			}
			b.rep.Add(row)
		}
		b.rep.Add(report.Row{Name: "largest memory" + suffix, Unit: "MB", Ours: runs[mine.name].peak / 1e6, Goal: report.Ptr(100.0), Better: report.Less})
		row := report.Row{Name: "stored after day 1" + suffix, Unit: "MB", Ours: runs[mine.name].stored["first"] / 1e6, Better: report.Less}
		for _, c := range list {
			if n := runs[c.name].stored["first"] / 1e6; !c.isOurs() && n > 0 && (row.Peer == nil || n < *row.Peer) {
				row.Peer, row.PeerName = report.Ptr(n), c.name
			}
		}
		b.rep.Add(row)
	}
	plain, sealed := runs["drover"], runs["drover, encrypted"]
	if plain != nil && sealed != nil {
		cost := 100 * (report.Median(sealed.took["first"])/report.Median(plain.took["first"]) - 1)
		b.rep.Add(report.Row{Name: "cost of encryption, first backup", Unit: "%", Ours: cost, Goal: report.Ptr(15.0), Better: report.Less})
	}
}

func (c *contender) isOurs() bool { return len(c.name) >= 6 && c.name[:6] == "drover" }
