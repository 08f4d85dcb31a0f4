package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"drover/internal/backup"
	"drover/internal/osimage/helperinit/wire"
)

// Limits of what is believed.
const (
	maxVolumes = 4096
	maxName    = 1024
	maxDeaths  = 2
)

// Session is an open point. Methods may be called concurrently; three requests are served at once, others wait.
type Session struct {
	o     Options
	point backup.PointReader
	names []string // of disks
	disks []backup.DiskReader
	life  context.Context
	end   context.CancelFunc

	starting chan struct{} // one place, held while a helper starts

	mu      sync.Mutex // guards the fields below
	vm      *vm
	ending  sync.WaitGroup // helpers that are being ended
	volumes []Volume
	deaths  map[string]int // by volume's name
	closed  bool
}

// Volume is something that may hold files.
type Volume struct {
	Name       string // as in paths: "root.1", "lvm.vg0.home"
	Filesystem string // "ext4"; "unknown"
	Label      string
	UUID       string
	Size       int64
	Place      string // in words
	Note       string // why it cannot be opened; empty: it can

	id string
}

// Entry is a file of any type. Name and Target are bytes: Show makes text of them.
type Entry struct {
	Name     string
	Type     string // "directory", "file", "symlink", "other"
	Mode     uint32 // with the bits of st_mode
	UID, GID uint32
	Size     int64
	Modified time.Time
	Target   string
}

