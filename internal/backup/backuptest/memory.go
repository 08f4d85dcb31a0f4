package backuptest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"drover/internal/backup"
)

// BlockSize of a Memory.
const BlockSize = 64 << 10

// Memory is a repository in memory. The zero value is empty.
type Memory struct {
	// Fail, if set, is asked before each Put and Commit.
	Fail func(op string) error

	mu     sync.Mutex
	points []memoryPoint
}

type memoryPoint struct {
	point backup.Point
	disks map[string]*memoryDisk
}

type memoryDisk struct {
	size   int64
	blocks map[int64][]byte // what is not there is zeros
}

// Info tells what it is.
func (m *Memory) Info(context.Context) (backup.Info, error) {
	return backup.Info{ID: strings.Repeat("0", 32), BlockSize: BlockSize}, nil
}

// Points lists points, oldest first.
func (m *Memory) Points(_ context.Context, vmUID string) ([]backup.Point, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []backup.Point
	for _, p := range m.points {
		if vmUID == "" || p.point.VMUID == vmUID {
			out = append(out, p.point)
		}
	}
	slices.SortStableFunc(out, func(a, b backup.Point) int { return a.Time.Compare(b.Time) })
	return out, nil
}

func (m *Memory) find(id string) (memoryPoint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.points {
		if p.point.ID == id {
			return p, nil
		}
	}
	return memoryPoint{}, fmt.Errorf("point %s: %w", id, backup.ErrNotFound)
}

// Begin starts to write.
func (m *Memory) Begin(_ context.Context, o backup.SessionOptions) (backup.Session, error) {
	for _, id := range o.Pins {
		if _, err := m.find(id); err != nil {
			return nil, err
		}
	}
	return &memorySession{m: m, disks: map[string]*memoryWriter{}}, nil
}

type memorySession struct {
	m *Memory

	mu    sync.Mutex
	ended bool
	disks map[string]*memoryWriter
}

