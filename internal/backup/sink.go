package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// FileSink writes a raw file or a block device. It can be read back.
type FileSink struct {
	FileSource
	device bool
}

// CreateFile makes a sparse raw disk of this size. The file must not exist. Whether its name is durable is the caller's business.
func CreateFile(path string, size int64) (*FileSink, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(fmt.Errorf("make %s %d bytes long: %w", path, size, err), f.Close(), os.Remove(path))
	}
	return &FileSink{FileSource: FileSource{f: f, size: size}}, nil
}

// OpenSink opens a raw file or a block device that exists, to write over it.
func OpenSink(path string) (*FileSink, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("size of %s: %w", path, err), f.Close())
	}
	return &FileSink{FileSource: FileSource{f: f, size: size}, device: st.Mode()&os.ModeDevice != 0}, nil
}

// WriteAt writes p at off.
func (s *FileSink) WriteAt(_ context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > s.size {
		return fmt.Errorf("write %d bytes at %d of %s: beyond its end at %d", len(p), off, s.f.Name(), s.size)
	}
	_, err := s.f.WriteAt(p, off)
	return err
}

// Zero punches a hole, and writes zeros where that can't be.
func (s *FileSink) Zero(ctx context.Context, off, n int64) error {
	if off < 0 || off+n > s.size {
		return fmt.Errorf("zero %d bytes at %d of %s: beyond its end at %d", n, off, s.f.Name(), s.size)
	}
	// A device promises zeros only for ZERO_RANGE.
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if s.device {
		mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	}
	err := unix.Fallocate(int(s.f.Fd()), mode, off, n)
	if !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return err
	}
	zeros := make([]byte, min(n, readSize))
	for n > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		part := zeros[:min(n, int64(len(zeros)))]
		if _, err := s.f.WriteAt(part, off); err != nil {
			return err
		}
		off += int64(len(part))
		n -= int64(len(part))
	}
	return nil
}

// Flush makes the file's content durable.
func (s *FileSink) Flush(context.Context) error { return s.f.Sync() }
