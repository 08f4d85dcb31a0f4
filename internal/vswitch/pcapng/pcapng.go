package pcapng

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"drover/internal/vswitch/table"
)

// Options is what a file tells of itself.
type Options struct {
	// Application and Hardware stand in the file's header; either may be empty.
	Application, Hardware string
	// Boot is when the machine's boot clock was 0. Frames are stamped by that clock.
	Boot time.Time
	// Snap is how many bytes of each frame are kept, of those that were captured; 0: all.
	Snap int
	// Name is what a device is called: "VM/NIC". Nil: "ifindex N".
	Name func(ifindex uint32) string
}

// Validate checks o.
func (o *Options) Validate() error {
	switch {
	case o.Boot.IsZero():
		return errors.New("pcapng: the time of boot is missing")
	case o.Snap < 0:
		return fmt.Errorf("pcapng: a snap length of %d bytes: it has to be 0 (all) or more", o.Snap)
	}
	return nil
}

// Block types.
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6
)

// Option codes. Those above 1 belong to one block type each.
const (
	optionEnd          = 0
	optionComment      = 1
	sectionHardware    = 2
	sectionApplication = 4
	interfaceName      = 2
	interfaceText      = 3
	interfaceClock     = 9
	packetFlags        = 2
	statisticsReceived = 4
	statisticsLost     = 7 // by the operating system: the ring was full
)

const (
	linkEthernet = 1
	nanoseconds  = 9 // 10^-9 s
	inbound      = 1
	outbound     = 2
	taggedVID    = 0x1000 // table.Capture.VID: there was a tag
)

// point is an interface of the file.
type point struct {
	ifindex uint32
	point   table.CapturePoint
}

// Writer makes the blocks of one file.
type Writer struct {
	options Options
	points  map[point]uint32
	frames  []uint64 // by interface
}

// New makes a writer; o is valid.
func New(o Options) *Writer {
	if o.Name == nil {
		o.Name = func(ifindex uint32) string { return fmt.Sprintf("ifindex %d", ifindex) }
	}
	return &Writer{options: o, points: map[point]uint32{}}
}

// AppendHeader appends the section header: the start of the file.
func (w *Writer) AppendHeader(b []byte) []byte {
	b, start := begin(b, blockSection)
	b = binary.LittleEndian.AppendUint32(b, 0x1a2b3c4d)
	b = binary.LittleEndian.AppendUint16(b, 1)
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint64(b, 1<<64-1) // length of the section: not known
	if w.options.Hardware != "" {
		b = option(b, sectionHardware, []byte(w.options.Hardware))
	}
	if w.options.Application != "" {
		b = option(b, sectionApplication, []byte(w.options.Application))
	}
	return end(option(b, optionEnd, nil), start)
}

// AppendInterface appends a point of capture, so that it is listed also if no frame passes it. AppendFrame does it when it is needed.
func (w *Writer) AppendInterface(b []byte, ifindex uint32, at table.CapturePoint) []byte {
	if _, ok := w.points[point{ifindex, at}]; ok {
		return b
	}
	w.points[point{ifindex, at}] = uint32(len(w.frames))
	w.frames = append(w.frames, 0)
	name, text := words(at)
	b, start := begin(b, blockInterface)
	b = binary.LittleEndian.AppendUint16(b, linkEthernet)
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(w.options.Snap))
	b = option(b, interfaceName, []byte(w.options.Name(ifindex)+" "+name))
	b = option(b, interfaceText, []byte(text))
	b = option(b, interfaceClock, []byte{nanoseconds})
	return end(option(b, optionEnd, nil), start)
}

