package model_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"drover/internal/vswitch/frame"
	"drover/internal/vswitch/model"
	"drover/internal/vswitch/table"

	"golang.org/x/sys/unix"
)

// Return values of programs, linux/pkt_cls.h.
const (
	actPass     = 1<<32 - 1 // TC_ACT_UNSPEC: the next program, or the kernel
	actShot     = 2
	actRedirect = 7
)

// arrival is one frame that comes in by one device.
type arrival struct {
	Uplink  bool
	Ifindex uint32
	Bytes   []byte
	GSO     uint32
}

// state is what a run of frames leaves behind.
type state struct {
	traffic  map[uint32]table.Traffic
	drops    map[table.DropKey]table.DropCount
	punts    []string
	captures []string
	bindings []string
}

func clock(id int32) uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		panic(err)
	}
	return uint64(ts.Nano())
}

// ask lets the model say what becomes of an arrival.
func ask(m *model.Model, a *arrival) model.Result {
	f := model.Frame{Bytes: a.Bytes, GSOSize: a.GSO, Now: clock(unix.CLOCK_BOOTTIME), Monotonic: clock(unix.CLOCK_MONOTONIC)}
	if a.Uplink {
		return m.UplinkIn(a.Ifindex, f)
	}
	return m.PortIn(a.Ifindex, f)
}

// compare finds a difference between what a program returned and the model's result.
func compare(got ran, want *model.Result) string {
	action := map[model.Verdict]uint32{model.Dropped: actShot, model.Redirected: actRedirect, model.Flooded: actShot, model.Answered: actRedirect, model.Passed: actPass}[want.Verdict]
	if got.action != action {
		return fmt.Sprintf("the program returns %d, the model %d (%v %v)", int32(got.action), int32(action), want.Verdict, want.Reason)
	}
	if want.Verdict == model.Dropped {
		return ""
	}
	for _, o := range want.Outputs {
		if !o.Copy && !bytes.Equal(o.Bytes, got.bytes) {
			return fmt.Sprintf("the frame leaves as\n\t%x\nand in the model as\n\t%x", got.bytes, o.Bytes)
		}
	}
	if want.Verdict != model.Flooded && (got.mark != want.Mark || got.priority != want.Priority) {
		return fmt.Sprintf("mark %#x and priority %#x, in the model %#x and %#x", got.mark, got.priority, want.Mark, want.Priority)
	}
	return ""
}

// left is the state that results add up to.
func left(t *table.Tables, arrivals []arrival, results []model.Result) state {
	s := state{traffic: map[uint32]table.Traffic{}, drops: map[table.DropKey]table.DropCount{}}
	for i, r := range results {
		for _, c := range r.Counts {
			x := s.traffic[c.Slot]
			if c.Out {
				x.OutPackets++
				x.OutBytes += uint64(c.Bytes)
			} else {
				x.InPackets++
				x.InBytes += uint64(c.Bytes)
			}
			s.traffic[c.Slot] = x
		}
		for _, d := range r.Drops {
			k := table.DropKey{Slot: d.Slot, Reason: d.Reason}
			x := s.drops[k]
			x.Packets++
			x.Bytes += uint64(d.Bytes)
			s.drops[k] = x
		}
		for _, p := range r.Punts {
			s.punts = append(s.punts, fmt.Sprintf("kind %d from %d to %d in %d", p.Kind, arrivals[i].Ifindex, p.ToIfindex, r.Net))
		}
		for _, c := range r.Captures {
			s.captures = append(s.captures, fmt.Sprintf("point %d of %d %v vid %#x", c.Point, c.Ifindex, c.Reason, c.VID))
		}
	}
	return s
}

func bindingWords(all map[table.BindingKey]table.Binding) []string {
	var out []string
	for k, b := range all {
		out = append(out, fmt.Sprintf("%s in %d: port %d, %x, source %d", k.IP.Addr(), k.Net, b.Ifindex, b.MAC, b.Source))
	}
	slices.Sort(out)
	return out
}

// observed is the state of the datapath.
func (k *kernel) observed() (state, error) {
	traffic, err := k.counters()
	s := state{traffic: traffic, drops: k.drops(), bindings: bindingWords(k.bindings())}
	k.drain("punts", func(b []byte) {
		p := (*table.Punt)(unsafe.Pointer(&b[0]))
		s.punts = append(s.punts, fmt.Sprintf("kind %d from %d to %d in %d", p.Kind, p.Ifindex, p.ToIfindex, p.Net))
	})
	k.drain("captures", func(b []byte) {
		c := (*table.Capture)(unsafe.Pointer(&b[0]))
		s.captures = append(s.captures, fmt.Sprintf("point %d of %d %v vid %#x", c.Point, c.Ifindex, c.Reason, c.VID))
	})
	return s, err
}

func (s state) differs(want state) string {
	switch {
	case !maps.Equal(s.drops, want.drops):
		return fmt.Sprintf("drops %v, in the model %v", s.drops, want.drops)
	case !maps.Equal(s.traffic, want.traffic):
		return fmt.Sprintf("counters %v, in the model %v", s.traffic, want.traffic)
	case !slices.Equal(s.punts, want.punts):
		return fmt.Sprintf("punts %v, in the model %v", s.punts, want.punts)
	case !slices.Equal(s.captures, want.captures):
		return fmt.Sprintf("captures %v, in the model %v", s.captures, want.captures)
	case !slices.Equal(s.bindings, want.bindings):
		return fmt.Sprintf("bindings\n\t%q, in the model\n\t%q", s.bindings, want.bindings)
	}
	return ""
}

