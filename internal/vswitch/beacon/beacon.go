package beacon

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"drover/internal/vswitch/inet"
	"drover/internal/vswitch/table"
)

// Interval is how often an uplink sends one.
const Interval = time.Second

// Lost is how many in a row are missed before an uplink counts as not heard.
const Lost = 3

// EtherType is the first of IEEE 802 for local experiments.
const EtherType = 0x88b5

// Group is where beacons are sent to: 03 and "DROVE". It is no link-local control address, so switches forward it.
var Group = table.MAC{0x03, 0x44, 0x52, 0x4f, 0x56, 0x45}

// magic and version begin the payload.
var magic = []byte{'D', 'V', 'B', 1}

// Beacon is what an uplink says.
type Beacon struct {
	Host   [16]byte // uid
	Team   string
	Uplink string // device
	Seq    uint32
	Proof  [8]byte // that the host itself sent it: guests can send frames that look alike
}

// ErrMalformed is wrapped by the errors of Parse.
var ErrMalformed = errors.New("malformed beacon")

// Encode makes the frame. Names are at most 255 bytes. Beacons are untagged.
func (b Beacon) Encode(src table.MAC) []byte {
	p := append(bytes.Clone(magic), b.Host[:]...)
	p = binary.BigEndian.AppendUint32(p, b.Seq)
	p = append(p, b.Proof[:]...)
	for _, s := range []string{b.Team, b.Uplink} {
		s = s[:min(len(s), 255)]
		p = append(append(p, byte(len(s))), s...)
	}
	if short := 46 - len(p); short > 0 {
		p = append(p, make([]byte, short)...)
	}
	return inet.Ethernet(Group, src, 0, EtherType, p)
}

// Parse reads a frame without tag.
func Parse(frame []byte) (Beacon, error) {
	const fixed = 14 + 4 + 16 + 4 + 8
	if len(frame) < fixed || binary.BigEndian.Uint16(frame[12:]) != EtherType || !bytes.Equal(frame[14:18], magic) {
		return Beacon{}, fmt.Errorf("%w: %d bytes, or of another kind", ErrMalformed, len(frame))
	}
	b := Beacon{Host: [16]byte(frame[18:]), Seq: binary.BigEndian.Uint32(frame[34:]), Proof: [8]byte(frame[38:])}
	rest := frame[fixed:]
	for _, s := range []*string{&b.Team, &b.Uplink} {
		if len(rest) < 1 || len(rest) < 1+int(rest[0]) {
			return Beacon{}, fmt.Errorf("%w: a name is cut", ErrMalformed)
		}
		end := 1 + int(rest[0])
		*s, rest = string(rest[1:end]), rest[end:]
	}
	return b, nil
}

// Monitor watches the uplinks of one team of one host.
type Monitor struct {
	host    [16]byte
	team    string
	key     []byte // of proofs: nobody else needs it, since only the sender's own host listens
	seq     uint32
	carrier map[string]time.Time    // has one since
	heard   map[[2]string]time.Time // by {receiver, sender}
}

// New makes a Monitor.
func New(host [16]byte, team string) *Monitor {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it never fails
	return &Monitor{host: host, team: team, key: key, carrier: map[string]time.Time{}, heard: map[[2]string]time.Time{}}
}

// SetCarriers says which uplinks of the team have a carrier now.
func (m *Monitor) SetCarriers(up []string, now time.Time) {
	carrier := map[string]time.Time{}
	for _, u := range up {
		carrier[u] = now
		if since, ok := m.carrier[u]; ok {
			carrier[u] = since
		}
	}
	m.carrier = carrier
	for pair := range m.heard {
		for _, u := range pair {
			if _, ok := carrier[u]; !ok {
				delete(m.heard, pair)
			}
		}
	}
}

// Next is what each uplink with a carrier sends now, by device. Call it every Interval.
func (m *Monitor) Next() map[string]Beacon {
	m.seq++
	out := map[string]Beacon{}
	for u := range m.carrier {
		b := Beacon{Host: m.host, Team: m.team, Uplink: u, Seq: m.seq}
		b.Proof = m.proof(b)
		out[u] = b
	}
	return out
}

func (m *Monitor) proof(b Beacon) (p [8]byte) {
	b.Proof = [8]byte{}
	h := hmac.New(sha256.New, m.key)
	h.Write(b.Encode(table.MAC{}))
	copy(p[:], h.Sum(nil))
	return p
}

// Heard takes in a beacon that came by an uplink. Those of others, and an uplink's own that came back, don't count.
func (m *Monitor) Heard(uplink string, b Beacon, now time.Time) {
	_, here := m.carrier[uplink]
	_, sender := m.carrier[b.Uplink]
	proof := m.proof(b)
	// An old one, replayed, would hide a loss.
	if here && sender && hmac.Equal(proof[:], b.Proof[:]) && b.Host == m.host && b.Team == m.team && b.Uplink != uplink && b.Seq <= m.seq && m.seq-b.Seq < Lost {
		m.heard[[2]string{uplink, b.Uplink}] = now
	}
}

// CutOff says of each uplink with a carrier whether it is cut off: for Lost intervals it heard none, or none heard it, while two others heard each other.
func (m *Monitor) CutOff(now time.Time) map[string]bool {
	const window = Lost * Interval
	fresh := func(receiver, sender string) bool {
		at, ok := m.heard[[2]string{receiver, sender}]
		return ok && now.Sub(at) <= window
	}
	out := map[string]bool{}
	for u, since := range m.carrier {
		hears, isHeard, others := false, false, false
		for v := range m.carrier {
			hears = hears || fresh(u, v)
			isHeard = isHeard || fresh(v, u)
			for w := range m.carrier {
				others = others || v != u && w != u && fresh(v, w) && fresh(w, v)
			}
		}
		out[u] = others && !(hears && isHeard) && now.Sub(since) > window
	}
	return out
}
