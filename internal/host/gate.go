package host

import (
	"sync"
	"time"
)

// groupWait is how long VMs of a later start order wait for those of an earlier one.
const groupWait = time.Minute

// gate lets VMs start in their start order after a reboot. VMs that it doesn't know may always start.
type gate struct {
	mu      sync.Mutex
	waiting map[string]int32 // start order by uid, of those that have not come up yet
	since   time.Time        // when the lowest group's turn began
}

func newGate(now time.Time, waiting map[string]int32) *gate {
	return &gate{waiting: waiting, since: now}
}

func (g *gate) lowest() (int32, bool) {
	low, any := int32(0), false
	for _, o := range g.waiting {
		if !any || o < low {
			low, any = o, true
		}
	}
	return low, any
}

// turn says whether the VM may start. until is when to ask again, if nothing else happens.
func (g *gate) turn(uid string, now time.Time) (ok bool, until time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	order, known := g.waiting[uid]
	if !known {
		return true, time.Time{}
	}
	for {
		low, any := g.lowest()
		if !any || order <= low {
			return true, time.Time{}
		}
		if now.Sub(g.since) < groupWait {
			return false, g.since.Add(groupWait)
		}
		// The group took too long: the next goes on without it.
		for u, o := range g.waiting {
			if o == low {
				delete(g.waiting, u)
			}
		}
		g.since = now
	}
}

// settled says that the VM came up, or will not for now. It returns true if that may be another's turn.
func (g *gate) settled(uid string, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, known := g.waiting[uid]; !known {
		return false
	}
	before, _ := g.lowest()
	delete(g.waiting, uid)
	if after, any := g.lowest(); any && after == before {
		return false
	}
	g.since = now
	return true
}
