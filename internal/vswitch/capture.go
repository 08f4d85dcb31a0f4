package vswitch

import (
	"context"
	"errors"
	"fmt"

	"drover/internal/vswitch/table"
)

// captureQueue is how many frames wait for a slow caller of Capture; what comes beyond is lost to it.
const captureQueue = 4096

// asked is one call of Capture.
type asked struct {
	ifindex uint32
	records chan *table.Capture
}

// Capture switches copies of a port's or uplink's frames on, calls each until ctx ends or the datapath is closed, and switches them off. Several at
// a time share the ring. A device without a row yields frames as soon as it has one. What each returns late loses frames of this capture only.
func (d *Datapath) Capture(ctx context.Context, ifindex int, each func(*table.Capture)) error {
	a := &asked{ifindex: uint32(ifindex), records: make(chan *table.Capture, captureQueue)}
	err := d.capture(ctx, a, each)
	if err != nil {
		return fmt.Errorf("capture on device %d: %w", ifindex, err)
	}
	return nil
}

func (d *Datapath) capture(ctx context.Context, a *asked, each func(*table.Capture)) (err error) {
	ended, err := d.join(ctx, a)
	if err != nil {
		return err
	}
	defer d.part(a)
	if err := d.countCapture(a.ifindex, 1); err != nil {
		return err
	}
	defer func() {
		// A datapath that was closed has switched all off.
		if off := d.countCapture(a.ifindex, -1); !errors.Is(off, ErrClosed) {
			err = errors.Join(err, off)
		}
	}()
	for {
		select {
		case c := <-a.records:
			each(c)
		case <-ctx.Done():
			return nil
		case <-ended:
			return nil
		}
	}
}

// join adds a, and starts the reader if a is the first. ended is closed when the reader has ended.
func (d *Datapath) join(ctx context.Context, a *asked) (ended <-chan struct{}, err error) {
	c := &d.rings
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.reader == nil {
		r, leave, err := c.enter(d.objs.Captures)
		if errors.Is(err, ErrBusy) { // the last one is about to end
			done := c.done
			c.mu.Unlock()
			select {
			case <-done:
			case <-ctx.Done():
			}
			c.mu.Lock()
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		done := make(chan struct{})
		c.reader, c.done, c.since, c.asked = r, done, bootTime(), map[*asked]bool{}
		go func() {
			defer close(done)
			defer leave() // takes mu: behind what takes it below
			if err := d.drain(r, d.handOut); err != nil {
				d.log.Warn("captures end", "err", err)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.reader == r {
				c.reader = nil
			}
		}()
	}
	c.asked[a] = true
	return c.done, nil
}

// part takes a away; the last one ends the reader and waits for it.
func (d *Datapath) part(a *asked) {
	c := &d.rings
	c.mu.Lock()
	delete(c.asked, a)
	if len(c.asked) > 0 {
		c.mu.Unlock()
		return
	}
	r, done := c.reader, c.done
	c.reader = nil
	c.mu.Unlock()
	if r != nil {
		r.Close()
	}
	<-done
}

// handOut gives a record to all who asked for its device.
func (d *Datapath) handOut(raw []byte) error {
	rec, err := decodeCapture(raw)
	if err != nil {
		return err
	}
	c := &d.rings
	c.mu.Lock()
	defer c.mu.Unlock()
	if rec.Time < c.since {
		return nil
	}
	for a := range c.asked {
		if a.ifindex != rec.Ifindex {
			continue
		}
		select {
		case a.records <- rec:
		default:
		}
	}
	return nil
}

// countCapture adds n captures of a device; the first switches its flag on, the last off.
func (d *Datapath) countCapture(ifindex uint32, n int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	if d.captured[ifindex] += n; d.captured[ifindex] == 0 {
		delete(d.captured, ifindex)
	}
	return d.setCapture(ifindex)
}

// setCapture makes the flags of a device's rows what captured says.
func (d *Datapath) setCapture(ifindex uint32) error {
	o := &outcome{}
	on := d.captured[ifindex] > 0
	if p, ok := d.have.Ports[ifindex]; ok && (p.Flags&table.PortCapture != 0) != on {
		p.Flags ^= table.PortCapture
		c := change[uint32, table.Port]{rows: d.maps.ports, have: d.have.Ports, keys: []uint32{ifindex}, values: []table.Port{p}}
		c.write(func(_ uint32, _ table.Port, err error) { o.other(err) })
	}
	if u, ok := d.have.Uplinks[ifindex]; ok && (u.Flags&table.UplinkCapture != 0) != on {
		u.Flags ^= table.UplinkCapture
		c := change[uint32, table.Uplink]{rows: d.maps.uplinks, have: d.have.Uplinks, keys: []uint32{ifindex}, values: []table.Uplink{u}}
		c.write(func(_ uint32, _ table.Uplink, err error) { o.other(err) })
	}
	return o.err()
}

// stopCaptures switches off what an agent that was killed left on.
func (d *Datapath) stopCaptures() error {
	var errs []error
	for ifindex := range d.have.Ports {
		errs = append(errs, d.setCapture(ifindex))
	}
	for ifindex := range d.have.Uplinks {
		errs = append(errs, d.setCapture(ifindex))
	}
	return errors.Join(errs...)
}
