package library

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/disk/inspect"
	"drover/internal/disk/sandbox"
)

// Options tune a Library. The zero value is usable.
type Options struct {
	MaxBytes  int64 // largest download and unpacked file; 0 means 2 TiB
	MaxRatio  int64 // largest unpacked:packed past the first GiB; 0 means 2000
	SyncEvery int64 // bytes of a download between sync points; 0 means 16 MiB
	Stall     time.Duration
	Attempts  int           // tries of a download that is cut; 0 means 5
	Backoff   time.Duration // before the second try, doubled each time; 0 means 1 s
	Keep      time.Duration // how long a cut download is kept; 0 means a week
	Box       sandbox.Box
	HTTP      *http.Client
	Log       *slog.Logger
}

func (o Options) withDefaults() Options {
	def := func(p *int64, n int64) {
		if *p == 0 {
			*p = n
		}
	}
	wait := func(p *time.Duration, d time.Duration) {
		if *p == 0 {
			*p = d
		}
	}
	def(&o.MaxBytes, 2<<40)
	def(&o.MaxRatio, 2000)
	def(&o.SyncEvery, 16<<20)
	wait(&o.Stall, time.Minute)
	wait(&o.Backoff, time.Second)
	wait(&o.Keep, 7*24*time.Hour)
	if o.Attempts == 0 {
		o.Attempts = 5
	}
	if o.HTTP == nil {
		o.HTTP = &http.Client{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Library is an open image directory. One process has it at a time. Close releases it.
type Library struct {
	dir  string
	opt  Options
	lock *os.File

	mu   sync.Mutex
	busy map[string]bool // downloads in work, by key
}

// Errors that callers branch on.
var (
	ErrChecksum = errors.New("checksum mismatch")
	ErrTooBig   = errors.New("image too big")
	ErrBusy     = errors.New("already in work")
	ErrNotFound = errors.New("image not found")
)

// Open makes or opens the directory and sweeps what a killed process left.
func Open(dir string, opt Options) (*Library, error) {
	for _, d := range []string{dir, filepath.Join(dir, "partial"), filepath.Join(dir, "tmp")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open the image library %s: %w", dir, err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the image library %s: %w", dir, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("open the image library %s: it is in use by another process (%w)", dir, err)
	}
	l := &Library{dir: dir, opt: opt.withDefaults(), lock: lock, busy: make(map[string]bool)}
	if err := l.sweep(time.Now()); err != nil {
		lock.Close()
		return nil, fmt.Errorf("sweep the image library %s: %w", dir, err)
	}
	return l, nil
}

// Close releases the directory.
func (l *Library) Close() error { return l.lock.Close() }

func (l *Library) sweep(now time.Time) error {
	tmp, err := os.ReadDir(filepath.Join(l.dir, "tmp"))
	if err != nil {
		return err
	}
	for _, e := range tmp {
		l.opt.Log.Info("image library: removing unfinished work", "file", e.Name())
		if err := os.RemoveAll(filepath.Join(l.dir, "tmp", e.Name())); err != nil {
			return err
		}
	}
	parts, err := os.ReadDir(filepath.Join(l.dir, "partial"))
	if err != nil {
		return err
	}
	for _, e := range parts {
		st, err := e.Info()
		if err != nil || now.Sub(st.ModTime()) < l.opt.Keep {
			continue
		}
		if err := os.Remove(filepath.Join(l.dir, "partial", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

var fileName = regexp.MustCompile(`^[0-9a-f]{64}\.(qcow2|iso|kernel)$`)

// File opens a finished image by its file name ("SHA256.qcow2", "SHA256.iso", "SHA256.kernel"), for reading.
func (l *Library) File(name string) (*os.File, error) {
	if !fileName.MatchString(name) {
		return nil, fmt.Errorf("image %.100q: not an image file name: %w", name, ErrNotFound)
	}
	f, err := os.Open(filepath.Join(l.dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("image %s: %w", name, ErrNotFound)
	}
	return f, err
}

// Files lists the finished images by file name.
func (l *Library) Files() ([]string, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("list the image library: %w", err)
	}
	var names []string
	for _, e := range entries {
		if fileName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Delete removes a finished image. Deleting what isn't there is no error.
func (l *Library) Delete(name string) error {
	if !fileName.MatchString(name) {
		return fmt.Errorf("image %.100q: not an image file name: %w", name, ErrNotFound)
	}
	if err := os.Remove(filepath.Join(l.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete image %s: %w", name, err)
	}
	return syncDir(l.dir)
}

// Phase is a step of an import, as Progress names it.
type Phase string

// The phases, in order.
const (
	Download Phase = "download"
	Check    Phase = "check"
	Unpack   Phase = "unpack"
	Convert  Phase = "convert"
	Finish   Phase = "finish"
)

// Progress is called often, from one goroutine at a time; total is 0 when it isn't known.
type Progress func(phase Phase, done, total int64)

// Request says what to import: exactly one of Path, Reader and URL.
type Request struct {
	Path   string
	Reader io.Reader
	URL    string

	SHA256   string         // of the source as it comes, in hex; "" means it isn't known
	Format   inspect.Format // "" means by content
	Disk     int            // which disk of an OVA, from 0
	Progress Progress
}

// Result is a finished image.
type Result struct {
	Name         string // file name in the library
	SHA256       string // of the file's bytes
	Size         int64
	VirtualSize  int64
	SourceSHA256 string
	SourceFormat inspect.Format // of what was converted, unwrapped
}

func (r *Request) validate() error {
	n := 0
	for _, set := range []bool{r.Path != "", r.Reader != nil, r.URL != ""} {
		if set {
			n++
		}
	}
	if n != 1 {
		return errors.New("import: give exactly one of a file, an upload or a URL")
	}
	r.SHA256 = strings.ToLower(strings.TrimSpace(r.SHA256))
	if b, err := hex.DecodeString(r.SHA256); r.SHA256 != "" && (err != nil || len(b) != sha256.Size) {
		return fmt.Errorf("import: %.80q isn't a SHA-256 in hex (64 digits)", r.SHA256)
	}
	if r.Disk < 0 {
		return errors.New("import: the number of the disk is negative")
	}
	if r.Progress == nil {
		r.Progress = func(Phase, int64, int64) {}
	}
	return nil
}

// Import does it all. On an error nothing of it remains but a download that can go on.
func (l *Library) Import(ctx context.Context, r Request) (Result, error) {
	if err := r.validate(); err != nil {
		return Result{}, err
	}
	src, done, err := l.source(ctx, &r)
	if err != nil {
		return Result{}, err
	}
	defer src.Close()
	sum, err := hashFile(ctx, src, func(n, total int64) { r.Progress(Check, n, total) })
	if err != nil {
		return Result{}, fmt.Errorf("read back the download: %w", err)
	}
	if r.SHA256 != "" && r.SHA256 != sum {
		done(true)
		return Result{}, fmt.Errorf("%w: the source has SHA-256 %s, expected %s; it was changed or damaged, or the checksum is of another file", ErrChecksum, sum, r.SHA256)
	}
	res, err := l.take(ctx, &r, src)
	// What is whole but refused would be refused again; a cancelled one may go on.
	done(err == nil || ctx.Err() == nil)
	res.SourceSHA256 = sum
	return res, err
}

// temp makes a file in tmp/. Unlinked ones vanish with their descriptor.
func (l *Library) temp(unlink bool) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(l.dir, "tmp", rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a temporary file: %w", err)
	}
	if unlink {
		if err := os.Remove(f.Name()); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

func hashFile(ctx context.Context, f *os.File, progress func(n, total int64)) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	r := &watched{ctx: ctx, r: io.NewSectionReader(f, 0, st.Size()), note: func(n int64) { progress(n, st.Size()) }}
	if _, err := io.CopyBuffer(h, r, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// watched reads until its context ends and reports how far it is.
type watched struct {
	ctx  context.Context
	r    io.Reader
	n    int64
	note func(n int64)
}

func (w *watched) Read(p []byte) (int, error) {
	if err := context.Cause(w.ctx); err != nil {
		return 0, err
	}
	n, err := w.r.Read(p)
	w.n += int64(n)
	w.note(w.n)
	return n, err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
