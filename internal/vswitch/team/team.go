package team

import (
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"drover/internal/vswitch/table"
)

// Policy says how frames are spread over the uplinks.
type Policy int

// Policies.
const (
	PolicyPort Policy = iota
	PolicyMAC
	PolicyIP
	PolicyFailover // the first that is up has all
)

// DefaultFailback is the failback delay of a team that sets none.
const DefaultFailback = 5 * time.Second

// Config is a team as somebody wants it.
type Config struct {
	Name          string
	Policy        Policy
	Uplinks       []string      // in order of preference
	Standby       []string      // used only while none of Uplinks can be
	FailbackDelay time.Duration // 0: DefaultFailback
	// NoFailback: an uplink that came back waits until one that is active fails.
	NoFailback bool
}

// Validate checks that no uplink is named twice.
func (c Config) Validate() error {
	seen := map[string]bool{}
	for _, u := range slices.Concat(c.Uplinks, c.Standby) {
		if u == "" || seen[u] {
			return fmt.Errorf("team %s: uplink %q is named twice, or without a name", c.Name, u)
		}
		seen[u] = true
	}
	if c.FailbackDelay < 0 {
		return fmt.Errorf("team %s: failback delay %v: want none or more", c.Name, c.FailbackDelay)
	}
	return nil
}

// Hash is the policy as the datapath knows it.
func (c Config) Hash() table.TeamHash {
	switch c.Policy {
	case PolicyMAC:
		return table.TeamByMAC
	case PolicyIP:
		return table.TeamByIP
	}
	return table.TeamByPort
}

// Health is what is known of an uplink. An uplink that nothing is known of is down.
type Health struct {
	Up     bool
	Reason string // why not, in words
}

// Buckets names the uplink of each bucket; empty: none.
type Buckets [table.TeamBuckets]string

// Bucket is the bucket of a port, by its name: the same on every host and for ever.
func Bucket(port string) uint32 {
	h := fnv.New64a()
	h.Write([]byte(port))
	s := h.Sum64()
	s ^= s >> 32 // FNV's low bits alone are uneven on names that are alike
	s ^= s >> 16
	return uint32(s % table.TeamBuckets)
}

// Uplink is how an uplink stands.
type Uplink struct {
	Name   string
	Active bool
	Reason string // why it is not active
}

// View is what a team decided.
type View struct {
	Uplinks []Uplink // as configured, standby last
	Buckets Buckets
}

// Active names the active uplinks, by preference.
func (v View) Active() []string {
	var out []string
	for _, u := range v.Uplinks {
		if u.Active {
			out = append(out, u.Name)
		}
	}
	return out
}

// member is what the team remembers of an uplink.
type member struct {
	health   Health
	seen     bool      // the device was there once
	eligible bool      // may be active
	since    time.Time // came back then; zero: is not waiting
}

// Team is the state machine of one team. Make it with New.
type Team struct {
	cfg     Config
	members map[string]*member
	active  []string
	buckets Buckets
}

// New makes a team. before is how buckets were shared by the same team in an earlier process, or empty: they stay where they are as far as
// they can, and with NoFailback an uplink that had none is taken for one that came back.
func New(cfg Config, before Buckets) *Team {
	t := &Team{members: map[string]*member{}, buckets: before}
	resumed := before != Buckets{}
	t.adopt(cfg)
	if resumed && cfg.NoFailback {
		for _, m := range t.members {
			m.since = unset
		}
		for _, u := range before {
			if m := t.members[u]; m != nil {
				m.since, m.eligible = time.Time{}, true
				if !slices.Contains(t.active, u) {
					t.active = append(t.active, u)
				}
			}
		}
	}
	return t
}

// unset marks an uplink that waits since a time that nobody knows; Update replaces it.
var unset = time.Unix(0, 1)

func (t *Team) adopt(cfg Config) {
	t.cfg = cfg
	if t.cfg.FailbackDelay == 0 {
		t.cfg.FailbackDelay = DefaultFailback
	}
	names := t.names()
	for _, u := range names {
		if t.members[u] == nil {
			t.members[u] = &member{eligible: true, health: Health{Reason: "nothing is known of it yet"}}
		}
	}
	for u := range t.members {
		if !slices.Contains(names, u) {
			delete(t.members, u)
		}
	}
}

func (t *Team) names() []string { return slices.Concat(t.cfg.Uplinks, t.cfg.Standby) }

// Configure changes the team; what is known of uplinks that stay is kept. It says whether anything that View shows changed.
func (t *Team) Configure(cfg Config, now time.Time) bool {
	before := t.View()
	t.adopt(cfg)
	t.decide(now)
	return !same(before, t.View())
}

