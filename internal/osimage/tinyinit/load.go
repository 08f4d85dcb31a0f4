package main

import (
	"encoding/binary"
	"sync"
	"syscall"
	"time"
)

// load dirties memory at a steady rate: a word in each 4 KiB page of a region, round and round.
type load struct {
	mu     sync.Mutex
	stop   chan struct{}
	ended  chan struct{}
	mb     uint64
	rate   uint64
	rounds uint64
}

// serve takes mb (size of the region; 0 stops) and rate (MiB of pages dirtied a second). Without parameters it only reports.
func (l *load) serve(q query) (any, error) {
	if q.str("mb") != "" {
		mb, err := q.num("mb", 0)
		if err != nil {
			return nil, err
		}
		rate, err := q.num("rate", 10)
		if err != nil {
			return nil, err
		}
		if err := l.set(mb, rate); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return map[string]any{"mb": l.mb, "rate": l.rate, "rounds": l.rounds}, nil
}

func (l *load) set(mb, rate uint64) error {
	l.mu.Lock()
	stop, ended := l.stop, l.ended
	l.stop, l.ended, l.mb, l.rate = nil, nil, 0, 0
	l.mu.Unlock()
	if stop != nil {
		close(stop)
		<-ended
	}
	if mb == 0 {
		return nil
	}
	if mb > 1<<20 || rate > 1<<20 {
		return syscall.EINVAL
	}
	mem, err := syscall.Mmap(-1, 0, int(mb<<20), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return err
	}
	stop, ended = make(chan struct{}), make(chan struct{})
	l.mu.Lock()
	l.stop, l.ended, l.mb, l.rate, l.rounds = stop, ended, mb, rate, 0
	l.mu.Unlock()
	go l.run(mem, rate, stop, ended)
	return nil
}

func (l *load) run(mem []byte, rate uint64, stop, ended chan struct{}) {
	defer close(ended)
	defer syscall.Munmap(mem)
	const page = 4096
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	last, at := time.Now(), 0
	var owed float64
	var round uint64 = 1
	for {
		select {
		case <-stop:
			return
		case now := <-tick.C:
			owed = min(owed+now.Sub(last).Seconds()*float64(rate)*256, float64(len(mem)/page))
			last = now
			for ; owed >= 1; owed-- {
				binary.NativeEndian.PutUint64(mem[at:], round)
				if at += page; at >= len(mem) {
					at = 0
					round++
				}
			}
			l.mu.Lock()
			l.rounds = round - 1
			l.mu.Unlock()
		}
	}
}
