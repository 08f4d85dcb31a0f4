package blob

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Memory keeps objects in memory, for tests.
type Memory struct {
	mu      sync.Mutex
	objects map[string][]byte // never changed in place
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{objects: map[string][]byte{}} }

// Clone returns a copy that goes its own way.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Memory{objects: maps.Clone(m.objects)}
}

// Tamper replaces an object by what f makes of a copy of its bytes; nil removes it.
func (m *Memory) Tamper(name string, f func([]byte) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := f(bytes.Clone(m.objects[name])); p != nil {
		m.objects[name] = p
	} else {
		delete(m.objects, name)
	}
}

func (m *Memory) String() string { return "memory" }

// Put implements [Store].
func (m *Memory) Put(ctx context.Context, name string, data []byte) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[name]; ok {
		return fmt.Errorf("write %s: %w", name, ErrExists)
	}
	m.objects[name] = append([]byte{}, data...)
	return nil
}

// Create implements [Store].
func (m *Memory) Create(ctx context.Context, name string) (Writer, error) {
	if err := begin(ctx, name); err != nil {
		return nil, err
	}
	return &memoryWriter{m: m, ctx: ctx, name: name}, nil
}

type memoryWriter struct {
	m    *Memory
	ctx  context.Context
	name string
	buf  []byte
	done bool
}

func (w *memoryWriter) Write(p []byte) (int, error) {
	if w.done {
		return 0, errEnded
	}
	w.buf = append(w.buf, p...)
	return len(p), w.ctx.Err()
}

func (w *memoryWriter) Commit() error {
	if w.done {
		return errEnded
	}
	w.done = true
	return w.m.Put(w.ctx, w.name, w.buf)
}

func (w *memoryWriter) Abort() { w.done, w.buf = true, nil }

func (m *Memory) object(ctx context.Context, name string) ([]byte, error) {
	if err := begin(ctx, name); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.objects[name]
	if !ok {
		return nil, fmt.Errorf("read %s: %w", name, ErrNotFound)
	}
	return p, nil
}

// ReadAt implements [Store].
func (m *Memory) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	data, err := m.object(ctx, name)
	if err != nil {
		return err
	}
	if off < 0 || off+int64(len(p)) > int64(len(data)) {
		return fmt.Errorf("read %s: %w", name, io.ErrUnexpectedEOF)
	}
	copy(p, data[off:])
	return nil
}

// Get implements [Store].
func (m *Memory) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	data, err := m.object(ctx, name)
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, tooLong(name, int64(len(data)), limit)
	}
	return append([]byte{}, data...), nil
}

// Size implements [Store].
func (m *Memory) Size(ctx context.Context, name string) (int64, error) {
	data, err := m.object(ctx, name)
	return int64(len(data)), err
}

// List implements [Store].
func (m *Memory) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		m.mu.Lock()
		objects := maps.Clone(m.objects)
		m.mu.Unlock()
		for _, name := range slices.Sorted(maps.Keys(objects)) {
			if !strings.HasPrefix(name, prefix) || name <= after {
				continue
			}
			if err := ctx.Err(); err != nil {
				yield(Info{}, err)
				return
			}
			if !yield(Info{Name: name, Size: int64(len(objects[name]))}, nil) {
				return
			}
		}
	}
}

// Delete implements [Store].
func (m *Memory) Delete(ctx context.Context, name string) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}

// Space implements [Store]: nobody knows.
func (m *Memory) Space(context.Context) (total, free int64, ok bool, err error) {
	return 0, 0, false, nil
}
