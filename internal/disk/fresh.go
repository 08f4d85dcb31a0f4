package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Fresh is a disk that is filled from outside, a restore say, and belongs to no VM until Replace gives it to one. It reads
// as zeros where nothing was written. Writes may be concurrent, on parts that do not overlap.
type Fresh struct {
	s      *Store
	f      *os.File
	path   string // below tmp
	format string
	size   int64

	mu    sync.Mutex // guards the fields below
	l2    map[int64][]uint32
	next  int64 // the first cluster of the file that is not taken
	ended bool  // flushed
}

// NewFresh makes an empty disk of this size ("qcow2" or "raw"; "" is qcow2). What is not given to a VM by Replace is the
// caller's to Discard; after a crash it is swept.
func (s *Store) NewFresh(size int64, format string) (*Fresh, error) {
	if format == "" {
		format = "qcow2"
	}
	if err := checkSize(size); err != nil {
		return nil, err
	}
	if format != "qcow2" && format != "raw" {
		return nil, fmt.Errorf("disk format %.20q: %w", format, ErrInvalid)
	}
	d := &Fresh{s: s, path: "tmp/" + newID() + "." + format, format: format, size: size, l2: map[int64][]uint32{}, next: 1}
	var err error
	if d.f, err = s.root.OpenFile(d.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, fmt.Errorf("make a disk: %w", err)
	}
	if format == "raw" {
		if err := d.f.Truncate(size); err != nil {
			return nil, errors.Join(err, d.Discard())
		}
	}
	return d, nil
}

// Size in bytes.
func (d *Fresh) Size() int64 { return d.size }

// File is where it is, relative to the datastore, for a machine that is thrown away with it.
func (d *Fresh) File() string { return d.path }

// Discard removes a disk that no VM has.
func (d *Fresh) Discard() error { return errors.Join(d.f.Close(), d.s.root.Remove(d.path)) }

// perL2 is how many clusters of the guest one L2 table knows.
const perL2 = clusterSize / 8

// places finds or takes the clusters of the file for those of the guest from first on, as many as lie in a row; with take
// false 0 says that there is none.
func (d *Fresh) places(first, count int64, take bool) (at, n int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended && take {
		return 0, 0, fmt.Errorf("write to a disk that is finished: %w", ErrInvalid)
	}
	for n < count {
		g := first + n
		t := d.l2[g/perL2]
		if t == nil && take {
			t = make([]uint32, perL2)
			d.l2[g/perL2] = t
		}
		have := int64(0)
		if t != nil {
			have = int64(t[g%perL2])
		}
		if have == 0 && take && (n == 0 || at+n == d.next) {
			have = d.next
			t[g%perL2] = uint32(have)
			d.next++
		}
		switch {
		case n == 0:
			at = have
		case at == 0 && have != 0, at != 0 && have != at+n:
			return at, n, nil
		}
		n++
	}
	return at, n, nil
}

// each calls do for the parts of [off, off+n) that lie in a row in the file; at is 0 for those that are nowhere.
func (d *Fresh) each(ctx context.Context, off, n int64, take bool, do func(at, from, n int64) error) error {
	if off < 0 || n < 0 || off > d.size-n {
		return fmt.Errorf("%d bytes at %d of a disk of %d: %w", n, off, d.size, ErrInvalid)
	}
	for from := int64(0); from < n; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if d.format == "raw" {
			return do(off, 0, n)
		}
		head := (off + from) % clusterSize
		first := (off + from) / clusterSize
		last := (off + n - 1) / clusterSize
		at, k, err := d.places(first, last-first+1, take)
		if err != nil {
			return err
		}
		part := min(k*clusterSize-head, n-from)
		if at != 0 {
			at = at*clusterSize + head
		}
		if err := do(at, from, part); err != nil {
			return err
		}
		from += part
	}
	return nil
}

// WriteAt writes p at off.
func (d *Fresh) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.each(ctx, off, int64(len(p)), true, func(at, from, n int64) error {
		_, err := d.f.WriteAt(p[from:from+n], at)
		return err
	})
}

