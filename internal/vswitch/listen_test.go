package vswitch

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"drover/internal/vswitch/table"
)

// next waits for a value.
func next[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(5 * time.Second):
		t.Fatalf("no %s within 5 s", what)
		panic("unreachable")
	}
}

func none[T any](t *testing.T, c <-chan T, what string) {
	t.Helper()
	select {
	case v := <-c:
		t.Errorf("%s: %+v, want none", what, v)
	default:
	}
}

// capturing runs Capture and says what it got and how it ended.
func capturing(ctx context.Context, d *Datapath, dev int) (got chan *table.Capture, ended chan error) {
	got, ended = make(chan *table.Capture, 1000), make(chan error, 1)
	go func() { ended <- d.Capture(ctx, dev, func(c *table.Capture) { got <- c }) }()
	return got, ended
}

// captures says whether the row of a device has the flag.
func (d *Datapath) captures(t *testing.T, dev int) bool {
	t.Helper()
	var p table.Port
	ifindex := uint32(dev)
	must(t, d.objs.Ports.Lookup(&ifindex, &p))
	return p.Flags&table.PortCapture != 0
}

// until waits until a capture has switched its flag on, or off.
func until(t *testing.T, d *Datapath, dev int, on bool) {
	t.Helper()
	end := time.After(5 * time.Second)
	for d.captures(t, dev) != on {
		select {
		case <-end:
			t.Fatalf("the capture flag of device %d is not %v within 5 s", dev, on)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestCapture(t *testing.T) {
	n, dir := testNet(t, "capture"), filepath.Join(testBPF(t), "drover-t")
	d := testDatapath(t, n, dir)
	p := testPair(t, n)
	a, b := p.devs[0], p.devs[1]
	must(t, d.Apply(t.Context(), p.tables()))
	try := func(dev int, number uint32) {
		t.Helper()
		_, _, err := d.Try(KindPort, dev, p.frame(number))
		must(t, err)
	}
	try(a, 1) // nobody looks
	ctx1, cancel1 := context.WithCancel(t.Context())
	got1, ended1 := capturing(ctx1, d, a)
	until(t, d, a, true)
	ctx2, cancel2 := context.WithCancel(t.Context())
	got2, ended2 := capturing(ctx2, d, a)
	// The second is there when it has got a frame.
	number := uint32(2)
	for seen := false; !seen; number++ {
		try(a, number)
		select {
		case <-got2:
			seen = true
		case <-time.After(20 * time.Millisecond):
		}
		if number > 200 {
			t.Fatal("the second capture gets nothing")
		}
	}
	c := next(t, got1, "capture")
	if c.Ifindex != uint32(a) || c.Point != table.CaptureFromGuest || int(c.Captured) != 64 || !bytes.Equal(c.Data[:64], p.frame(2)) {
		t.Errorf("captured %d bytes of device %d at point %d: % x; want frame 2 from the guest %d", c.Captured, c.Ifindex, c.Point, c.Data[:c.Captured], a)
	}
	if d.captures(t, b) {
		t.Error("the other port is captured, too")
	}
	must(t, d.Apply(t.Context(), p.tables()))
	if !d.captures(t, a) {
		t.Error("Apply switched the capture off")
	}
	cancel1()
	if err := next(t, ended1, "end of the first capture"); err != nil {
		t.Errorf("Capture: %v", err)
	}
	if !d.captures(t, a) {
		t.Error("the end of one capture switched the other off")
	}
	cancel2()
	if err := next(t, ended2, "end of the second capture"); err != nil {
		t.Errorf("Capture: %v", err)
	}
	if d.captures(t, a) {
		t.Error("the flag is on, and nobody looks")
	}

	// A later one does not get what the ring has from before.
	try(a, 5000)
	got3, ended3 := capturing(t.Context(), d, b)
	until(t, d, b, true)
	must(t, d.Close())
	if err := next(t, ended3, "end of a capture by Close"); err != nil && !errors.Is(err, ErrClosed) {
		t.Errorf("Capture: %v", err)
	}
	none(t, got3, "frame of before")
	if err := d.Capture(t.Context(), a, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Capture after Close: %v, want ErrClosed", err)
	}

	// An agent that was killed leaves the flag on; the next one switches it off.
	d = testDatapath(t, n, dir)
	if d.captures(t, b) {
		t.Error("Close left the capture on")
	}
	row, dev := p.tables().Ports[uint32(b)], uint32(b)
	row.Flags |= table.PortCapture
	must(t, d.objs.Ports.Put(&dev, &row))
	must(t, d.objs.Uplinks.Put(&dev, &table.Uplink{Slot: 9, Flags: table.UplinkCapture | table.UplinkShared}))
	must(t, d.Close())
	d = testDatapath(t, n, dir)
	if d.captures(t, b) {
		t.Error("Open left the capture of a killed agent on")
	}
	got, err := d.Tables()
	must(t, err)
	if f := got.Uplinks[dev].Flags; f != table.UplinkShared {
		t.Errorf("flags of the uplink are %#x, want SHARED alone", f)
	}
}

func TestListen(t *testing.T) {
	n := testNet(t, "events")
	d := testDatapath(t, n, filepath.Join(testBPF(t), "drover-t"))
	p := testPair(t, n)
	must(t, d.Apply(t.Context(), p.tables()))
	forged := p.frame(1)
	forged[7] ^= 0x42
	_, _, err := d.Try(KindPort, p.devs[0], forged) // before anybody listens
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	got, ended := make(chan *table.Event, 10), make(chan error, 1)
	go func() { ended <- d.Events(ctx, func(e *table.Event) { got <- e }) }()
	e := next(t, got, "event")
	if e.Ifindex != uint32(p.devs[0]) || e.Slot != 1 || e.Net != 7 || e.Reason != table.DropSourceMAC || e.Length != 64 || !bytes.Equal(e.Data[:e.Captured], forged) {
		t.Errorf("event %v %+v, want a drop of the forged frame for its source MAC", e.Reason, e)
	}
	if err := d.Events(t.Context(), nil); !errors.Is(err, ErrBusy) {
		t.Errorf("Events for a second: %v, want ErrBusy", err)
	}
	c, err := d.Counters([]uint32{1})
	must(t, err)
	if c[1].Drops[table.DropSourceMAC] != (table.DropCount{Packets: 1, Bytes: 64}) {
		t.Errorf("counters %+v, want one drop for the source MAC", c[1])
	}
	must(t, d.ResetCounters(1))
	if c, err = d.Counters([]uint32{1}); err != nil || len(c[1].Drops) != 0 || c[1].InPackets != 0 {
		t.Errorf("after the reset, slot 1 counts %+v, %v", c[1], err)
	}
	cancel()
	if err := next(t, ended, "end of events"); err != nil {
		t.Errorf("Events: %v", err)
	}
	go func() { ended <- d.Punts(t.Context(), func(*table.Punt) {}) }()
	go func() { ended <- d.Events(t.Context(), func(*table.Event) {}) }()
	must(t, d.Close())
	for range 2 {
		if err := next(t, ended, "end by Close"); err != nil && !errors.Is(err, ErrClosed) {
			t.Errorf("listener: %v", err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	e := table.Event{Captured: 60}
	var whole bytes.Buffer
	_ = binary.Write(&whole, binary.NativeEndian, &e)
	f.Add(whole.Bytes())
	f.Add(whole.Bytes()[:eventHead+60])
	f.Add(whole.Bytes()[:eventHead+59])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		if e, err := decodeEvent(raw); err == nil && (int(e.Captured) > table.EventBytes || int(e.Captured) > len(raw)-eventHead || !bytes.Equal(e.Data[:e.Captured], raw[eventHead:][:e.Captured])) {
			t.Errorf("event says %d bytes of a record of %d", e.Captured, len(raw))
		}
		if p, err := decodePunt(raw); err == nil && (int(p.Captured) > table.PuntBytes || int(p.Captured) > len(raw)-puntHead) {
			t.Errorf("punt says %d bytes of a record of %d", p.Captured, len(raw))
		}
		if c, err := decodeCapture(raw); err == nil && (int(c.Captured) > table.CaptureBytes || int(c.Captured) > len(raw)-captureHead) {
			t.Errorf("capture says %d bytes of a record of %d", c.Captured, len(raw))
		}
		if !bytes.Equal(before, raw) {
			t.Error("decoding changed the record")
		}
	})
}