// Open starts a helper over a point's disks. life ends the session; the point is closed by Close, or here if there is an error.
func Open(ctx, life context.Context, point backup.PointReader, o Options) (*Session, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, errors.Join(err, point.Close())
	}
	s := &Session{o: o, point: point, starting: make(chan struct{}, 1), deaths: map[string]int{}}
	s.life, s.end = context.WithCancel(life)
	for _, d := range point.Point().Disks {
		if d.Name == point.Point().Memory {
			continue
		}
		r, err := point.Disk(s.life, d.Name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("file restore: disk %s of point %s: %w", d.Name, point.Point().ID, err), s.Close())
		}
		s.names, s.disks = append(s.names, d.Name), append(s.disks, r)
	}
	if _, err := s.helper(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close ends the helper and the point. No other call is under way. A second Close does nothing.
func (s *Session) Close() error {
	s.end()
	s.mu.Lock()
	v, again := s.vm, s.closed
	s.vm, s.closed = nil, true
	s.mu.Unlock()
	if again {
		return nil
	}
	// One that is starting sees the end of life.
	s.starting <- struct{}{}
	<-s.starting
	if v != nil {
		v.end()
	}
	s.ending.Wait()
	var err error
	for _, d := range s.disks {
		err = errors.Join(err, d.Close())
	}
	return errors.Join(err, s.point.Close())
}

var errClosed = errors.New("file restore: the session is closed")

// helper gives the running helper, or starts one.
func (s *Session) helper(ctx context.Context) (*vm, error) {
	select {
	case s.starting <- struct{}{}:
		defer func() { <-s.starting }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	v, closed := s.vm, s.closed
	s.mu.Unlock()
	if closed || s.life.Err() != nil {
		return nil, errClosed
	}
	if v != nil {
		select {
		case <-v.gone:
			s.bury(v)
		default:
			return v, nil
		}
	}
	begun := s.o.Clock.Now()
	v, err := start(ctx, s.life, s.o, s.disks)
	if err != nil {
		return nil, err
	}
	s.o.Log.Info("a helper reads a restore point", "point", s.point.Point().ID, "pid", v.cmd.Process.Pid, "took", s.o.Clock.Now().Sub(begun))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		s.ending.Go(v.end)
		return nil, errClosed
	}
	s.vm = v
	return v, nil
}

// bury ends a helper that failed.
func (s *Session) bury(v *vm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vm == v {
		s.vm = nil
		s.ending.Go(v.end)
	}
}

// ask makes a request of a helper that runs, for volumes by name.
func (s *Session) ask(ctx context.Context, volumes []string, t wire.Type, payload []byte, each func(wire.Frame) error) error {
	for _, n := range volumes {
		s.mu.Lock()
		deaths := s.deaths[n]
		s.mu.Unlock()
		if deaths >= maxDeaths {
			return fmt.Errorf("volume %s: %w: the helper died of it %d times; restore its disk and look at it with the guest's own tools", n, ErrDamaged, deaths)
		}
	}
	v, err := s.helper(ctx)
	if err != nil {
		return err
	}
	var c *conn
	select {
	case c = <-v.ports:
	case <-v.gone:
		return fmt.Errorf("%w: it ended", ErrHelper)
	case <-ctx.Done():
		return ctx.Err()
	}
	err = c.call(ctx, t, payload, s.o.Stall, each)
	if !errors.Is(err, ErrHelper) {
		v.ports <- c
		return err
	}
	s.bury(v)
	if s.life.Err() != nil {
		return errClosed
	}
	s.o.Log.Warn("a helper failed and is replaced", "point", s.point.Point().ID, "volumes", volumes, "err", err, "console", v.said.String())
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.mu.Lock()
	for _, n := range volumes {
		s.deaths[n]++
	}
	s.mu.Unlock()
	if len(volumes) > 0 {
		return fmt.Errorf("volume %s: %w; the file system may be damaged", strings.Join(volumes, ", "), err)
	}
	return err
}

// Volumes tells what there is.
func (s *Session) Volumes(ctx context.Context) ([]Volume, error) {
	s.mu.Lock()
	known := s.volumes
	s.mu.Unlock()
	if known != nil {
		return slices.Clone(known), nil
	}
	list := []Volume{}
	taken := map[string]bool{}
	err := s.ask(ctx, nil, wire.TypeVolumes, nil, func(f wire.Frame) error {
		if f.Type != wire.TypeVolume {
			return unexpected(f)
		}
		w, err := wire.ParseVolume(f.Payload)
		if err != nil {
			return err
		}
		if len(list) >= maxVolumes {
			return fmt.Errorf("%w: more than %d volumes", wire.ErrFormat, maxVolumes)
		}
		v := s.volume(w)
		for base, i := v.Name, 2; taken[v.Name]; i++ {
			v.Name = fmt.Sprintf("%s~%d", base, i)
		}
		taken[v.Name] = true
		list = append(list, v)
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes = list
	return slices.Clone(list), nil
}

var diskNumber = regexp.MustCompile(`\bdisk [0-9]{1,5}\b`)

func (s *Session) volume(w wire.Volume) Volume {
	name := strings.ReplaceAll(w.ID, "/", ".")
	// The helper knows disks by number.
	place := diskNumber.ReplaceAllStringFunc(w.Place, func(m string) string {
		if n, err := strconv.Atoi(m[len("disk "):]); err == nil && n < len(s.names) {
			return "disk " + s.names[n]
		}
		return m
	})
	if int(w.Disk) < len(s.names) {
		name, place = s.names[w.Disk], "disk "+s.names[w.Disk]
		if w.Part != 0 {
			name, place = fmt.Sprintf("%s.%d", name, w.Part), fmt.Sprintf("%s, partition %d", place, w.Part)
		}
	}
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_+", r) {
			return r
		}
		return '_'
	}, name)
	return Volume{Name: name, Filesystem: printable(w.FS, 40), Label: printable(w.Label, 256), UUID: printable(w.UUID, 64), Size: int64(min(w.Size, 1<<62)), Place: printable(place, 500),
		Note: printable(w.Note, 500), id: w.ID}
}