// ReadAt reads what was written.
func (d *Fresh) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.each(ctx, off, int64(len(p)), false, func(at, from, n int64) error {
		if at == 0 && d.format != "raw" {
			clear(p[from : from+n])
			return nil
		}
		k, err := d.f.ReadAt(p[from:from+n], at)
		clear(p[from+int64(k) : from+n])
		if int64(k) < n && d.format == "qcow2" {
			err = nil // the last cluster may be short
		}
		return err
	})
}

// Zero makes a part zeros; what was never written is.
func (d *Fresh) Zero(ctx context.Context, off, n int64) error {
	return d.each(ctx, off, n, false, func(at, _, n int64) error {
		if at == 0 && d.format != "raw" {
			return nil
		}
		err := unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n)
		if err != nil {
			zeros := make([]byte, min(n, 1<<20))
			for done := int64(0); done < n; done += int64(len(zeros)) {
				if _, err := d.f.WriteAt(zeros[:min(n-done, int64(len(zeros)))], at+done); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Flush ends the filling: it writes the tables of a qcow2 and makes the file durable. Nothing can be written after.
func (d *Fresh) Flush(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return nil
	}
	if d.format == "qcow2" {
		if err := d.writeTables(); err != nil {
			return fmt.Errorf("write the tables of a disk: %w", err)
		}
	}
	if err := d.f.Sync(); err != nil {
		return err
	}
	d.ended = true
	return nil
}

// writeTables lays out (QEMU docs/interop/qcow2.txt): header, clusters of data, L2 tables, L1 table, refcount blocks,
// refcount table. d.mu is held.
func (d *Fresh) writeTables() error {
	const copied = 1 << 63
	const perBlock = clusterSize / 2 // refcounts of 16 bits
	be := binary.BigEndian
	ceil := func(a, b int64) int64 { return (a + b - 1) / b }
	tables := ceil(ceil(d.size, clusterSize), perL2)
	l1 := make([]byte, ceil(tables*8, clusterSize)*clusterSize)
	at := d.next
	for g := range tables {
		t := d.l2[g]
		if t == nil {
			continue
		}
		b := make([]byte, clusterSize)
		for i, c := range t {
			if c != 0 {
				be.PutUint64(b[8*i:], copied|uint64(c)*clusterSize)
			}
		}
		if _, err := d.f.WriteAt(b, at*clusterSize); err != nil {
			return err
		}
		be.PutUint64(l1[8*g:], copied|uint64(at)*clusterSize)
		at++
	}
	l1At := at
	if _, err := d.f.WriteAt(l1, l1At*clusterSize); err != nil {
		return err
	}
	at += int64(len(l1)) / clusterSize
	// Refcount blocks and table count themselves.
	blocks, table := int64(0), int64(0)
	for {
		b := ceil(at+blocks+table, perBlock)
		t := ceil(b*8, clusterSize)
		if b == blocks && t == table {
			break
		}
		blocks, table = b, t
	}
	total := at + blocks + table
	rt := make([]byte, table*clusterSize)
	b := make([]byte, clusterSize)
	for i := range blocks {
		clear(b)
		for k := range min(perBlock, total-i*perBlock) {
			be.PutUint16(b[2*k:], 1)
		}
		if _, err := d.f.WriteAt(b, (at+i)*clusterSize); err != nil {
			return err
		}
		be.PutUint64(rt[8*i:], uint64(at+i)*clusterSize)
	}
	if _, err := d.f.WriteAt(rt, (at+blocks)*clusterSize); err != nil {
		return err
	}
	h := make([]byte, clusterSize)
	copy(h, "QFI\xfb")
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], clusterBits)
	be.PutUint64(h[24:], uint64(d.size))
	be.PutUint32(h[36:], uint32(tables))
	be.PutUint64(h[40:], uint64(l1At)*clusterSize)
	be.PutUint64(h[48:], uint64(at+blocks)*clusterSize)
	be.PutUint32(h[56:], uint32(table))
	be.PutUint32(h[96:], 4)
	be.PutUint32(h[100:], 104)
	_, err := d.f.WriteAt(h, 0)
	return err
}
