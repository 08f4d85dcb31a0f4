package vswitch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// Sizes of the records' heads: what stands before their data.
const (
	eventHead   = int(unsafe.Offsetof(table.Event{}.Data))
	puntHead    = int(unsafe.Offsetof(table.Punt{}.Data))
	captureHead = int(unsafe.Offsetof(table.Capture{}.Data))
)

// decode reads a record's head into rec and checks how much data it says it has. A record may end behind its data.
func decode(raw []byte, head, max int, rec any, captured *uint16, data []byte) error {
	if len(raw) < head {
		return fmt.Errorf("record of %d bytes, want at least %d", len(raw), head)
	}
	padded := raw
	if len(raw) != head+max {
		padded = make([]byte, head+max)
		copy(padded, raw)
	}
	if _, err := binary.Decode(padded, binary.NativeEndian, rec); err != nil {
		return err
	}
	if int(*captured) > min(max, len(raw)-head) {
		return fmt.Errorf("record says that it has %d bytes of a frame, but has room for %d", *captured, min(max, len(raw)-head))
	}
	clear(data[*captured:]) // rings are not zeroed
	return nil
}

func decodeEvent(raw []byte) (*table.Event, error) {
	var e table.Event
	if err := decode(raw, eventHead, table.EventBytes, &e, &e.Captured, e.Data[:]); err != nil {
		return nil, fmt.Errorf("event: %w", err)
	}
	return &e, nil
}

func decodePunt(raw []byte) (*table.Punt, error) {
	var p table.Punt
	if err := decode(raw, puntHead, table.PuntBytes, &p, &p.Captured, p.Data[:]); err != nil {
		return nil, fmt.Errorf("punt: %w", err)
	}
	return &p, nil
}

func decodeCapture(raw []byte) (*table.Capture, error) {
	var c table.Capture
	if err := decode(raw, captureHead, table.CaptureBytes, &c, &c.Captured, c.Data[:]); err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	return &c, nil
}

// ErrBusy says that somebody reads the ring already.
var ErrBusy = errors.New("vswitch: somebody reads this ring already")

// Events calls each for every event until ctx ends or the datapath is closed; then it returns nil. One caller at a time: another gets ErrBusy. Events that
// came while nobody listened are told first, as far as the ring had room. each must not call Close, which waits for it.
func (d *Datapath) Events(ctx context.Context, each func(*table.Event)) error {
	return listen(ctx, d, d.objs.Events, decodeEvent, each)
}

// Punts does the same for punts.
func (d *Datapath) Punts(ctx context.Context, each func(*table.Punt)) error {
	return listen(ctx, d, d.objs.Punts, decodePunt, each)
}

func listen[T any](ctx context.Context, d *Datapath, m *ebpf.Map, decode func([]byte) (*T, error), each func(*T)) error {
	d.rings.mu.Lock()
	r, leave, err := d.rings.enter(m)
	d.rings.mu.Unlock()
	if err != nil {
		return err
	}
	defer leave()
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	return d.drain(r, func(raw []byte) error {
		v, err := decode(raw)
		if err == nil {
			each(v)
		}
		return err
	})
}

// drain reads until r is closed. The first record that makes no sense is logged.
func (d *Datapath) drain(r *ringbuf.Reader, each func([]byte) error) error {
	var rec ringbuf.Record
	told := false
	for {
		err := r.ReadInto(&rec)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a ring of the datapath: %w", err)
		}
		if err := each(rec.RawSample); err != nil && !told {
			told = true
			d.log.Warn("a record of the datapath makes no sense", "err", err)
		}
	}
}

// rings is who reads which ring. A ring has one reader at a time: two would give the kernel back what the other still reads.
type rings struct {
	wait sync.WaitGroup // of readers

	mu      sync.Mutex
	closed  bool
	readers map[*ebpf.Map]*ringbuf.Reader
	// The rest is of captures, which share a reader.
	asked  map[*asked]bool
	since  uint64          // records of before are from a capture that has ended
	reader *ringbuf.Reader // nil while nobody asks
	done   chan struct{}   // closed when the last reader has ended; nil before the first
}

// enter makes a reader, which close will close and wait for. leave closes it too. mu is held.
func (c *rings) enter(m *ebpf.Map) (_ *ringbuf.Reader, leave func(), _ error) {
	if c.closed {
		return nil, nil, ErrClosed
	}
	if c.readers[m] != nil {
		return nil, nil, ErrBusy
	}
	r, err := ringbuf.NewReader(m)
	if err != nil {
		return nil, nil, fmt.Errorf("read a ring of the datapath: %w", err)
	}
	if c.readers == nil {
		c.readers = map[*ebpf.Map]*ringbuf.Reader{}
	}
	c.readers[m] = r
	c.wait.Add(1)
	return r, func() {
		r.Close()
		c.mu.Lock()
		delete(c.readers, m)
		c.mu.Unlock()
		c.wait.Done()
	}, nil
}

func (c *rings) close() error {
	c.mu.Lock()
	c.closed = true
	var errs []error
	for _, r := range c.readers {
		errs = append(errs, r.Close())
	}
	c.mu.Unlock()
	c.wait.Wait()
	return errors.Join(errs...)
}