// try runs arrivals through both. It returns the first difference and after how many arrivals it was seen.
func (k *kernel) try(t *table.Tables, arrivals []arrival) (diff string, after int, results []model.Result, err error) {
	if err := k.load(t); err != nil {
		return "", 0, nil, err
	}
	m := model.New(t, nil)
	results = make([]model.Result, 0, len(arrivals))
	for i := range arrivals {
		a := &arrivals[i]
		r := ask(m, a)
		program := k.run["port_in"]
		if a.Uplink {
			program = k.run["uplink_in"]
		}
		got, err := program.frame(a.Ifindex, a.Bytes, a.GSO)
		if err != nil {
			return "", i, nil, err
		}
		results = append(results, r)
		if diff := compare(got, &r); diff != "" {
			return diff, i + 1, results, nil
		}
	}
	s, err := k.observed()
	if err != nil {
		return "", 0, nil, err
	}
	want := left(t, arrivals, results)
	want.bindings = bindingWords(m.Bindings())
	return s.differs(want), len(arrivals), results, nil
}

// TestAgreement is the promise that the datapath does what docs/formats/datapath.md says, as far as frames and configurations at random can find
// out. DROVER_SEED repeats a run; DROVER_SOAK lets it go on for a million frames however long they take.
func TestAgreement(t *testing.T) {
	seed, limit := uint64(time.Now().UnixNano()), 60*time.Second
	if s := os.Getenv("DROVER_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	frames := 1_000_000
	if os.Getenv("DROVER_SOAK") != "" {
		limit = time.Hour
	}
	if testing.Short() {
		frames = 50_000
	}
	inKernel(t, func(k *kernel) {
		start := time.Now()
		done, configurations := 0, 0
		seen := map[string]int{}
		for ; done < frames && time.Since(start) < limit; configurations++ {
			g := newGenerator(seed+uint64(configurations), k)
			tables := g.tables()
			arrivals := g.arrivals(tables, 512)
			diff, after, results, err := k.try(tables, arrivals)
			if err != nil {
				t.Errorf("seed %d: %v", seed+uint64(configurations), err)
				return
			}
			if diff != "" {
				t.Errorf("seed %d, configuration %d (DROVER_SEED=%d shows it at once)\n%s", seed, configurations, seed+uint64(configurations), k.minimise(tables, arrivals[:after], diff))
				return
			}
			done += len(arrivals)
			for _, r := range results {
				seen[fmt.Sprint(r.Verdict, " ", r.Reason)]++
			}
		}
		t.Logf("seed %d: %d frames in %d configurations in %.1f s, all alike", seed, done, configurations, time.Since(start).Seconds())
		for _, w := range slices.Sorted(maps.Keys(seen)) {
			t.Logf("%9d %s", seen[w], w)
		}
		checkCoverage(t, seen, done)
	})
}

// checkCoverage fails when the frames at random no longer reach a rule.
func checkCoverage(t *testing.T, seen map[string]int, done int) {
	if done < 100_000 {
		return
	}
	unreachable := map[table.Reason]bool{
		table.DropUnmarked: true, // port_out's
		table.DropVTEP:     true, // tunnel_in's: a frame at random cannot have come by a tunnel
		table.DropRedirect: true, table.DropZone: true, table.DropAnswered: true,
	}
	for r := table.DropNone + 1; r < table.Reasons; r++ {
		if _, known := table.ReasonOf(r.String()); !known {
			continue
		}
		if !unreachable[r] && seen[fmt.Sprint(model.Dropped, " ", r)] == 0 {
			t.Errorf("no frame was dropped as %v: the generator does not reach that rule", r)
		}
	}
	for _, v := range []model.Verdict{model.Redirected, model.Flooded, model.Answered, model.Passed} {
		if seen[fmt.Sprint(v, " ", table.DropNone)] == 0 {
			t.Errorf("no frame was %v", v)
		}
	}
}

// FuzzAgreement lets the fuzzer choose one frame's bytes; the seed makes the configuration.
func FuzzAgreement(f *testing.F) {
	env := frame.Env{MAC: table.MAC{0x52, 0x54, 0, 0, 0, 1}}
	for i, text := range []string{"arp who-has 10.0.0.1", "nd solicit 2001:db8::2", "bpdu", "dhcp discover", "vlan 10 udp 10.0.0.2", "mld join ff05::1", "vrrp"} {
		b, err := frame.Describe(text, env)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint64(i), uint8(i), b)
	}
	n, k := openKernel(f)
	f.Fuzz(func(t *testing.T, seed uint64, port uint8, b []byte) {
		if len(b) < 14 || len(b) > 2000 {
			t.Skip()
		}
		g := newGenerator(seed, k)
		tables := g.tables()
		a := arrival{Ifindex: k.ports[int(port)%len(k.ports)], Bytes: runnable(b)}
		if port >= 192 {
			a.Uplink, a.Ifindex = true, k.uplinks[int(port)%len(k.uplinks)]
		}
		err := n.Do(func() error {
			diff, _, _, err := k.try(tables, []arrival{a})
			if diff != "" {
				t.Error(k.minimise(tables, []arrival{a}, diff))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
