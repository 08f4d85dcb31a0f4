package faultfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// Crash ends this file system, if CrashAt has not done so, and returns what the disk has when the machine is up again. What was not
// synced survives in part: which part, the seed says.
func (f *FS) Crash(seed uint64) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashed = true
	c := &crash{r: rand.New(rand.NewPCG(seed, 0xc4a54)), fs: &FS{capacity: f.capacity}, made: map[*node]*node{}}
	// The extremes are worth more than chance would give them.
	c.keep = []float64{0, 1, 0.5, 0.9}[c.r.IntN(4)]
	c.fs.root = c.rebuild(f.root)
	for _, n := range c.made {
		c.fs.used += int64(len(n.data))
	}
	return c.fs
}

type crash struct {
	r    *rand.Rand
	keep float64 // share of what survives
	fs   *FS
	made map[*node]*node // by the node before the crash
}

func (c *crash) rebuild(old *node) *node {
	if n := c.made[old]; n != nil {
		n.links++
		return n
	}
	if !old.dir {
		n := c.fs.newNode()
		c.made[old] = n
		n.links = 1
		n.data = c.content(old)
		n.durable = slices.Clone(n.data)
		return n
	}
	n := c.fs.newDir()
	c.made[old] = n
	names := maps.Clone(old.entries)
	for name := range old.history {
		names[name] = nil
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		was := old.entries[name]
		if h := old.history[name]; h != nil {
			// The operations on one name happened in order: the disk has seen the first of them.
			i := 0
			for i < len(h)-1 && c.r.Float64() < c.keep {
				i++
			}
			was = h[i]
		}
		if was != nil {
			n.entries[name] = c.rebuild(was)
		}
	}
	return n
}

// content is a file's bytes after the crash: each write since the last sync is there, or not, or in part.
func (c *crash) content(old *node) []byte {
	data := slices.Clone(old.durable)
	for _, e := range old.dirty {
		if c.r.Float64() >= c.keep {
			continue
		}
		end := e.end
		switch c.r.IntN(4) {
		case 0: // cut anywhere
			end = e.off + c.r.Int64N(e.end-e.off+1)
		case 1: // the length is there and the bytes are not
			if int64(len(data)) < e.end {
				data = append(data, make([]byte, e.end-int64(len(data)))...)
			}
			if c.r.IntN(2) == 0 {
				continue
			}
			end = e.off + c.r.Int64N(e.end-e.off+1)
		}
		if int64(len(data)) < end {
			data = append(data, make([]byte, end-int64(len(data)))...)
		}
		copy(data[e.off:end], old.data[e.off:end])
	}
	return data
}