// find gives the helper's name of a volume.
func (s *Session) find(ctx context.Context, name string) (string, error) {
	vs, err := s.Volumes(ctx)
	if err != nil {
		return "", err
	}
	for _, v := range vs {
		if v.Name != name {
			continue
		}
		if v.Note != "" {
			return "", fmt.Errorf("volume %s: %w: it %s", name, ErrUnsupported, v.Note)
		}
		return v.id, nil
	}
	var have []string
	for _, v := range vs {
		have = append(have, v.Name)
	}
	return "", fmt.Errorf("volume %s: %w; the point has %s", name, ErrNotFound, strings.Join(have, ", "))
}

// List gives entries of a directory whose names are greater than after, in the order of their bytes. Fewer than limit (at most 10,000; 0: that) means that there are no more.
func (s *Session) List(ctx context.Context, p Path, after string, limit int) ([]Entry, error) {
	if limit <= 0 || limit > wire.MaxLimit {
		limit = wire.MaxLimit
	}
	id, err := s.find(ctx, p.Volume)
	if err != nil {
		return nil, err
	}
	var out []Entry
	last := after
	q := wire.List{Volume: id, Path: p.Path, After: after, Limit: uint32(limit)}
	err = s.ask(ctx, []string{p.Volume}, wire.TypeList, q.Append(nil), func(f wire.Frame) error {
		e, err := entry(f)
		if err != nil {
			return err
		}
		if len(out) >= limit || e.Name <= last {
			return fmt.Errorf("%w: a listing that is too long or out of order", wire.ErrFormat)
		}
		last = e.Name
		out = append(out, e)
		return nil
	})
	if err != nil {
		return nil, at(p, err)
	}
	return out, nil
}

func at(p Path, err error) error {
	if errors.Is(err, ErrHelper) {
		return err
	}
	return fmt.Errorf("%s: %w", p, err)
}

// entry parses and checks one.
func entry(f wire.Frame) (Entry, error) {
	if f.Type != wire.TypeEntry {
		return Entry{}, unexpected(f)
	}
	w, err := wire.ParseEntry(f.Payload)
	if err != nil {
		return Entry{}, err
	}
	if w.Name == "" || w.Name == "." || w.Name == ".." || len(w.Name) > maxName || strings.ContainsAny(w.Name, "/\x00") || w.Size >= 1<<63 || w.Nanos >= 1e9 {
		return Entry{}, fmt.Errorf("%w: an entry that cannot be (%q)", wire.ErrFormat, w.Name[:min(len(w.Name), 40)])
	}
	kinds := map[wire.Kind]string{wire.Directory: "directory", wire.File: "file", wire.Symlink: "symlink", wire.Special: "other"}
	if kinds[w.Kind] == "" {
		return Entry{}, fmt.Errorf("%w: an entry of type %d", wire.ErrFormat, w.Kind)
	}
	return Entry{Name: w.Name, Type: kinds[w.Kind], Mode: w.Mode, UID: w.UID, GID: w.GID, Size: int64(w.Size), Modified: time.Unix(w.Seconds, int64(w.Nanos)).UTC(), Target: w.Target}, nil
}

