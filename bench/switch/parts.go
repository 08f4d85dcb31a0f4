package main

import (
	"errors"
	"time"

	"drover/bench/report"
)

func stream(n int) func(*pair, time.Duration) ([]float64, error) {
	return func(p *pair, d time.Duration) ([]float64, error) { return p.stream(n, d) }
}

// uncut is a stream whose sender cuts its segments itself.
func uncut(p *pair, d time.Duration) (v []float64, err error) {
	if err := p.a.setSegmentation(false); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.a.setSegmentation(true)) }()
	return p.stream(1, d)
}

func (b *bench) veth() (err error) {
	pairs, done, err := b.pairs(b.vethPair, direct, bridge, bridgeBare, ovs, plain, secure)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	return b.compare("veth", pairs, []trial{
		{"TCP 1 stream", []number{
			{name: "TCP, 1 stream", unit: "Gbit/s", better: report.More, goals: map[string]float64{ovs: 2}},
			{name: "CPU for a Gbit of TCP, 1 stream", unit: "ms", better: report.Less},
		}, stream(1), nil},
		{"TCP 8 streams", []number{
			{name: "TCP, 8 streams", unit: "Gbit/s", better: report.More, goals: map[string]float64{ovs: 2}},
			{name: "CPU for a Gbit of TCP, 8 streams", unit: "ms", better: report.Less},
		}, stream(8), nil},
		{"TCP MTU", []number{
			{name: "TCP, MTU-size frames", unit: "Gbit/s", better: report.More, goals: map[string]float64{ovs: 2}},
			{name: "CPU for a Gbit of MTU-size frames", unit: "ms", better: report.Less},
		}, uncut, nil},
		{"UDP", []number{
			{name: "UDP, 64-byte frames", unit: "thousand/s", better: report.More, goals: map[string]float64{bridge: 1.15, bridgeBare: 1.15, direct: 0.9, ovs: 2}},
			{name: "CPU of the sender for each 64-byte frame", unit: "ns", better: report.Less, goals: map[string]float64{bridge: 1.15, bridgeBare: 1.15, direct: 0.9}},
		}, (*pair).packets, nil},
		{"round trip", []number{
			{name: "round trip, p50", unit: "µs", better: report.Less, goals: map[string]float64{bridge: 1, bridgeBare: 1, ovs: 2}},
			{name: "round trip, p99", unit: "µs", better: report.Less, goals: map[string]float64{bridge: 1, bridgeBare: 1, ovs: 2}},
		}, (*pair).roundTrip, nil},
		{"connections", []number{
			{name: "TCP connections", unit: "thousand/s", better: report.More, goals: map[string]float64{bridge: 1.15, bridgeBare: 1.15, direct: 0.9, ovs: 2}},
			{name: "CPU of both ends for a connection", unit: "µs", better: report.Less, goals: map[string]float64{bridge: 1.15, bridgeBare: 1.15, direct: 0.9}},
		}, (*pair).connections, nil},
	})
}

func (b *bench) tap() (err error) {
	pairs, done, err := b.pairs(b.tapPair, bridge, bridgeBare, ovs, plain, secure)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	of := func(frame func(from, to end) []byte) func(*pair, time.Duration) ([]float64, error) {
		return func(p *pair, d time.Duration) ([]float64, error) { return p.frames([][]byte{frame(p.a, p.b)}, d) }
	}
	packets := number{unit: "thousand/s", better: report.More, goals: map[string]float64{bridge: 1.4, bridgeBare: 1.4, ovs: 2}}
	small, full := packets, packets
	small.name, full.name = "60-byte frames", "1,502-byte frames"
	cpu := func(what string, goal float64) number {
		return number{name: "CPU of the sender for each of " + what, unit: "ns", better: report.Less, goals: map[string]float64{bridge: goal, bridgeBare: goal}}
	}
	return b.compare("TAP to TAP", pairs, []trial{
		{"60 bytes", []number{small, {}, cpu("60 bytes", 1.4)}, of(func(from, to end) []byte { return udpFrame(from, to, 60) }), nil},
		{"1,502 bytes", []number{full, {}, cpu("1,502 bytes", 1.4)}, of(func(from, to end) []byte { return udpFrame(from, to, 1502) }), nil},
		{"64 KB", []number{
			{name: "64 KB frames, uncut", unit: "thousand/s", better: report.More, goals: map[string]float64{bridge: 1, bridgeBare: 1, ovs: 2}},
			{name: "64 KB frames, uncut", unit: "Gbit/s", better: report.More},
			cpu("64 KB", 1),
		}, of(func(from, to end) []byte { return gsoFrame(from, to, 1448) }), nil},
	})
}
