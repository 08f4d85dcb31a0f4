package auth

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"drover/internal/clock"
)

func waitOf(t *testing.T, err error) time.Duration {
	t.Helper()
	if err == nil {
		return 0
	}
	var retry *RetryError
	if !errors.As(err, &retry) {
		t.Fatal(err)
	}
	return retry.After
}

func TestLimiterGrowsPerUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(clock.Real())
		addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
		n := 0
		try := func() time.Duration { n++; return waitOf(t, l.Begin("ann", addr(n))) }
		for i := range freeAttempts {
			if w := try(); w != 0 {
				t.Fatalf("free attempt %d waits %v", i, w)
			}
		}
		for _, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30, 30} {
			w := try()
			if w != want*time.Second {
				t.Fatalf("wait %v, want %vs", w, int(want))
			}
			time.Sleep(w - time.Nanosecond)
			if try() == 0 {
				t.Fatal("let in a nanosecond early")
			}
			time.Sleep(time.Nanosecond)
			if w := try(); w != 0 {
				t.Fatalf("still waits %v after the wait", w)
			}
		}
		if w := waitOf(t, l.Begin("bob", addr(200))); w != 0 {
			t.Errorf("another user waits %v", w)
		}
		time.Sleep(userMost)
		l.Success("ann", addr(1))
		if w := try(); w != 0 {
			t.Errorf("after success: waits %v", w)
		}
	})
}

func TestLimiterPerAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(clock.Real())
		for i := range freeAttempts {
			// One machine can pick any address of its /64.
			a := netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1))
			if err := l.Begin(fmt.Sprintf("u%d", i), a); err != nil {
				t.Fatal(err)
			}
		}
		same, other := netip.MustParseAddr("2001:db8::ffff"), netip.MustParseAddr("2001:db8:0:1::1")
		if l.Begin("x", same) == nil {
			t.Error("guessing over many users is free")
		}
		if err := l.Begin("x", other); err != nil {
			t.Errorf("another network: %v", err)
		}
		// A right password does not cover for the wrong ones.
		time.Sleep(time.Second)
		if err := l.Begin("own", same); err != nil {
			t.Fatal(err)
		}
		l.Success("own", same)
		if l.Begin("y", same) == nil {
			t.Error("one success wiped out the address's failures")
		}
		time.Sleep(time.Second)
		if err := l.Begin("z", same); err != nil {
			t.Errorf("the success made the wait longer: %v", err)
		}
		time.Sleep(forgetAfter)
		if err := l.Begin("z", same); err != nil {
			t.Errorf("after a quiet hour: %v", err)
		}
		mapped := netip.MustParseAddr("::ffff:10.1.1.1")
		if addrKey(mapped) != addrKey(netip.MustParseAddr("10.1.1.1")) {
			t.Error("an IPv4 address has a second key as mapped")
		}
	})
}

func TestLimiterIsBounded(t *testing.T) {
	l := NewLimiter(clock.Real())
	for i := range tableSize + 1000 {
		a := netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 1})
		if err := l.Begin(fmt.Sprintf("user-%d", i), a); err != nil {
			t.Fatal(err)
		}
	}
	for _, tab := range []*table{&l.users, &l.addrs} {
		if len(tab.entries) != tableSize || tab.order.Len() != tableSize {
			t.Errorf("table has %d entries and %d in order, want %d", len(tab.entries), tab.order.Len(), tableSize)
		}
	}
}