func (s *memorySession) Disk(_ context.Context, o backup.DiskOptions) (backup.DiskWriter, error) {
	w := &memoryWriter{s: s, disk: &memoryDisk{size: o.Size, blocks: map[int64][]byte{}}}
	if o.ParentPoint != "" {
		p, err := s.m.find(o.ParentPoint)
		if err != nil {
			return nil, err
		}
		d, ok := p.disks[o.ParentDisk]
		if !ok {
			return nil, fmt.Errorf("disk %s of point %s: %w", o.ParentDisk, o.ParentPoint, backup.ErrNotFound)
		}
		if o.Incremental {
			for b, data := range d.blocks {
				if n := o.Size - b*BlockSize; n > 0 {
					w.disk.blocks[b] = data[:min(int64(len(data)), n)]
				}
			}
		}
	} else if o.Incremental {
		return nil, fmt.Errorf("disk %s: incremental to nothing", o.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, backup.ErrEnded
	}
	s.disks[o.Name] = w
	return w, nil
}

func (s *memorySession) Commit(_ context.Context, p backup.Point) (backup.Point, error) {
	if s.m.Fail != nil {
		if err := s.m.Fail("commit"); err != nil {
			return p, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return p, backup.ErrEnded
	}
	if p.ID == "" {
		var id [16]byte
		_, _ = rand.Read(id[:])
		p.ID = hex.EncodeToString(id[:])
	}
	disks := map[string]*memoryDisk{}
	for _, d := range p.Disks {
		w, ok := s.disks[d.Name]
		if !ok || !w.done {
			return p, fmt.Errorf("disk %s was not finished in this session", d.Name)
		}
		disks[d.Name] = w.disk
	}
	p.Labels = maps.Clone(p.Labels)
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.points = append(s.m.points, memoryPoint{point: p, disks: disks})
	return p, nil
}

func (s *memorySession) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	return nil
}

type memoryWriter struct {
	s    *memorySession
	disk *memoryDisk

	mu   sync.Mutex
	done bool
	r    backup.DiskResult
}

func (w *memoryWriter) Put(_ context.Context, block int64, data []byte) error {
	if w.s.m.Fail != nil {
		if err := w.s.m.Fail("put"); err != nil {
			return err
		}
	}
	n := min(BlockSize, w.disk.size-block*BlockSize)
	if block < 0 || n <= 0 || int64(len(data)) != n {
		return fmt.Errorf("block %d of %d bytes does not fit a disk of %d", block, len(data), w.disk.size)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.disk.blocks[block] = bytes.Clone(data)
	w.r.Read += int64(len(data))
	w.r.Stored += int64(len(data))
	w.r.Packed += int64(len(data))
	return nil
}

func (w *memoryWriter) Zero(_ context.Context, block, count int64) error {
	if block < 0 || count < 0 || (block+count-1)*BlockSize >= w.disk.size {
		return fmt.Errorf("zeros %d+%d do not fit a disk of %d", block, count, w.disk.size)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.disk.blocks, func(b int64, _ []byte) bool { return b >= block && b < block+count })
	return nil
}

func (w *memoryWriter) Finish(context.Context) (backup.DiskResult, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
	return w.r, nil
}

// OpenPoint starts to read a point.
func (m *Memory) OpenPoint(_ context.Context, id string) (backup.PointReader, error) {
	p, err := m.find(id)
	if err != nil {
		return nil, err
	}
	return &memoryReader{m: m, p: p}, nil
}

type memoryReader struct {
	m *Memory
	p memoryPoint
}

func (r *memoryReader) Point() backup.Point { return r.p.point }
func (r *memoryReader) Close() error        { return nil }

func (r *memoryReader) Disk(_ context.Context, name string) (backup.DiskReader, error) {
	d, ok := r.p.disks[name]
	if !ok {
		return nil, fmt.Errorf("disk %s of point %s: %w", name, r.p.point.ID, backup.ErrNotFound)
	}
	return &memoryDiskReader{m: r.m, d: d}, nil
}

type memoryDiskReader struct {
	m *Memory
	d *memoryDisk
}

func (r *memoryDiskReader) Size() int64  { return r.d.size }
func (r *memoryDiskReader) Close() error { return nil }

func (r *memoryDiskReader) ReadAt(_ context.Context, p []byte, off int64) error {
	clear(p)
	for n := 0; n < len(p); {
		b, at := (off+int64(n))/BlockSize, (off+int64(n))%BlockSize
		if data := r.d.blocks[b]; int64(len(data)) > at {
			copy(p[n:], data[at:])
		}
		n += int(BlockSize - at)
	}
	return nil
}

func (r *memoryDiskReader) Extents(_ context.Context, off, n int64) ([]backup.Extent, error) {
	return runs(off, min(n, r.d.size-off), func(b int64) (use, zero bool) { return true, r.d.blocks[b] == nil }), nil
}

func (r *memoryDiskReader) Changed(_ context.Context, point, disk string) ([]backup.Extent, error) {
	p, err := r.m.find(point)
	if err != nil {
		return nil, err
	}
	o, ok := p.disks[disk]
	if !ok {
		return nil, fmt.Errorf("disk %s of point %s: %w", disk, point, backup.ErrNotFound)
	}
	return runs(0, r.d.size, func(b int64) (use, zero bool) {
		return !bytes.Equal(r.d.blocks[b], o.blocks[b]), r.d.blocks[b] == nil
	}), nil
}

// runs makes extents of neighbouring blocks of a kind.
func runs(off, n int64, kind func(block int64) (use, zero bool)) []backup.Extent {
	var out []backup.Extent
	for end := off + n; off < end; {
		b := off / BlockSize
		next := min((b+1)*BlockSize, end)
		if use, zero := kind(b); use {
			if k := len(out); k > 0 && out[k-1].Zero == zero && out[k-1].Offset+out[k-1].Length == off {
				out[k-1].Length += next - off
			} else {
				out = append(out, backup.Extent{Offset: off, Length: next - off, Zero: zero})
			}
		}
		off = next
	}
	return out
}