// AppendFrame appends a frame, and its interface if it is the first of it.
func (w *Writer) AppendFrame(b []byte, c *table.Capture) []byte {
	b = w.AppendInterface(b, c.Ifindex, c.Point)
	id := w.points[point{c.Ifindex, c.Point}]
	w.frames[id]++
	data := c.Data[:min(int(c.Captured), len(c.Data))]
	length := c.Length
	tagged := c.VID&taggedVID != 0 && len(data) >= 12
	captured := len(data)
	if tagged {
		captured += 4
		length += 4
	}
	if w.options.Snap > 0 {
		captured = min(captured, w.options.Snap)
	}
	b, start := begin(b, blockPacket)
	b = binary.LittleEndian.AppendUint32(b, id)
	t := uint64(w.options.Boot.UnixNano()) + c.Time
	b = binary.LittleEndian.AppendUint32(b, uint32(t>>32))
	b = binary.LittleEndian.AppendUint32(b, uint32(t))
	b = binary.LittleEndian.AppendUint32(b, uint32(captured))
	b = binary.LittleEndian.AppendUint32(b, max(length, uint32(captured)))
	from := len(b)
	if tagged {
		b = append(b, data[:12]...)
		b = append(b, 0x81, 0, byte(c.VID>>8)&0x0f, byte(c.VID))
		b = append(b, data[12:]...)
	} else {
		b = append(b, data...)
	}
	b = pad(b[:from+captured], captured)
	direction := uint32(inbound)
	if c.Point == table.CaptureToGuest {
		direction = outbound
	}
	b = option(b, packetFlags, binary.LittleEndian.AppendUint32(nil, direction))
	if c.Point == table.CaptureDropped {
		b = option(b, optionComment, fmt.Appendf(nil, "dropped, %s: %s", c.Reason, c.Reason.Text()))
	}
	if c.GSOSize > 0 {
		b = option(b, optionComment, fmt.Appendf(nil, "to be cut into segments of %d bytes", c.GSOSize))
	}
	return end(option(b, optionEnd, nil), start)
}

// AppendStatistics appends how many frames each interface had by now, and on the first how many were lost because nobody took them out of the
// ring in time: the ring does not say whose they were. now is of the boot clock.
func (w *Writer) AppendStatistics(b []byte, now, lost uint64) []byte {
	t := uint64(w.options.Boot.UnixNano()) + now
	for id, n := range w.frames {
		var start int
		b, start = begin(b, blockStatistics)
		b = binary.LittleEndian.AppendUint32(b, uint32(id))
		b = binary.LittleEndian.AppendUint32(b, uint32(t>>32))
		b = binary.LittleEndian.AppendUint32(b, uint32(t))
		l := uint64(0)
		if id == 0 {
			l = lost
		}
		b = option(b, statisticsReceived, binary.LittleEndian.AppendUint64(nil, n+l))
		b = option(b, statisticsLost, binary.LittleEndian.AppendUint64(nil, l))
		b = end(option(b, optionEnd, nil), start)
	}
	return b
}

// PointName is what a point of capture is called, as requests name it.
func PointName(p table.CapturePoint) string {
	n, _ := words(p)
	return n
}

func words(p table.CapturePoint) (name, text string) {
	switch p {
	case table.CaptureFromGuest:
		return "from-guest", "what the guest sent, before policy"
	case table.CaptureAccepted:
		return "accepted", "what the guest sent and policy let pass"
	case table.CaptureToGuest:
		return "to-guest", "what was delivered to the guest"
	case table.CaptureDropped:
		return "dropped", "what was dropped; the comment says why"
	}
	return fmt.Sprintf("point-%d", p), "a point that this version does not know"
}

func begin(b []byte, kind uint32) ([]byte, int) {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, kind)
	return append(b, 0, 0, 0, 0), start
}

func end(b []byte, start int) []byte {
	n := uint32(len(b) - start + 4)
	binary.LittleEndian.PutUint32(b[start+4:], n)
	return binary.LittleEndian.AppendUint32(b, n)
}

func pad(b []byte, n int) []byte {
	for ; n%4 != 0; n++ {
		b = append(b, 0)
	}
	return b
}

func option(b []byte, code uint16, value []byte) []byte {
	if len(value) > 0xffff {
		value = value[:0xffff]
	}
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return pad(append(b, value...), len(value))
}
