package chunkstore

import (
	"container/list"
	"sync"
)

// cache holds the values used last, so many. It is for concurrent use.
type cache[K comparable, V any] struct {
	mu    sync.Mutex
	max   int
	byKey map[K]*list.Element
	order *list.List // front: used last
}

type cacheItem[K comparable, V any] struct {
	key   K
	value V
}

func newCache[K comparable, V any](max int) *cache[K, V] {
	return &cache[K, V]{max: max, byKey: map[K]*list.Element{}, order: list.New()}
}

func (c *cache[K, V]) get(k K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[k]
	if !ok {
		var none V
		return none, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*cacheItem[K, V]).value, true
}

// put adds a value, and returns the one that had to go, if any.
func (c *cache[K, V]) put(k K, v V) (gone V, evicted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byKey[k]; ok {
		e.Value.(*cacheItem[K, V]).value = v
		c.order.MoveToFront(e)
		return gone, false
	}
	c.byKey[k] = c.order.PushFront(&cacheItem[K, V]{k, v})
	if c.order.Len() <= c.max {
		return gone, false
	}
	last := c.order.Back()
	item := c.order.Remove(last).(*cacheItem[K, V])
	delete(c.byKey, item.key)
	return item.value, true
}

func (c *cache[K, V]) drop(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byKey[k]; ok {
		c.order.Remove(e)
		delete(c.byKey, k)
	}
}