// Update takes in what is known of all uplinks, and the time. It says whether anything that View shows changed. Call it on every news, and at Next.
func (t *Team) Update(health map[string]Health, now time.Time) bool {
	before := t.View()
	for u, m := range t.members {
		h, known := health[u]
		if !known {
			h = Health{Reason: "there is no such device"}
		} else if !h.Up && h.Reason == "" {
			h.Reason = "its link is down"
		}
		switch {
		case !h.Up:
			// A device that comes to be later, as at boot, does not come back.
			m.eligible = m.eligible && !known && !m.seen
			m.since = time.Time{}
		case m.since == unset:
			m.since, m.eligible = now, false
		case !m.health.Up && !m.eligible:
			m.since = now
		}
		m.health = h
		m.seen = m.seen || known
	}
	t.decide(now)
	return !same(before, t.View())
}

func same(a, b View) bool { return a.Buckets == b.Buckets && slices.Equal(a.Uplinks, b.Uplinks) }

// Next is when Update has to be called although nothing happened; ok is false if never.
func (t *Team) Next() (at time.Time, ok bool) {
	if t.cfg.NoFailback {
		return time.Time{}, false
	}
	for _, m := range t.members {
		if end := m.since.Add(t.cfg.FailbackDelay); m.health.Up && !m.eligible && (!ok || end.Before(at)) {
			at, ok = end, true
		}
	}
	return at, ok
}

// decide makes the active list and shares the buckets.
func (t *Team) decide(now time.Time) {
	lost := slices.ContainsFunc(t.active, func(u string) bool { m := t.members[u]; return m == nil || !m.health.Up })
	for _, m := range t.members {
		if !m.health.Up || m.eligible {
			continue
		}
		if t.cfg.NoFailback {
			m.eligible = lost
		} else {
			m.eligible = now.Sub(m.since) >= t.cfg.FailbackDelay
		}
	}
	t.active = t.pick()
	if len(t.active) == 0 { // nothing else is up: whoever came back serves at once
		for _, m := range t.members {
			m.eligible = m.eligible || m.health.Up
		}
		t.active = t.pick()
	}
	t.buckets = share(t.buckets, t.active)
}

func (t *Team) pick() []string {
	usable := func(u string) bool { m := t.members[u]; return m.health.Up && m.eligible }
	for _, list := range [][]string{t.cfg.Uplinks, t.cfg.Standby} {
		var out []string
		for _, u := range list {
			if usable(u) {
				out = append(out, u)
			}
		}
		if len(out) > 1 && t.cfg.Policy == PolicyFailover {
			out = out[:1]
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
}

// View is what the team decided last.
func (t *Team) View() View {
	v := View{Buckets: t.buckets}
	for _, u := range t.names() {
		m := t.members[u]
		s := Uplink{Name: u, Active: slices.Contains(t.active, u)}
		switch {
		case s.Active:
		case !m.health.Up:
			s.Reason = m.health.Reason
		case !m.eligible && t.cfg.NoFailback:
			s.Reason = "it came back; it is used when an active one fails"
		case !m.eligible:
			s.Reason = fmt.Sprintf("it came back; it is used when it has been up for %v", t.cfg.FailbackDelay)
		case slices.Contains(t.cfg.Standby, u):
			s.Reason = "it stands by"
		default:
			s.Reason = "one that is preferred is up"
		}
		v.Uplinks = append(v.Uplinks, s)
	}
	return v
}

// share gives every bucket to an active uplink and moves as few as it can.
func share(old Buckets, active []string) Buckets {
	if len(active) == 0 {
		return Buckets{}
	}
	count := map[string]int{}
	for _, u := range old {
		count[u]++
	}
	// Who has most keeps one more than the others, if it doesn't come out even.
	order := slices.Clone(active)
	slices.SortStableFunc(order, func(a, b string) int { return count[b] - count[a] })
	left := map[string]int{}
	for i, u := range order {
		left[u] = len(old) / len(order)
		if i < len(old)%len(order) {
			left[u]++
		}
	}
	out := old
	var free []int
	for i, u := range old {
		if left[u] > 0 { // 0 also for one that is not active
			left[u]--
		} else {
			free = append(free, i)
		}
	}
	for _, i := range free {
		// In turn, so that the buckets of one that failed spread over all others.
		u := slices.MaxFunc(active, func(a, b string) int { return left[a] - left[b] })
		out[i] = u
		left[u]--
	}
	return out
}
