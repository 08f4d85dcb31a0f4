package main

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"drover/bench/report"
	"drover/internal/vswitch/table"

	"golang.org/x/sys/unix"
)

// change measures what changes cost while the switch is in use.
func (b *bench) change() (err error) {
	l, err := b.largePair(2, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if err := b.register(l); err != nil {
		return err
	}
	return b.restart(l)
}

// register pushes registrations as they come from the manager.
func (b *bench) register(l *large) error {
	const many = 10_000
	rows, bind := map[table.FDBKey]table.FDBEntry{}, map[table.BindingKey]table.Binding{}
	var gone []table.FDBKey
	var free []table.BindingKey
	for i := range many {
		mac, addr := crowd(i)
		k, a := table.FDBKey{Net: lanNet, MAC: mac}, table.BindingKey{Net: lanNet, IP: table.IPOf(addr)}
		rows[k] = table.FDBEntry{Place: table.PlaceUplink}
		bind[a] = table.Binding{MAC: mac, Source: table.BindingRemote}
		gone, free = append(gone, k), append(free, a)
	}
	var took []float64
	for range b.rounds {
		began := time.Now()
		if err := l.d.dp.Register(b.ctx, rows, nil, bind, nil); err != nil {
			return err
		}
		took = append(took, report.Ms(time.Since(began)))
		if err := l.d.dp.Register(b.ctx, nil, gone, nil, free); err != nil {
			return err
		}
	}
	b.rep.Add(report.Row{Name: "10,000 registrations with an address each, pushed", Unit: "ms", Ours: report.Median(took), Goal: report.Ptr(1000.0), Better: report.Less})
	return nil
}

// restart lets go of the datapath and takes it over again, ten times, while a steady stream passes.
func (b *bench) restart(l *large) (err error) {
	const restarts, rate = 10, 10_000
	frame := udpFrame(l.a, l.b, 60)
	// The guest's own queue is as long as the whole stream: a reader that the machine has no time for is no loss of the switch's.
	if err := l.sw.SetTxQueue(l.b.port, 60_000); err != nil {
		return err
	}
	l.drain()
	var c crew
	var stop atomic.Bool
	var sent, received int
	c.start(l.sw, cpuSend, func() error {
		began := time.Now()
		for !stop.Load() {
			for due := int(time.Since(began).Seconds() * rate); sent < due; sent++ {
				if _, err := unix.Write(l.a.tap, frame); err != nil {
					return fmt.Errorf("write to the TAP: %w", err)
				}
			}
			if _, err := unix.Poll(nil, 1); err != nil && err != unix.EINTR {
				return err
			}
		}
		return nil
	})
	var silent atomic.Bool // no more is to come
	c.start(l.sw, cpuReceive, func() error {
		buf := make([]byte, 1<<17)
		poll := []unix.PollFd{{Fd: int32(l.b.tap), Events: unix.POLLIN}}
		for {
			n, e := rawRead(l.b.tap, buf)
			if e == 0 {
				if n == len(frame) && buf[vnetHeader+12] == 8 && buf[vnetHeader+13] == 0 {
					received++
				}
				continue
			}
			if !again(e) {
				return fmt.Errorf("read from the TAP: %w", e)
			}
			if silent.Load() {
				return nil
			}
			if _, err := unix.Poll(poll, 20); err != nil && err != unix.EINTR {
				return err
			}
		}
	})
	var took []float64
	err = func() error {
		for range restarts {
			if err := l.d.dp.Close(); err != nil {
				return err
			}
			began := time.Now()
			if err := l.d.open(); err != nil {
				return err
			}
			if err := l.d.apply(); err != nil {
				return err
			}
			took = append(took, report.Ms(time.Since(began)))
		}
		return nil
	}()
	stop.Store(true)
	// All that was written is in the reader's queue by then: a TAP's write delivers before it returns.
	timer := time.NewTimer(300 * time.Millisecond)
	<-timer.C
	silent.Store(true)
	if err := errors.Join(err, c.wait()); err != nil {
		return err
	}
	tap, err := l.sw.Link(l.b.port)
	if err != nil {
		return err
	}
	b.rep.Say("change: %d restarts, %d frames sent, %d received; the far TAP dropped %d", restarts, sent, received, tap.Counters.TxDropped)
	b.rep.Add(report.Row{Name: fmt.Sprintf("frames lost in %d restarts of the agent's part, programs replaced", restarts), Unit: "frames", Ours: float64(sent - received), Goal: report.Ptr(0.0),
		Better: report.Less, Note: fmt.Sprintf("of %d, at %d a second", sent, rate)})
	b.rep.Add(report.Row{Name: "datapath opened and its tables written", Unit: "ms", Ours: report.Median(took), Better: report.Less})
	return nil
}
