package qmp

import (
	"testing"
)

type numbered struct {
	N int `json:"n"`
}

// sync makes sure that the client has read all that the peer said before.
func (p *peer) sync(c *Client) {
	done := async(testContext(p.t), c, "sync", nil)
	p.ok(p.hear(), `{}`)
	if err := <-done; err != nil {
		p.t.Fatal(err)
	}
}

func next(t *testing.T, s *Subscription) Event {
	t.Helper()
	e, err := s.Next(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func number(t *testing.T, e Event) int {
	t.Helper()
	var d numbered
	if err := e.Decode(&d); err != nil {
		t.Fatalf("%s: %v", e.Name, err)
	}
	return d.N
}

func TestSlowSubscriberIsToldOnce(t *testing.T) {
	c, p := pair(t, Options{})
	slow, quick := c.Subscribe(3), c.Subscribe(100)
	for i := range 10 {
		p.event("RESET", i)
	}
	p.sync(c)
	for i := range 3 {
		if n := number(t, next(t, slow)); n != i {
			t.Fatalf("event %d is %d", i, n)
		}
	}
	// The gap is not over before its marker was read.
	p.event("RESET", 10)
	p.sync(c)
	if e := next(t, slow); e.Name != Lagged {
		t.Fatalf("got %s, want the marker", e.Name)
	}
	p.event("RESET", 11)
	if n := number(t, next(t, slow)); n != 11 {
		t.Fatalf("after the marker: %d", n)
	}
	for i := range 12 {
		if n := number(t, next(t, quick)); n != i {
			t.Fatalf("the quick one got %d for %d", n, i)
		}
	}
	if len(slow.C) != 0 {
		t.Fatalf("%d events too many", len(slow.C))
	}
}

func TestHugeEventIsAGap(t *testing.T) {
	c, p := pair(t, Options{})
	s := c.Subscribe(4, "RESET")
	p.event("RESET", 0)
	p.say(`{"event": "X", "data": "` + long(MaxEvent) + `"}`)
	p.say(`{"event": "Y", "data": "` + long(MaxEvent) + `"}`)
	p.sync(c)
	if n := number(t, next(t, s)); n != 0 {
		t.Fatal(n)
	}
	if e := next(t, s); e.Name != Lagged {
		t.Fatalf("got %s", e.Name)
	}
	p.event("STOP", 1)
	p.event("RESET", 2)
	if n := number(t, next(t, s)); n != 2 {
		t.Fatal(n)
	}
}

func TestSubscriptionClose(t *testing.T) {
	c, p := pair(t, Options{})
	s := c.Subscribe(1)
	s.Close()
	s.Close()
	p.event("RESET", 0)
	p.sync(c)
	if _, ok := <-s.C; ok {
		t.Fatal("a closed subscription delivers")
	}
}

func TestEventTime(t *testing.T) {
	c, p := pair(t, Options{})
	s := c.Subscribe(1)
	p.event("RESET", 0)
	if e := next(t, s); e.Time.UnixMicro() != 1700000000_000005 {
		t.Fatalf("time is %v", e.Time)
	}
}
