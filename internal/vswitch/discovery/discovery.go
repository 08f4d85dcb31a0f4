package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"drover/internal/vswitch/table"
)

// Interval is how often an uplink tells of itself, and TTL how long that is good (IEEE 802.1AB, 9.2.5: msgTxInterval, msgTxHold 4).
const (
	Interval = 30 * time.Second
	TTL      = 4 * Interval
)

// Self is what an uplink tells.
type Self struct {
	MAC         table.MAC // of the uplink: the frames' source
	Chassis     table.MAC // the same for all uplinks of a host: its first uplink's, say
	Ifindex     int
	Port        string // "eth1"
	System      string // the host's name
	Description string // "Drover 0.3 on Debian 12"
	Addresses   []netip.Addr
}

// Neighbor is the physical port that an uplink is in, by its own words.
type Neighbor struct {
	Protocol    string // "lldp" or "cdp"
	Chassis     string
	Port        string
	System      string
	Description string
	Addresses   []netip.Addr
	VLAN        int           // untagged, if told
	TTL         time.Duration // 0: it says good-bye
}

// ErrMalformed is wrapped by all errors of Parse.
var ErrMalformed = errors.New("malformed neighbour announcement")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// Parse reads a frame without tag, LLDP (IEEE 802.1AB) or CDP version 1 or 2.
func Parse(frame []byte) (Neighbor, error) {
	if len(frame) < 14 {
		return Neighbor{}, malformed("%d bytes", len(frame))
	}
	proto := int(frame[12])<<8 | int(frame[13])
	switch {
	case proto == 0x88cc:
		return parseLLDP(frame[14:])
	case proto <= 1500 && [6]byte(frame[:6]) == cdpGroup:
		return parseCDP(frame[14:], proto)
	}
	return Neighbor{}, malformed("EtherType %#04x is neither LLDP nor CDP", proto)
}

// text makes words of what somebody sent: printable, one line, valid UTF-8, at most 255 bytes.
func text(b []byte) string {
	s := strings.Map(func(r rune) rune {
		switch {
		case r == 0:
			return -1
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError:
			return '?'
		}
		return r
	}, string(b))
	s = strings.TrimSpace(s)
	for len(s) > 255 {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

const maxAddresses = 8

func (n *Neighbor) addAddress(b []byte) {
	if a, ok := netip.AddrFromSlice(b); ok && len(n.Addresses) < maxAddresses && !a.IsUnspecified() {
		n.Addresses = append(n.Addresses, a)
	}
}

// Table remembers for each uplink what it heard last of each protocol.
type Table struct{ heard map[key]entry }

type key struct{ uplink, protocol string }

type entry struct {
	Neighbor
	seen time.Time
}

// Heard takes in a neighbour. It says whether what Neighbor tells of that uplink changed, but for the time.
func (t *Table) Heard(uplink string, n Neighbor, now time.Time) bool {
	before, _, _ := t.Neighbor(uplink, now)
	if t.heard == nil {
		t.heard = map[key]entry{}
	}
	if n.TTL <= 0 {
		delete(t.heard, key{uplink, n.Protocol})
	} else {
		t.heard[key{uplink, n.Protocol}] = entry{n, now}
	}
	after, _, _ := t.Neighbor(uplink, now)
	return fmt.Sprint(before) != fmt.Sprint(after)
}

// Neighbor is what an uplink heard, LLDP before CDP, and when.
func (t *Table) Neighbor(uplink string, now time.Time) (n Neighbor, seen time.Time, ok bool) {
	for _, p := range []string{"lldp", "cdp"} {
		if e, ok := t.heard[key{uplink, p}]; ok && now.Before(e.seen.Add(e.TTL)) {
			return e.Neighbor, e.seen, true
		}
	}
	return Neighbor{}, time.Time{}, false
}

// Host says whether a neighbour is another host of Drover. Switches that don't speak CDP or LLDP pass such frames on, so that all hosts behind them hear each other.
func (n Neighbor) Host() bool {
	return strings.HasPrefix(n.Description, product+" ") || strings.HasPrefix(n.Description, product+", ")
}

// product begins the description of hosts, and is their platform.
const product = "Drover"

// Forget drops what an uplink heard: its link went down.
func (t *Table) Forget(uplink string) {
	for _, p := range []string{"lldp", "cdp"} {
		delete(t.heard, key{uplink, p})
	}
}
