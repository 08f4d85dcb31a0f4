package main

import "sync"

// set holds the devices that somebody already looks after.
type set struct {
	mu sync.Mutex
	in map[string]bool
}

func newSet() *set { return &set{in: map[string]bool{}} }

// add reports whether s was not in the set before.
func (t *set) add(s string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.in[s] {
		return false
	}
	t.in[s] = true
	return true
}

func (t *set) remove(s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.in, s)
}
