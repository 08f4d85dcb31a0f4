package vswitch

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
)

func TestRates(t *testing.T) {
	g := newGuarded(t)
	slow := func(burst uint64) table.Bucket { return table.Bucket{Rate: 1, Burst: burst} }
	unicast, all, group := rawFrame(ownMAC, otherMAC, 0x1234, make([]byte, 86)...), rawFrame(ownMAC, broadcast, 0x1234, make([]byte, 86)...), rawFrame(ownMAC, allHosts, 0x1234, make([]byte, 86)...)
	tests := []struct {
		name   string
		flags  table.PortFlag
		meter  table.Meter
		frame  []byte
		passes int // -1: all
		want   table.Reason
	}{
		{"bytes", table.PortMeterIn, table.Meter{In: slow(350)}, unicast, 3, table.DropRateIn},
		{"bytes, not asked", 0, table.Meter{In: slow(350)}, unicast, -1, 0},
		{"no limit", table.PortMeterIn | table.PortStorm, table.Meter{}, unicast, -1, 0},
		{"larger than the bucket", table.PortMeterIn, table.Meter{In: slow(50)}, unicast, 1, table.DropRateIn},
		{"broadcast", table.PortStorm, table.Meter{Broadcast: slow(4)}, all, 4, table.DropStormBroadcast},
		{"multicast", table.PortStorm, table.Meter{Broadcast: slow(4), Multicast: slow(2)}, group, 2, table.DropStormMulticast},
		{"unknown", table.PortStorm, table.Meter{Unknown: slow(5)}, unicast, 5, table.DropStormUnknown},
		{"unicast is no storm", table.PortStorm, table.Meter{Broadcast: slow(1), Multicast: slow(1)}, unicast, -1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g.set(t, tt.flags, tt.meter)
			for i := range 8 {
				want := table.DropNone
				if tt.passes >= 0 && i >= tt.passes {
					want = tt.want
				}
				if got := g.verdict(t, tt.frame); got != want {
					t.Fatalf("frame %d: %v, want %v", i, got, want)
				}
			}
		})
	}
}

// A frame that the kernel will cut into segments pays for each one's headers.
func TestRateOfSegments(t *testing.T) {
	g := newGuarded(t)
	tcp := make([]byte, 32+2500)
	tcp[12] = 8 << 4
	const whole, wire = 14 + 20 + 32 + 2500, 14 + 20 + 32 + 2500 + 4*(14+20+32)
	f := guardIP("10.0.0.5", "10.0.0.1", 6, gopacket.Payload(tcp))
	for _, c := range []struct {
		gso  uint32
		want uint64
	}{{0, whole}, {500, wire}, {2500, whole}, {60000, whole}} {
		for _, burst := range []uint64{c.want, 2*c.want - 1} {
			g.set(t, table.PortMeterIn, table.Meter{In: table.Bucket{Rate: 1, Burst: burst}})
			must(t, g.ResetCounters(guardSlot))
			for range 2 {
				_, _, err := g.run(g.objs.PortIn, g.dev, skb{skbIngressIfindex: uint32(g.dev), skbGSOSize: c.gso}, f)
				must(t, err)
			}
			counters, err := g.Counters([]uint32{guardSlot})
			must(t, err)
			if n := counters[guardSlot].Drops[table.DropRateIn].Packets; n != 1 {
				t.Errorf("gso_size %d: of two frames in a bucket of %d, %d were dropped, want 1", c.gso, burst, n)
			}
		}
		g.set(t, table.PortMeterIn, table.Meter{In: table.Bucket{Rate: 1, Burst: 2 * c.want}})
		must(t, g.ResetCounters(guardSlot))
		for range 2 {
			_, _, err := g.run(g.objs.PortIn, g.dev, skb{skbIngressIfindex: uint32(g.dev), skbGSOSize: c.gso}, f)
			must(t, err)
		}
		counters, err := g.Counters([]uint32{guardSlot})
		must(t, err)
		if n := counters[guardSlot].Drops[table.DropRateIn].Packets; n != 0 {
			t.Errorf("gso_size %d: %d of two frames in a bucket for two were dropped", c.gso, n)
		}
	}
}

// Processors that race for a bucket let no more through than burst + rate × time, but for one frame each, and no less than the burst. How much of rate × time they
// use depends on when they get to run.
func TestRateUnderContention(t *testing.T) {
	g := newGuarded(t)
	f := rawFrame(ownMAC, otherMAC, 0x1234, make([]byte, 86)...)
	const burst, repeat = 2_000_000, 400_000
	for _, rate := range []uint64{1, 20_000_000} { // bytes: the bucket stays empty, or fills with 200,000 frames a second
		g.set(t, table.PortMeterIn, table.Meter{In: table.Bucket{Rate: rate, Burst: burst}})
		must(t, g.ResetCounters(guardSlot))
		runners := max(4, 2*runtime.NumCPU())
		start := time.Now()
		var wg sync.WaitGroup
		for range runners {
			wg.Go(func() {
				err := g.net.Do(func() error {
					_, err := g.objs.PortIn.Run(&ebpf.RunOptions{Data: f, Repeat: repeat, Context: &skb{skbIfindex: uint32(g.dev), skbIngressIfindex: uint32(g.dev)}})
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		elapsed := time.Since(start)
		c, err := g.Counters([]uint32{guardSlot})
		must(t, err)
		dropped := c[guardSlot].Drops[table.DropRateIn].Packets
		passed, floor := float64(runners*repeat)-float64(dropped), float64(burst)/float64(len(f))
		ceiling := floor + float64(rate)*elapsed.Seconds()/float64(len(f)) + float64(runners)
		t.Logf("%d runners, %v: %.0f of %d frames passed, at most %.0f may", runners, elapsed, passed, runners*repeat, ceiling)
		if passed > ceiling || passed < floor {
			t.Errorf("rate %d: %.0f frames passed, want %.0f to %.0f", rate, passed, floor, ceiling)
		}
	}
}

// A port whose rate is raised is not kept waiting for what it spent at the old one, nor is one given new credit by a change.
func TestRateChange(t *testing.T) {
	b := testBed(t, "rated")
	a := b.port("a", 1, func(p *table.Port) { p.Flags = table.PortMeterIn })
	c := b.port("c", 2, nil)
	frame := raw(mac(2), mac(1), 1000)
	passes := func(rate uint64) (n int) {
		b.want.Meters[1] = table.Meter{In: table.Bucket{Rate: rate, Burst: 10000}}
		b.apply()
		for range 20 {
			a.send(frame)
			if _, got := c.poll(time.Millisecond); got != nil {
				n++
			}
		}
		return n
	}
	if n := passes(10); n < 9 || n > 10 {
		t.Fatalf("%d frames of 1014 bytes passed a bucket of 10000", n)
	}
	if n := passes(20); n != 0 {
		t.Errorf("%d frames passed an empty bucket, since its rate changed", n)
	}
	if n := passes(100_000_000); n < 15 { // the first may come before anything is filled
		t.Errorf("%d frames of 20 passed at 100 MB a second: the port still pays at the old rate", n)
	}
	a.send(frame)
	if n := passes(10); n < 9 {
		t.Errorf("%d frames passed a bucket that had been almost full: spending at the new rate was counted twice", n)
	}
}
