package chunkstore

import (
	"sync"

	"drover/internal/chunkstore/pack"
)

// Index finds the pack that holds a block or a page. It is a cache: what it says is checked, and what it does not know is stored
// anew. Methods are for concurrent use; Lookup is called for each block that is written and takes no lock that waits for I/O of Add.
type Index interface {
	// Lookup returns a pack, and the record's number in it. Of several the one added last.
	Lookup(id ID) (p PackID, record uint16, ok bool, err error)
	// Has reports whether the pack was added.
	Has(p PackID) bool
	// Add takes a pack's records, in their order. Entries may be kept by nobody afterwards. Adding twice is adding once.
	Add(p PackID, records []pack.Entry) error
	// Remove forgets packs. Their records are not found any more.
	Remove(packs ...PackID) error
	Close() error
}

// memoryIndex is the index of small repositories and of tests.
type memoryIndex struct {
	mu    sync.RWMutex
	ids   map[ID]memoryPlace
	packs map[PackID][]ID
}

type memoryPlace struct {
	pack   PackID
	record uint16
}

func newMemoryIndex() *memoryIndex {
	return &memoryIndex{ids: map[ID]memoryPlace{}, packs: map[PackID][]ID{}}
}

func (x *memoryIndex) Lookup(id ID) (PackID, uint16, bool, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	p, ok := x.ids[id]
	return p.pack, p.record, ok, nil
}

func (x *memoryIndex) Has(p PackID) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, ok := x.packs[p]
	return ok
}

func (x *memoryIndex) Add(p PackID, records []pack.Entry) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.packs[p]; ok {
		return nil
	}
	ids := make([]ID, len(records))
	for i, e := range records {
		ids[i] = e.ID
		x.ids[e.ID] = memoryPlace{pack: p, record: uint16(i)}
	}
	x.packs[p] = ids
	return nil
}

func (x *memoryIndex) Remove(packs ...PackID) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range packs {
		for _, id := range x.packs[p] {
			if x.ids[id].pack == p {
				delete(x.ids, id)
			}
		}
		delete(x.packs, p)
	}
	return nil
}

func (x *memoryIndex) Close() error { return nil }
