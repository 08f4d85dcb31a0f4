package model

import (
	"encoding/binary"

	"drover/internal/vswitch/table"
)

// Buckets of a meter.
const (
	bucketIn = iota
	bucketOut
	bucketBroadcast
	bucketMulticast
	bucketUnknown
	bucketDHCP
	bucketPunt
)

type bucketKey struct {
	slot   uint32
	bucket int
}

const (
	ticksNS     = 16 // a bucket's time is in 1/16 ns
	ticksSecond = ticksNS * 1_000_000_000
	maxBurst    = 1 << 29
)

func bucketOf(m *table.Meter, which int) table.Bucket {
	return [...]table.Bucket{m.In, m.Out, m.Broadcast, m.Multicast, m.Unknown, m.DHCP, m.Punt}[which]
}

// pay takes n out of a bucket, or says that there is not enough.
func (w *walk) pay(slot uint32, which int, n uint64) bool {
	m, ok := w.m.t.Meters[slot]
	if !ok {
		return true
	}
	b := bucketOf(&m, which)
	if b.Rate == 0 {
		return true
	}
	k := bucketKey{slot, which}
	stamp, ok := w.m.stamps[k]
	if !ok {
		stamp = b.Stamp
	}
	now := w.f.Monotonic * ticksNS
	burst := min(b.Burst, maxBurst) * ticksSecond / b.Rate
	cost := n * ticksSecond / b.Rate
	from := max(stamp, now)
	if from+min(cost, burst) > now+burst { // a frame larger than the bucket passes when it is full
		return false
	}
	w.m.stamps[k] = from + cost
	return true
}

// wire is what a frame is on the wire: with GSO it is cut into segments, each with the headers.
func (w *walk) wire() (packets, bytes uint64) {
	length, size := len(w.b), int(w.f.GSOSize)
	if size == 0 {
		return 1, uint64(length)
	}
	header := headerBytes(w.b)
	if length <= header+size {
		return 1, uint64(length)
	}
	n := (length - header + size - 1) / size
	return uint64(n), uint64(length + (n-1)*header)
}

// behindExtensions is where the upper layer of an IPv6 frame begins; with more extension headers than are walked, at the end of the frame.
func behindExtensions(f []byte, offset int, l4 byte) (int, byte) {
	for range maxExtensions {
		if !isExtension(l4) {
			return offset, l4
		}
		if offset+2 > len(f) {
			return len(f), l4
		}
		next, size := f[offset], (int(f[offset+1])+1)*8
		switch l4 {
		case 44:
			size = 8
		case 51:
			size = (int(f[offset+1]) + 2) * 4
		}
		offset, l4 = offset+size, next
	}
	if isExtension(l4) {
		offset = len(f)
	}
	return offset, l4
}

// headerBytes is what each segment of a GSO frame begins with.
func headerBytes(f []byte) int {
	at := func(i int) byte {
		if i < len(f) {
			return f[i]
		}
		return 0
	}
	offset, l4 := etherLen, byte(0)
	switch binary.BigEndian.Uint16(f[12:]) {
	case typeIP4:
		l4, offset = at(offset+9), offset+int(at(offset)&15)*4
	case typeIP6:
		l4 = 59 // nothing comes behind
		if offset+6 < len(f) {
			l4 = f[offset+6]
		}
		offset, l4 = behindExtensions(f, offset+40, l4)
	default:
		return offset
	}
	switch l4 {
	case protoTCP:
		return offset + int(at(offset+12)>>4)*4
	case protoUDP:
		return offset + 8
	}
	return offset
}

// rates is rule 8.
func (w *walk) rates() table.Reason {
	flags := w.port.Flags
	packets, bytes := w.wire()
	if flags&table.PortStorm != 0 && isGroup(w.dst) {
		which, reason, word := bucketMulticast, table.DropStormMulticast, "multicasts"
		if w.dst == broadcast {
			which, reason, word = bucketBroadcast, table.DropStormBroadcast, "broadcasts"
		}
		if !w.pay(w.slot, which, packets) {
			if w.trace {
				w.say("rate", false, "the port's share of %s is used up (%s)", word, w.limit(which, "packets"))
			}
			return reason
		}
		if w.trace {
			w.say("rate", true, "storm control: %s within %s", word, w.limit(which, "packets"))
		}
	}
	if flags&table.PortMeterIn != 0 {
		if !w.pay(w.slot, bucketIn, bytes) {
			if w.trace {
				w.say("rate", false, "above the rate limit from the guest (%s)", w.limit(bucketIn, "bytes"))
			}
			return table.DropRateIn
		}
		if w.trace {
			w.say("rate", true, "within the rate limit from the guest (%s)", w.limit(bucketIn, "bytes"))
		}
	}
	return table.DropNone
}
