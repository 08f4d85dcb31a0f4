package qmp

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// MaxEvent bounds one event, in bytes. QEMU's are below 2 KB; a longer one is
// dropped and counts as lost.
const MaxEvent = 64 << 10

// DefaultBuffer is the number of events kept for a subscriber that names none.
const DefaultBuffer = 256

// Lagged is the name of the event that stands where events were lost because
// the subscriber was slow. Whoever reads it must ask for the present state.
const Lagged = "X-LAGGED"

// Event is something that QEMU said by itself.
type Event struct {
	// Name is QEMU's, such as EventShutdown, or Lagged.
	Name string
	// Data is the event's own object, or nil. Shared by all subscribers: read only.
	Data json.RawMessage
	// Time is when QEMU says that it happened, by the host's wall clock.
	Time time.Time
}

// Decode parses the event's data into out, one of the Event… data types.
func (e Event) Decode(out any) error {
	if e.Data == nil {
		return fmt.Errorf("qmp: event %s has no data", e.Name)
	}
	if err := json.Unmarshal(e.Data, out); err != nil {
		return fmt.Errorf("qmp: event %s: %w", e.Name, err)
	}
	return nil
}

// Subscription is one listener to events, in QEMU's order.
type Subscription struct {
	// C delivers the events. It is closed, after what is still buffered, when the
	// connection ends, and by Close.
	C <-chan Event

	c     *Client
	ch    chan Event // one place more than the buffer, for Lagged; written and closed under c.subMu
	names []string   // empty: all

	lagged bool // under c.subMu: Lagged is the last thing put in ch
}

// Subscribe listens to the named events, or to all when none is named. Up to
// buffer events wait for the reader of C (0: DefaultBuffer). To miss nothing,
// subscribe first and then query the state. End it with Close.
func (c *Client) Subscribe(buffer int, names ...string) *Subscription {
	if buffer <= 0 {
		buffer = DefaultBuffer
	}
	ch := make(chan Event, buffer+1)
	s := &Subscription{C: ch, c: c, ch: ch, names: slices.Clone(names)}
	c.subMu.Lock()
	defer c.subMu.Unlock()
	if c.ended {
		close(ch)
		return s
	}
	c.subs[s] = struct{}{}
	return s
}

// Close ends the subscription and closes C. It may be called more than once.
func (s *Subscription) Close() {
	s.c.subMu.Lock()
	defer s.c.subMu.Unlock()
	if _, ok := s.c.subs[s]; ok {
		delete(s.c.subs, s)
		close(s.ch)
	}
}

// Next waits for the next event. Its error is ctx's, or wraps ErrGone when the
// connection or the subscription has ended.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	select {
	case e, ok := <-s.C:
		if ok {
			return e, nil
		}
		if err := s.c.Err(); err != nil {
			return Event{}, err
		}
		return Event{}, fmt.Errorf("qmp: %w: subscription closed", ErrGone)
	case <-ctx.Done():
		return Event{}, fmt.Errorf("qmp: wait for an event: %w", ctx.Err())
	}
}

// publish gives one event of the given size on the wire to its subscribers.
func (c *Client) publish(e Event, size int) {
	c.subMu.Lock()
	defer c.subMu.Unlock()
	if size > MaxEvent {
		c.log.Debug("qmp: event dropped, too long", "bytes", size)
	}
	for s := range c.subs {
		switch {
		case size > MaxEvent:
			// Its name cannot be trusted to be of any sensible size either: all lag.
			s.lag()
		case len(s.names) == 0 || slices.Contains(s.names, e.Name):
			s.push(e)
		}
	}
}

// push adds e, or loses it. Only the reader's goroutine sends, so a place that
// is seen free stays free.
func (s *Subscription) push(e Event) {
	if s.lagged {
		if len(s.ch) > 0 {
			return // the gap is still ahead of the listener: e falls into it
		}
		s.lagged = false
	}
	if len(s.ch) >= cap(s.ch)-1 {
		s.lag()
		return
	}
	s.ch <- e
}

// lag marks a gap. The last place of ch is only ever used for this.
func (s *Subscription) lag() {
	if s.lagged && len(s.ch) > 0 {
		return
	}
	s.lagged = true
	s.ch <- Event{Name: Lagged}
}

func (c *Client) endSubscriptions() {
	c.subMu.Lock()
	defer c.subMu.Unlock()
	c.ended = true
	for s := range c.subs {
		close(s.ch)
	}
	clear(c.subs)
}
