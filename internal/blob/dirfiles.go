package blob

import (
	"container/list"
	"sync"

	"drover/internal/vfs"
)

// openFiles is how many objects a directory store keeps open for reading.
const openFiles = 128

// files is a cache of open files, the least recently used closed first.
type files struct {
	limit int

	mu   sync.Mutex
	open map[string]*cached
	lru  *list.List // of *cached, the newest first
}

// cached is one open object. It is closed by who lets go of it last.
type cached struct {
	name string
	f    vfs.File
	size int64
	// Guarded by files.mu: users, and the cache itself while el is set.
	refs int
	el   *list.Element
}

func newFiles(limit int) *files {
	return &files{limit: limit, open: map[string]*cached{}, lru: list.New()}
}

// get returns the open file, which the caller gives back with put.
func (c *files) get(name string, open func() (vfs.File, int64, error)) (*cached, error) {
	c.mu.Lock()
	if e := c.open[name]; e != nil {
		e.refs++
		c.lru.MoveToFront(e.el)
		c.mu.Unlock()
		return e, nil
	}
	c.mu.Unlock()
	f, size, err := open()
	if err != nil {
		return nil, err
	}
	e := &cached{name: name, f: f, size: size, refs: 1}
	var old []*cached
	c.mu.Lock()
	if c.open[name] == nil {
		e.refs++
		e.el = c.lru.PushFront(e)
		c.open[name] = e
		for c.lru.Len() > c.limit {
			last := c.lru.Back().Value.(*cached)
			if c.forget(last) {
				old = append(old, last)
			}
		}
	}
	c.mu.Unlock()
	for _, e := range old {
		e.f.Close()
	}
	return e, nil
}

// forget takes an entry out; true if the caller is to close it.
func (c *files) forget(e *cached) bool {
	c.lru.Remove(e.el)
	e.el = nil
	delete(c.open, e.name)
	e.refs--
	return e.refs == 0
}

func (c *files) put(e *cached) {
	c.mu.Lock()
	e.refs--
	last := e.refs == 0
	c.mu.Unlock()
	if last {
		e.f.Close()
	}
}

func (c *files) drop(name string) {
	c.mu.Lock()
	e := c.open[name]
	last := e != nil && c.forget(e)
	c.mu.Unlock()
	if last {
		e.f.Close()
	}
}

func (c *files) close() {
	c.mu.Lock()
	var last []*cached
	for _, e := range c.open {
		if c.forget(e) {
			last = append(last, e)
		}
	}
	c.mu.Unlock()
	for _, e := range last {
		e.f.Close()
	}
}
