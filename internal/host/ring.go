package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// ring is a file of fixed size that keeps the last bytes written to it. Positions count from the first byte ever
// written. The header is one page:
//
//	0   8  "DRVRING1"
//	8   8  capacity, little endian
//	16  8  bytes ever written
//
// and the byte of position p is at 4096 + p mod capacity. A crash of the agent loses nothing (the page cache stays);
// after a crash of the machine the newest bytes may be garbage, which readers must take from any guest anyway.
type ring struct {
	f       *os.File
	size    int64
	written int64
}

const (
	ringMagic  = "DRVRING1"
	ringHeader = 4096
)

func openRing(path string, size int64) (*ring, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	r := &ring{f: f, size: size}
	var h [24]byte
	_, err = f.ReadAt(h[:], 0)
	if err == nil && string(h[:8]) == ringMagic && int64(binary.LittleEndian.Uint64(h[8:])) == size {
		if w := int64(binary.LittleEndian.Uint64(h[16:])); w >= 0 {
			r.written = w
			return r, nil
		}
	}
	// New, of another size, or broken: start empty.
	if err := errors.Join(f.Truncate(0), f.Truncate(ringHeader+size), r.header()); err != nil {
		f.Close()
		return nil, fmt.Errorf("make console ring %s: %w", path, err)
	}
	return r, nil
}

func (r *ring) header() error {
	h := binary.LittleEndian.AppendUint64([]byte(ringMagic), uint64(r.size))
	_, err := r.f.WriteAt(binary.LittleEndian.AppendUint64(h, uint64(r.written)), 0)
	return err
}

func (r *ring) write(p []byte) error {
	if skip := int64(len(p)) - r.size; skip > 0 {
		r.written += skip
		p = p[skip:]
	}
	for len(p) > 0 {
		at := r.written % r.size
		n := min(int64(len(p)), r.size-at)
		if _, err := r.f.WriteAt(p[:n], ringHeader+at); err != nil {
			return err
		}
		r.written += n
		p = p[n:]
	}
	return r.header()
}

// oldest is the lowest position that is still there.
func (r *ring) oldest() int64 { return max(0, r.written-r.size) }

// read fills p from position pos, or from the oldest if that is gone. It returns the position behind what it read.
func (r *ring) read(p []byte, pos int64) (int, int64, error) {
	pos = max(pos, r.oldest())
	if pos >= r.written {
		return 0, r.written, nil
	}
	at := pos % r.size
	n := min(int64(len(p)), r.written-pos, r.size-at)
	got, err := r.f.ReadAt(p[:n], ringHeader+at)
	if errors.Is(err, io.EOF) && int64(got) == n {
		err = nil
	}
	return got, pos + int64(got), err
}

func (r *ring) close() error { return r.f.Close() }
