package qmp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// errTooLong says that a message exceeded Options.MaxMessage.
var errTooLong = errors.New("message is too long")

// keepBuffer is how much of the buffer is kept between messages, so that one
// huge reply does not stay in memory for the life of the VM.
const keepBuffer = 8 << 10

// lineReader splits the stream in lines, each at most max bytes. QEMU sends one
// message a line (its monitor without pretty=on).
type lineReader struct {
	r   *bufio.Reader
	max int
	buf []byte
}

func newLineReader(r io.Reader, max int) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 4<<10), max: max}
}

// next returns the next line that is not blank, without its end. It is valid
// until the following call.
func (l *lineReader) next() ([]byte, error) {
	for {
		if cap(l.buf) > keepBuffer {
			l.buf = nil
		}
		l.buf = l.buf[:0]
		for {
			part, err := l.r.ReadSlice('\n')
			if len(l.buf)+len(part) > l.max {
				return nil, fmt.Errorf("%w: over %d bytes", errTooLong, l.max)
			}
			l.buf = append(l.buf, part...)
			if err == nil {
				break
			}
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if errors.Is(err, io.EOF) && len(l.buf) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if line := bytes.TrimSpace(l.buf); len(line) > 0 {
			return line, nil
		}
	}
}

// write sends one command. ctx bounds the wait for other writers and for room in
// the socket. A command cut off in the middle ends the connection.
func (c *Client) write(ctx context.Context, command string, line []byte, files []*os.File) error {
	select {
	case c.writing <- struct{}{}:
	case <-c.done:
		return fmt.Errorf("%s: %w", command, c.Err())
	case <-ctx.Done():
		return fmt.Errorf("qmp: %s: not sent: %w", command, ctx.Err())
	}
	defer func() { <-c.writing }()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("qmp: %s: not sent: %w", command, err)
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	n, err := c.send(line, files)
	if !stop() {
		<-fired
		c.conn.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNoFiles):
		return fmt.Errorf("qmp: %s: %w", command, err)
	case n == 0 && errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("qmp: %s: not sent, QEMU does not read: %w", command, ctx.Err())
	}
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("cut off after %d of %d bytes: %w", n, len(line), ctx.Err())
	}
	err = fmt.Errorf("qmp: %w: write %s: %w", ErrGone, command, err)
	c.fail(err)
	return err
}

var errNoFiles = errors.New("file descriptors need a Unix socket")

// send writes line, with files attached to its first byte.
func (c *Client) send(line []byte, files []*os.File) (int, error) {
	if len(files) == 0 {
		return c.conn.Write(line)
	}
	u, ok := c.conn.(*net.UnixConn)
	if !ok {
		return 0, errNoFiles
	}
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return 0, fmt.Errorf("%w: %s: %w", errNoFiles, f.Name(), err)
		}
		// Duplicated under the file's own lock, so that a Close elsewhere cannot make us
		// pass a descriptor that means something else by now.
		var dup int
		var derr error
		if err := raw.Control(func(fd uintptr) { dup, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
			derr = err
		}
		if derr != nil {
			return 0, fmt.Errorf("%w: %s: %w", errNoFiles, f.Name(), derr)
		}
		defer unix.Close(dup)
		fds[i] = dup
	}
	n, _, err := u.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
	for err == nil && n < len(line) {
		var k int
		k, err = u.Write(line[n:])
		n += k
	}
	return n, err
}
