package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"drover/bench/report"
)

// number is one that a case gives, in the order of its results.
type number struct {
	name, unit, better string
	// goals are what ours (secure) should be at least of a contender's, by contender.
	goals map[string]float64
}

// trial is something that is measured of every contender.
type trial struct {
	name    string
	numbers []number
	run     func(p *pair, d time.Duration) ([]float64, error)
	skip    map[string]bool // contenders for which it has no meaning
}

// compare runs the cases on all pairs in turn and adds the rows.
func (b *bench) compare(part string, pairs []*pair, cases []trial) error {
	for _, c := range cases {
		got := map[string][][]float64{} // by contender: of each number, the rounds
		for round := range b.rounds + 1 {
			order := slices.Clone(pairs)
			if round%2 == 1 {
				slices.Reverse(order)
			}
			for _, p := range order {
				if err := b.ctx.Err(); err != nil {
					return err
				}
				if c.skip[p.kind] {
					continue
				}
				d := b.run
				if round == 0 {
					d /= 4 // fills caches and tables; does not count
				}
				v, err := c.run(p, d)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				if b.verbose {
					b.rep.Say("%s, %s, round %d of %s: %.4g", part, c.name, round, p.kind, v)
				}
				if round == 0 {
					continue
				}
				for i, x := range v {
					for len(got[p.kind]) <= i {
						got[p.kind] = append(got[p.kind], nil)
					}
					got[p.kind][i] = append(got[p.kind][i], x)
				}
			}
		}
		b.rows(part, c, got)
	}
	return nil
}

// rows adds a row for each number and peer.
func (b *bench) rows(part string, c trial, got map[string][][]float64) {
	for i, n := range c.numbers {
		if n.name == "" {
			continue // of no interest here
		}
		mid := map[string]*float64{}
		var said []string
		for _, kind := range []string{direct, bridge, bridgeBare, ovs, plain, secure} {
			if v := got[kind]; len(v) > i {
				mid[kind] = report.Ptr(report.Median(v[i]))
				said = append(said, fmt.Sprintf("%s %.4g", kind, *mid[kind]))
			}
		}
		b.rep.Say("%s: %s, %s: %s", part, n.name, n.unit, strings.Join(said, ", "))
		if mid[secure] == nil {
			continue
		}
		for _, peer := range []string{bridge, bridgeBare, ovs, direct} {
			// The limit has a column; as a peer it counts only where there is a goal.
			if _, goal := n.goals[peer]; mid[peer] == nil || peer == direct && !goal {
				continue
			}
			note := fmt.Sprintf("rounds: ours %s, peer's %s", span(got[secure][i]), span(got[peer][i]))
			r := report.Row{Name: part + ": " + n.name, Unit: n.unit, Ours: *mid[secure], Peer: mid[peer], PeerName: peerNames[peer],
				Limit: mid[direct], Better: n.better, Note: note}
			if mid[plain] != nil {
				r.Note = fmt.Sprintf("without guards %v; %s", report.Round(*mid[plain]), note)
			}
			if g, ok := n.goals[peer]; ok {
				want := g * *mid[peer]
				if n.better == report.Less {
					want = *mid[peer] / g
				}
				r.Goal = report.Ptr(report.Round(want))
				r.Met = report.Ptr(r.Ours >= want)
				if n.better == report.Less {
					r.Met = report.Ptr(r.Ours <= want)
				}
				r.Note = fmt.Sprintf("goal: %v × the peer; %s", g, r.Note)
			}
			b.rep.Add(r)
		}
	}
}

// span is the least and the most of the rounds.
func span(v []float64) string {
	return fmt.Sprintf("%v to %v", report.Round(slices.Min(v)), report.Round(slices.Max(v)))
}

var peerNames = map[string]string{
	direct: "a veth pair, nothing between", bridge: "Linux bridge without a firewall", bridgeBare: "the same without netfilter's hooks",
	ovs: "Open vSwitch, userspace datapath",
}

// pairs makes those of the contenders that are wanted.
func (b *bench) pairs(make func(string) (*pair, error), kinds ...string) (list []*pair, done func() error, err error) {
	done = func() error {
		var errs []error
		for _, p := range list {
			errs = append(errs, p.close())
		}
		return errors.Join(errs...)
	}
	for _, k := range kinds {
		if !listed(b.kinds, k) {
			continue
		}
		p, err := make(k)
		if err != nil {
			return nil, nil, errors.Join(err, done())
		}
		list = append(list, p)
	}
	return list, done, nil
}
