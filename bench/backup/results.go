package main

import (
	"fmt"
	"strings"

	"drover/bench/report"
)

// steps are what is timed, in the order of the table.
var steps = []string{"first", "second", "bitmap", "restore", "verify", "prune", "thin"}

// goals are how many times as fast as the best peer, by step.
var goals = map[string]float64{"first": 2.5, "second": 3, "bitmap": 20, "restore": 2, "verify": 2.5, "prune": 3, "thin": 3}

var titles = map[string]string{
	"first": "first backup, four disks", "second": "day 2, reading everything", "bitmap": "day 2, told what changed", "restore": "restore of one disk", "verify": "verification of all data",
	"prune": "delete day 1 and reclaim", "thin": "delete and reclaim, half of all blocks dead",
}

// results makes the rows: ours against the best peer in any setting, and ours encrypted against the best encrypted one.
func (b *bench) results(list []*contender, runs map[string]*series) {
	for _, encrypted := range []bool{false, true} {
		var mine *contender
		var peers []*contender
		for _, c := range list {
			if c.isOurs() && c.encrypted == encrypted {
				mine = c
			}
			if !c.isOurs() && (!encrypted || c.encrypted) {
				peers = append(peers, c)
			}
		}
		if mine == nil {
			continue
		}
		suffix := ""
		if encrypted {
			suffix = ", encrypted"
		}
		r := runs[mine.name]
		for _, step := range steps {
			row := report.Row{Name: titles[step] + suffix, Unit: "s", Ours: report.Median(r.took[step]), Better: report.Less, Limit: b.limit(step)}
			of := step
			if step == "bitmap" {
				of, row.Note = "second", "peers read everything"
			}
			row.Peer, row.PeerName = best(peers, func(name string) float64 {
				if t := runs[name].took[of]; len(t) > 0 {
					return report.Median(t)
				}
				return 0
			})
			if row.Peer != nil {
				goal := goals[step]
				if encrypted && step == "first" {
					goal = 4
				}
				row.Goal = report.Ptr(report.Round(*row.Peer / goal))
			}
			if step == "thin" {
				row.Note = fmt.Sprintf("%.0f MB freed", r.freed/1e6)
				for _, c := range peers {
					if c.name == row.PeerName {
						row.Note += fmt.Sprintf(", peer %.0f MB", runs[c.name].freed/1e6)
					}
				}
			}
			b.rep.Add(row)
		}
		b.rep.Add(report.Row{Name: "largest memory" + suffix, Unit: "MB", Ours: r.peak / 1e6, Goal: report.Ptr(100.0), Better: report.Less})
		for _, day := range []string{"first", "second"} {
			row := report.Row{Name: map[string]string{"first": "stored after day 1", "second": "stored after day 2"}[day] + ", fast codec" + suffix, Unit: "MB", Ours: r.stored[day] / 1e6, Better: report.Less}
			row.Peer, row.PeerName = best(peers, func(name string) float64 { return runs[name].stored[day] / 1e6 })
			b.rep.Add(row)
			if day == "first" && !encrypted && row.Peer != nil {
				b.smallest, b.smallestName = *row.Peer, row.PeerName
			}
		}
	}
	plain, sealed := runs["drover"], runs["drover, encrypted"]
	if plain != nil && sealed != nil {
		cost := 100 * (report.Median(sealed.took["first"])/report.Median(plain.took["first"]) - 1)
		b.rep.Add(report.Row{Name: "cost of encryption, first backup", Unit: "%", Ours: cost, Goal: report.Ptr(15.0), Better: report.Less})
	}
}

// best is the least number of peers, and whose it is; those without one are 0.
func best(peers []*contender, of func(name string) float64) (*float64, string) {
	var least *float64
	var name string
	for _, c := range peers {
		if n := of(c.name); n > 0 && (least == nil || n < *least) {
			least, name = report.Ptr(n), c.name
		}
	}
	return least, name
}

// denseRow compares with the smallest of the peers, if they were run.
func (b *bench) denseRow(fast, dense float64, took usage) {
	row := report.Row{Name: "stored after day 1, recompressed", Unit: "MB", Ours: dense / 1e6, Better: report.Less,
		Note: fmt.Sprintf("%.0f MB before; recompressing and collecting took %.1f s", fast/1e6, took.took.Seconds())}
	if b.smallest > 0 {
		row.Peer, row.PeerName, row.Goal = report.Ptr(b.smallest), b.smallestName, report.Ptr(report.Round(b.smallest))
	}
	b.rep.Add(row)
}

func (c *contender) isOurs() bool { return strings.HasPrefix(c.name, "drover") }
