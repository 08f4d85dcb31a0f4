package qemu

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// QEMU's stderr is a FIFO. QEMU's end does not block and is open for reading too, so that QEMU neither waits for an
// agent that is not there nor fails without one; the agent's end goes to a log of two files of at most logMax bytes.
const (
	logMax  = 256 << 10
	tailMax = 4 << 10
)

// stderrLog copies the FIFO to the log and remembers the end of it.
type stderrLog struct {
	fifo *os.File
	done chan struct{} // closed when the copying has ended

	mu   sync.Mutex
	tail []byte
}

// makeFIFO returns the end that QEMU gets.
func makeFIFO(dir string) (*os.File, error) {
	path := filepath.Join(dir, stderrFIFO)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, &os.PathError{Op: "make FIFO", Path: path, Err: err}
	}
	// By number, not *os.File methods: those would make it blocking for the child.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func followStderr(dir string) (*stderrLog, error) {
	f, err := os.OpenFile(filepath.Join(dir, stderrFIFO), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	l := &stderrLog{fifo: f, done: make(chan struct{})}
	go l.copy(filepath.Join(dir, logFile))
	return l, nil
}

// copy ends when no process has the FIFO open for writing any more, or at close.
func (l *stderrLog) copy(path string) {
	defer close(l.done)
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		out = nil // the tail in memory still works
	}
	var size int64
	if out != nil {
		if st, err := out.Stat(); err == nil {
			size = st.Size()
		}
	}
	buf := make([]byte, 4096)
	for {
		n, err := l.fifo.Read(buf)
		l.mu.Lock()
		l.tail = append(l.tail, buf[:n]...)
		if over := len(l.tail) - tailMax; over > 0 {
			l.tail = append([]byte(nil), l.tail[over:]...)
		}
		l.mu.Unlock()
		if out != nil && n > 0 {
			if size += int64(n); size > logMax {
				out.Close()
				os.Rename(path, path+".1")
				if out, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
					out, err = nil, nil
				}
				size = int64(n)
			}
			if out != nil {
				out.Write(buf[:n])
			}
		}
		if errors.Is(err, io.EOF) || (err != nil && n == 0) {
			break
		}
	}
	if out != nil {
		out.Close()
	}
}

// close stops the copying; what QEMU says later waits in the FIFO for the next agent.
func (l *stderrLog) close() {
	l.fifo.Close()
	<-l.done
}

// said is the end of what QEMU wrote, without control characters: it may quote the guest.
func (l *stderrLog) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			return '?'
		}
		return r
	}, string(l.tail))
	return strings.TrimSpace(s)
}
