package vswitch

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"drover/internal/vswitch/table"
)

// TestChurn replaces rows of ports, members and teams as fast as it can while frames are flooded and sent. Who stays gets each frame once, in order, but for
// the very few that met two rows of the sender at once: those nobody gets, and no rule is blamed for them.
func TestChurn(t *testing.T) {
	b, up, other := uplinkBed(t, "churn", 0)
	a, c, d := b.port("a", 1, nil), b.port("c", 2, nil), b.port("d", 3, nil)
	e, f := b.port("e", 4, nil), b.port("f", 5, nil)
	b.apply()
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { done <- n }()
		for ; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			w := table.New()
			*w = *b.want
			w.Ports, w.Members, w.Networks, w.Teams = map[uint32]table.Port{}, map[table.MemberKey]table.Member{}, map[uint32]table.Network{}, map[uint32]table.Team{}
			for k, v := range b.want.Ports {
				v.Generation = uint32(n)
				if n%2 == 1 {
					v.Flags |= table.PortIPGuard | table.PortNoProxy
				}
				if k != e.ifindex || n%3 != 0 {
					w.Ports[k] = v
				}
			}
			row := uint32(0)
			for _, p := range [][]*plug{{a, c, d, e, f}, {e, a, c, d}, {f, d, c, a}, {a, c, d}}[n%4] {
				if p != e || n%3 != 0 {
					w.Members[table.MemberKey{Net: 7, Row: row}] = table.Member{Target: p.ifindex, Place: table.PlaceLocal}
					row++
				}
			}
			for k, v := range b.want.Networks {
				if k == 7 {
					v.Members = row
				}
				w.Networks[k] = v
			}
			team := b.want.Teams[2]
			for i := range team.Bucket {
				team.Bucket[i] = []uint32{up.ifindex, other.ifindex}[n%2]
			}
			w.Teams[2] = team
			if err := b.d.Apply(t.Context(), w); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	seen := map[uint32]int{} // by frame, on uplinks
	outside := func(wait time.Duration) {
		for _, p := range []*plug{up, other} {
			for _, got := p.poll(wait); got != nil; _, got = p.poll(wait) {
				seen[binary.BigEndian.Uint32(got[24:])]++ // behind a tag
			}
		}
	}
	broadcasts := 0
	void := func() (n uint64) { // whose frame it was is not sure then, either
		for slot := range uint32(6) {
			n += b.dropped(slot, table.DropNoPort)
		}
		return n
	}
	lost := uint64(0)
	until := time.Now().Add(2 * time.Second)
sending:
	for i := uint32(0); time.Now().Before(until); i++ {
		dst := everybody
		if i%4 == 3 {
			dst = mac(2)
		}
		frame := raw(dst, mac(1), 60)
		binary.BigEndian.PutUint32(frame[20:], i)
		a.send(frame)
		for _, p := range []*plug{c, d} {
			if p == d && dst != everybody {
				continue
			}
			_, got := p.poll(100 * time.Millisecond)
			if got == nil && p == c && void() > lost {
				lost++
				continue sending
			}
			if !bytes.Equal(got, frame) {
				all, err := b.d.Counters([]uint32{0, 1, 2, 3, 4, 5})
				t.Fatalf("frame %d: %s got %x, want %x; counters %+v, %v", i, p.name, got, frame, all, err)
			}
		}
		if dst == everybody {
			broadcasts++
		}
		outside(time.Microsecond)
		for _, p := range []*plug{e, f} { // they come and go
			p.poll(time.Microsecond)
		}
	}
	outside(20 * time.Millisecond)
	for _, p := range []*plug{a, c, d} {
		p.getsNothing()
	}
	close(stop)
	t.Logf("%d frames to all, %d changes, %d frames lost", broadcasts, <-done, lost)
	for i, n := range seen {
		if n != 1 {
			t.Errorf("frame %d went by the uplinks %d times", i, n)
		}
	}
	if lost > 20 {
		t.Errorf("%d frames lost", lost)
	}
	if len(seen) != broadcasts {
		t.Errorf("%d of %d frames to all went by the uplinks", len(seen), broadcasts)
	}
}