// Stat tells of one path; with follow, of what a symlink leads to. The entry's name is "root" for a volume's root, which has none.
func (s *Session) Stat(ctx context.Context, p Path, follow bool) (Entry, error) {
	id, err := s.find(ctx, p.Volume)
	if err != nil {
		return Entry{}, err
	}
	var out Entry
	n := 0
	err = s.ask(ctx, []string{p.Volume}, wire.TypeStat, wire.Stat{Volume: id, Path: p.Path, Follow: follow}.Append(nil), func(f wire.Frame) (err error) {
		if n++; n > 1 {
			return unexpected(f)
		}
		out, err = entry(f)
		return err
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("%w: it answered nothing", ErrHelper)
	}
	if err != nil {
		return Entry{}, at(p, err)
	}
	return out, nil
}

// Read writes a regular file's bytes to w, after begin was told what it is.
func (s *Session) Read(ctx context.Context, p Path, w io.Writer, begin func(Entry) error) error {
	id, err := s.find(ctx, p.Volume)
	if err != nil {
		return err
	}
	var left int64 = -1
	zeros := make([]byte, 64<<10)
	err = s.ask(ctx, []string{p.Volume}, wire.TypeRead, wire.Read{Volume: id, Path: p.Path}.Append(nil), func(f wire.Frame) error {
		if left < 0 {
			e, err := entry(f)
			if err != nil {
				return err
			}
			left = e.Size
			return begin(e)
		}
		switch f.Type {
		case wire.TypeData:
			if left -= int64(len(f.Payload)); left < 0 {
				return fmt.Errorf("%w: more bytes than the file has", wire.ErrFormat)
			}
			_, err := w.Write(f.Payload)
			return err
		case wire.TypeHole:
			n, err := wire.ParseHole(f.Payload)
			if err != nil || n > uint64(left) {
				return fmt.Errorf("%w: a hole that is larger than the file", wire.ErrFormat)
			}
			left -= int64(n)
			for n > 0 && err == nil {
				if err = ctx.Err(); err == nil {
					var k int
					k, err = w.Write(zeros[:min(n, uint64(len(zeros)))])
					n -= uint64(k)
				}
			}
			return err
		}
		return unexpected(f)
	})
	if err == nil && left != 0 {
		err = fmt.Errorf("%w: %d bytes of the file are missing", ErrHelper, left)
	}
	if err != nil {
		return at(p, err)
	}
	return nil
}

// Download writes paths to w: one regular file (or a symlink to one) as it is, anything else as a tar archive (POSIX pax) with names as in the volume, below the volume's name if there are several.
// begin is told which, and the file's size, before the first byte.
func (s *Session) Download(ctx context.Context, paths []Path, w io.Writer, begin func(raw bool, size int64) error) error {
	if len(paths) == 1 {
		e, err := s.Stat(ctx, paths[0], true)
		if err == nil && e.Type == "file" {
			return s.Read(ctx, paths[0], w, func(e Entry) error { return begin(true, e.Size) })
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err // what is not found may be a symlink that leads nowhere
		}
	}
	return s.Tar(ctx, paths, w, func() error { return begin(false, 0) })
}

// Tar writes an archive of paths to w, after begin.
func (s *Session) Tar(ctx context.Context, paths []Path, w io.Writer, begin func() error) error {
	if len(paths) == 0 || len(paths) > 65535 {
		return fmt.Errorf("download: %d paths; from 1 to 65535", len(paths))
	}
	var q wire.Tar
	var volumes []string
	for _, p := range paths {
		id, err := s.find(ctx, p.Volume)
		if err != nil {
			return err
		}
		if !slices.Contains(volumes, p.Volume) {
			volumes = append(volumes, p.Volume)
		}
		q.Items = append(q.Items, wire.TarItem{Volume: id, Path: p.Path, Name: inArchive(p.Path)})
		// Told before the archive begins.
		if _, err := s.Stat(ctx, p, false); err != nil {
			return err
		}
	}
	if len(volumes) > 1 {
		for i, p := range paths {
			q.Items[i].Name = strings.TrimSuffix(p.Volume+"/"+q.Items[i].Name, "/")
		}
	}
	begun := false
	err := s.ask(ctx, volumes, wire.TypeTar, q.Append(nil), func(f wire.Frame) error {
		if f.Type != wire.TypeData {
			return unexpected(f)
		}
		if !begun {
			begun = true
			if err := begin(); err != nil {
				return err
			}
		}
		_, err := w.Write(f.Payload)
		return err
	})
	if err != nil {
		return fmt.Errorf("download of %s: %w", paths[0], err)
	}
	return nil
}

// inArchive is a path's name in an archive: relative, without "." and "..".
func inArchive(p string) string {
	var out []string
	for _, c := range strings.Split(p, "/") {
		switch c {
		case "", ".":
		case "..":
			out = out[:max(0, len(out)-1)]
		default:
			out = append(out, c)
		}
	}
	return strings.Join(out, "/")
}
