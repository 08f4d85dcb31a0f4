package beacon

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"drover/internal/vswitch/shark"
	"drover/internal/vswitch/table"
)

var (
	start = time.Unix(1_700_000_000, 0)
	host  = [16]byte{1, 2, 3}
	src   = table.MAC{2, 0, 0, 0, 0, 7}
)

func TestFrame(t *testing.T) {
	b := Beacon{Host: host, Team: "default", Uplink: "eth1", Seq: 7, Proof: [8]byte{9}}
	f := b.Encode(src)
	if got, err := Parse(f); err != nil || got != b {
		t.Errorf("Parse = %+v, %v; want %+v", got, err, b)
	}
	if len(f) != 60 {
		t.Errorf("%d bytes, want the shortest that Ethernet allows", len(f))
	}
	got := shark.Fields(t, [][]byte{f}, "eth.dst", "eth.src", "eth.type")
	if want := []string{"03:44:52:4f:56:45", "02:00:00:00:00:07", "0x88b5"}; !reflect.DeepEqual(got[0], want) {
		t.Errorf("tshark sees %q, want %q", got[0], want)
	}
	for _, bad := range [][]byte{nil, f[:30], f[:40], append(append([]byte(nil), f[:46]...), 200), []byte(strings.Repeat("x", 60))} {
		if _, err := Parse(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("% x: %v, want ErrMalformed", bad, err)
		}
	}
}

func TestCutOff(t *testing.T) {
	// hears[i] lists the pairs {receiver, sender} that get through in a phase.
	all := func(names string) (pairs []string) {
		for _, a := range names {
			for _, b := range names {
				if a != b {
					pairs = append(pairs, string(a)+string(b))
				}
			}
		}
		return pairs
	}
	for name, tt := range map[string]struct {
		uplinks string
		ways    []string
		cut     string
	}{
		"all is well":              {"abc", all("abc"), ""},
		"one is cut off":           {"abc", all("ab"), "c"},
		"one hears but not heard":  {"abc", append(all("ab"), "ca", "cb"), "c"},
		"one is heard but is deaf": {"abc", append(all("ab"), "ac", "bc"), "c"},
		"of two nobody knows":      {"ab", nil, ""},
		"two pairs":                {"abcd", append(all("ab"), all("cd")...), ""},
		"no beacons at all":        {"abc", nil, ""},
		"two are cut off":          {"abcd", all("ab"), "cd"},
	} {
		t.Run(name, func(t *testing.T) {
			m, now := New(host, "default"), start
			m.SetCarriers(strings.Split(tt.uplinks, ""), now)
			round := func(ways []string) {
				now = now.Add(Interval)
				sent := m.Next()
				for _, w := range ways {
					m.Heard(w[:1], sent[w[1:]], now)
				}
			}
			state := func() string {
				s := ""
				cut := m.CutOff(now)
				for _, u := range strings.Split(tt.uplinks, "") {
					if cut[u] {
						s += u
					}
				}
				return s
			}
			for range 5 {
				round(all(tt.uplinks))
			}
			for range Lost {
				round(tt.ways)
				if s := state(); s != "" {
					t.Fatalf("%q cut off after %v", s, now.Sub(start))
				}
			}
			round(tt.ways)
			if s := state(); s != tt.cut {
				t.Fatalf("cut off %q, want %q", s, tt.cut)
			}
			round(all(tt.uplinks))
			if s := state(); s != "" {
				t.Errorf("%q still cut off after it was heard again", s)
			}
		})
	}
}

func TestWhatDoesNotCount(t *testing.T) {
	m, now := New(host, "default"), start
	m.SetCarriers([]string{"a", "b", "c"}, now)
	now = now.Add(time.Minute)
	for range 3 {
		sent := m.Next()
		m.Heard("a", sent["b"], now)
		m.Heard("b", sent["a"], now)
	}
	old, b := m.Next()["a"], m.Next()["a"]
	for range Lost {
		b = m.Next()["a"]
	}
	other, team, future, forged := b, b, b, b
	other.Host[0]++
	team.Team = "storage"
	future.Seq++
	forged.Proof[0] ^= 1
	for _, x := range []*Beacon{&other, &team, &future} {
		x.Proof = m.proof(*x)
	}
	for name, x := range map[string]Beacon{"another host's": other, "another team's": team, "replayed": old, "not sent yet": future, "made up": forged} {
		m.Heard("c", x, now)
		if !m.CutOff(now)["c"] {
			t.Errorf("a beacon that is %s counted", name)
		}
	}
	m.Heard("c", m.Next()["c"], now)
	if !m.CutOff(now)["c"] {
		t.Error("an uplink heard itself")
	}
	m.SetCarriers([]string{"a", "b"}, now)
	m.SetCarriers([]string{"a", "b", "c"}, now)
	if m.CutOff(now)["c"] {
		t.Error("cut off at once after its carrier came back: give it time")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Beacon{Host: host, Team: "default", Uplink: "eth1", Seq: 7, Proof: [8]byte{9}}.Encode(src))
	f.Add(Beacon{Team: strings.Repeat("t", 255), Uplink: strings.Repeat("u", 255)}.Encode(src))
	f.Fuzz(func(t *testing.T, frame []byte) {
		b, err := Parse(frame)
		if err != nil {
			return
		}
		if again, err := Parse(b.Encode(src)); err != nil || again != b {
			t.Errorf("%+v reads back as %+v, %v", b, again, err)
		}
	})
}
