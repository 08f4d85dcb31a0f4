package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// Source is a disk that is read. Methods are for concurrent use.
type Source interface {
	// Size in bytes.
	Size() int64
	// ReadAt fills p from off. All of p lies in the disk.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Extents tells what [off, off+n) is made of, in order and without gaps. It may call zeros data.
	Extents(ctx context.Context, off, n int64) ([]Extent, error)
}

// FileSource reads a raw file or a block device. Holes are found with SEEK_DATA and SEEK_HOLE (lseek(2)); what can't tell is all data.
type FileSource struct {
	f    *os.File
	size int64
}

// OpenFile opens a raw disk for reading.
func OpenFile(path string) (*FileSource, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	s, err := NewFileSource(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

// NewFileSource reads from f, which Close closes.
func NewFileSource(f *os.File) (*FileSource, error) {
	// Also right for block devices, whose size in stat is 0.
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("size of %s: %w", f.Name(), err)
	}
	// Advice only: what doesn't know it reads as well.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	return &FileSource{f: f, size: size}, nil
}

// Size in bytes.
func (s *FileSource) Size() int64 { return s.size }

// Close closes the file.
func (s *FileSource) Close() error { return s.f.Close() }

// ReadAt fills p from off.
func (s *FileSource) ReadAt(_ context.Context, p []byte, off int64) error {
	n, err := s.f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Extents finds data and holes.
func (s *FileSource) Extents(ctx context.Context, off, n int64) ([]Extent, error) {
	end := min(off+n, s.size)
	var out []Extent
	fd := int(s.f.Fd())
	for off < end {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			return append(out, Extent{Offset: off, Length: end - off, Zero: true}), nil
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTSUP):
			return append(out, Extent{Offset: off, Length: end - off}), nil
		case err != nil:
			return nil, fmt.Errorf("find data in %s from %d: %w", s.f.Name(), off, err)
		}
		if data >= end {
			return append(out, Extent{Offset: off, Length: end - off, Zero: true}), nil
		}
		if data > off {
			out = append(out, Extent{Offset: off, Length: data - off, Zero: true})
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find a hole in %s from %d: %w", s.f.Name(), data, err)
		}
		hole = min(hole, end)
		out = append(out, Extent{Offset: data, Length: hole - data})
		off = hole
	}
	return out, nil
}

// Each makes a sequence of a list of extents.
func Each(list []Extent) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for _, e := range list {
			if !yield(e, nil) {
				return
			}
		}
	}
}
