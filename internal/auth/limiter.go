package auth

import (
	"container/list"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"drover/internal/clock"
)

// RetryError says that a log-in came too early after failed ones.
type RetryError struct {
	After time.Duration
}

func (e *RetryError) Error() string {
	return fmt.Sprintf("too many failed log-ins: try again in %v", max(e.After.Round(time.Second), time.Second))
}

// Limiter delays guessing, per user and per address: a few attempts are free,
// then each failure doubles the wait up to a most, and a quiet time forgets.
// A user's longest wait is short, so that nobody can lock another out for
// long; an address's is long. An attempt counts as failed from its beginning,
// so that many at once gain nothing.
type Limiter struct {
	clock clock.Clock

	mu    sync.Mutex
	users table
	addrs table
}

const (
	freeAttempts = 5
	userMost     = 30 * time.Second
	addrMost     = 15 * time.Minute
	forgetAfter  = time.Hour
	tableSize    = 8192
)

// NewLimiter returns an empty limiter.
func NewLimiter(clk clock.Clock) *Limiter {
	return &Limiter{clock: clk, users: newTable(tableSize, userMost), addrs: newTable(tableSize, addrMost)}
}

// Begin counts an attempt, or refuses it with a [*RetryError]. After a right
// password the caller says so with Success.
func (l *Limiter) Begin(user string, addr netip.Addr) error {
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	u, a := userKey(user), addrKey(addr)
	if wait := max(l.users.wait(u, now), l.addrs.wait(a, now)); wait > 0 {
		return &RetryError{After: wait}
	}
	l.users.count(u, now)
	l.addrs.count(a, now)
	return nil
}

// Success takes back the attempt. The user's earlier failures are forgotten,
// the address's are not: one right password must not cover for guessing others.
func (l *Limiter) Success(user string, addr netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users.forget(userKey(user))
	l.addrs.takeBack(addrKey(addr))
}

// Abort takes back an attempt that came to no verdict on the password.
func (l *Limiter) Abort(user string, addr netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users.takeBack(userKey(user))
	l.addrs.takeBack(addrKey(addr))
}

// userKey bounds what an unknown name can occupy.
func userKey(user string) string { return user[:min(len(user), 64)] }

// addrKey is the address, or for IPv6 its /64, which one machine can own whole.
func addrKey(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		return netip.PrefixFrom(addr, 64).Masked().String()
	}
	return addr.String()
}

// table holds the failures of the most recent keys.
type table struct {
	size    int
	most    time.Duration
	entries map[string]*list.Element
	order   *list.List // of *entry, most recent first
}

type entry struct {
	key      string
	failures int
	last     time.Time
}

func newTable(size int, most time.Duration) table {
	return table{size: size, most: most, entries: map[string]*list.Element{}, order: list.New()}
}

// wait returns how long the key has to wait from now.
func (t *table) wait(key string, now time.Time) time.Duration {
	el := t.entries[key]
	if el == nil {
		return 0
	}
	e := el.Value.(*entry)
	if now.Sub(e.last) >= forgetAfter {
		t.forget(key)
		return 0
	}
	if e.failures < freeAttempts {
		return 0
	}
	delay := t.most
	if shift := e.failures - freeAttempts; shift < 20 {
		delay = min(time.Second<<shift, t.most)
	}
	return delay - now.Sub(e.last)
}

func (t *table) count(key string, now time.Time) {
	el := t.entries[key]
	if el == nil {
		if t.order.Len() >= t.size {
			t.forget(t.order.Back().Value.(*entry).key)
		}
		el = t.order.PushFront(&entry{key: key})
		t.entries[key] = el
	}
	e := el.Value.(*entry)
	e.failures++
	e.last = now
	t.order.MoveToFront(el)
}

func (t *table) forget(key string) {
	if el := t.entries[key]; el != nil {
		t.order.Remove(el)
		delete(t.entries, key)
	}
}

func (t *table) takeBack(key string) {
	if el := t.entries[key]; el != nil {
		e := el.Value.(*entry)
		if e.failures--; e.failures <= 0 {
			t.forget(key)
		}
	}
}
