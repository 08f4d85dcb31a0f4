package main

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"drover/internal/osimage/helperinit/wire"
)

const (
	tarBlock = 512
	// maxLinks is how many files with several names are remembered; beyond that each name is a file of its own.
	maxLinks = 200000
	maxDepth = 4096
)

// archive is a tar archive under way (POSIX.1-2017, pax; GNU tar's manual for sparse files).
type archive struct {
	p    *port
	seen map[[2]uint64]string
}

func (p *port) tar(q wire.Tar) error {
	a := &archive{p: p, seen: map[[2]uint64]string{}}
	for _, i := range q.Items {
		root, err := p.m.open(i.Volume)
		if err != nil {
			return err
		}
		f, err := openIn(root, i.Path, oPath|syscall.O_NOFOLLOW)
		if err != nil {
			return err
		}
		err = a.item(f, i)
		f.Close()
		if err != nil {
			return err
		}
	}
	return p.send(wire.TypeData, make([]byte, 2*tarBlock))
}

// item sends what a path names. The path was opened without rights; what can be opened is opened again through it.
func (a *archive) item(f *os.File, i wire.TarItem) error {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return fail(codeOf(err), "%s: %v", i.Path, err)
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		target, err := readlinkat(int(f.Fd()), "")
		if err != nil {
			return fail(codeOf(err), "%s: %v", i.Path, err)
		}
		return a.head(header{name: i.Name, typ: '2', link: target}, &st)
	case syscall.S_IFREG, syscall.S_IFDIR:
		g, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
		if err != nil {
			return fail(codeOf(err), "%s: %v", i.Path, err)
		}
		defer g.Close()
		return a.opened(g, i.Name, &st, 0)
	}
	return a.special(i.Name, &st)
}

func (a *archive) opened(f *os.File, name string, st *syscall.Stat_t, depth int) error {
	if st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return a.directory(f, name, st, depth)
	}
	if err := a.file(f, name, st); err != nil {
		if errors.Is(err, errCancelled) {
			return err
		}
		return fail(codeOf(err), "%s: %v", name, err)
	}
	return nil
}

func (a *archive) directory(f *os.File, name string, st *syscall.Stat_t, depth int) error {
	if depth > maxDepth {
		return fail(wire.Unsupported, "%s: directories deeper than %d", name, maxDepth)
	}
	at := func(err error) error { return fail(codeOf(err), "%s: %v", name, err) }
	if name != "" {
		x, err := xattrs(int(f.Fd()))
		if err != nil {
			return at(err)
		}
		if err := a.head(header{name: name + "/", typ: '5', xattrs: x}, st); err != nil {
			return err
		}
		name += "/"
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return at(err)
	}
	sort.Strings(names)
	for _, n := range names {
		if err := a.child(f, n, name+n, depth); err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) child(dir *os.File, n, name string, depth int) error {
	if a.p.cancelled.Load() {
		return errCancelled
	}
	at := func(err error) error { return fail(codeOf(err), "%s: %v", name, err) }
	var st syscall.Stat_t
	if err := fstatat(int(dir.Fd()), n, &st); err != nil {
		return at(err)
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		target, err := readlinkat(int(dir.Fd()), n)
		if err != nil {
			return at(err)
		}
		return a.head(header{name: name, typ: '2', link: target}, &st)
	case syscall.S_IFREG, syscall.S_IFDIR:
		fd, err := syscall.Openat(int(dir.Fd()), n, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		if err != nil {
			return at(err)
		}
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		if err := syscall.Fstat(fd, &st); err != nil {
			return at(err)
		}
		return a.opened(f, name, &st, depth+1)
	}
	return a.special(name, &st)
}

func (a *archive) special(name string, st *syscall.Stat_t) error {
	typ, ok := map[uint32]byte{syscall.S_IFCHR: '3', syscall.S_IFBLK: '4', syscall.S_IFIFO: '6'}[st.Mode&syscall.S_IFMT]
	if !ok {
		return nil // a socket means nothing without its process
	}
	return a.head(header{name: name, typ: typ}, st)
}

func (a *archive) file(f *os.File, name string, st *syscall.Stat_t) error {
	if st.Nlink > 1 {
		key := [2]uint64{st.Dev, st.Ino}
		if first, ok := a.seen[key]; ok {
			return a.head(header{name: name, typ: '1', link: first}, st)
		}
		if len(a.seen) < maxLinks {
			a.seen[key] = name
		}
	}
	x, err := xattrs(int(f.Fd()))
	if err != nil {
		return err
	}
	parts, err := dataParts(f, st.Size)
	if err != nil {
		return err
	}
	h := header{name: name, typ: '0', size: st.Size, xattrs: x}
	var table []byte
	sum := int64(0)
	for _, d := range parts {
		sum += d.n
	}
	if sum < st.Size {
		h.sparse, h.real = true, st.Size
		table = sparseMap(parts, st.Size)
		h.size = int64(len(table)) + sum
	}
	if err := a.head(h, st); err != nil {
		return err
	}
	if len(table) > 0 {
		for len(table) > 0 {
			n := min(len(table), wire.MaxPayload)
			if err := a.p.send(wire.TypeData, table[:n]); err != nil {
				return err
			}
			table = table[n:]
		}
	}
	for _, d := range parts {
		if err := a.p.copyData(f, d); err != nil {
			return err
		}
	}
	if pad := h.size % tarBlock; pad != 0 {
		return a.p.send(wire.TypeData, make([]byte, tarBlock-pad))
	}
	return nil
}

// sparseMap is what stands before the data of a sparse file: the number of parts, then offset and size of each, in decimal lines.
func sparseMap(parts []part, size int64) []byte {
	if len(parts) == 0 || parts[len(parts)-1].off+parts[len(parts)-1].n < size {
		parts = append(parts, part{size, 0})
	}
	var b []byte
	b = append(strconv.AppendInt(b, int64(len(parts)), 10), '\n')
	for _, d := range parts {
		b = append(strconv.AppendInt(b, d.off, 10), '\n')
		b = append(strconv.AppendInt(b, d.n, 10), '\n')
	}
	if pad := len(b) % tarBlock; pad != 0 {
		b = append(b, make([]byte, tarBlock-pad)...)
	}
	return b
}

// header is a member's.
type header struct {
	name, link string
	typ        byte
	size       int64
	sparse     bool
	real       int64
	xattrs     map[string]string
}

func (a *archive) head(h header, st *syscall.Stat_t) error {
	if h.name == "" {
		return nil
	}
	return a.p.send(wire.TypeData, h.append(nil, st))
}

// append makes the extended header, which says all that matters, and the plain one.
func (h *header) append(b []byte, st *syscall.Stat_t) []byte {
	var rec []byte
	plain := h.name
	if h.sparse {
		rec = paxRecord(rec, "GNU.sparse.major", "1")
		rec = paxRecord(rec, "GNU.sparse.minor", "0")
		rec = paxRecord(rec, "GNU.sparse.name", h.name)
		rec = paxRecord(rec, "GNU.sparse.realsize", strconv.FormatInt(h.real, 10))
		plain = "GNUSparseFile.0/" + h.name[strings.LastIndexByte(h.name, '/')+1:]
	}
	if len(plain) > 100 || !ascii(plain) {
		rec = paxRecord(rec, "path", plain)
	}
	if len(h.link) > 100 || !ascii(h.link) {
		rec = paxRecord(rec, "linkpath", h.link)
	}
	if h.size >= 1<<33 {
		rec = paxRecord(rec, "size", strconv.FormatInt(h.size, 10))
	}
	if st.Uid >= 1<<21 {
		rec = paxRecord(rec, "uid", strconv.FormatUint(uint64(st.Uid), 10))
	}
	if st.Gid >= 1<<21 {
		rec = paxRecord(rec, "gid", strconv.FormatUint(uint64(st.Gid), 10))
	}
	if st.Mtim.Nsec != 0 || st.Mtim.Sec < 0 || st.Mtim.Sec >= 1<<33 {
		rec = paxRecord(rec, "mtime", paxTime(st.Mtim.Sec, st.Mtim.Nsec))
	}
	keys := make([]string, 0, len(h.xattrs))
	for k := range h.xattrs {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		rec = paxRecord(rec, "SCHILY.xattr."+k, h.xattrs[k])
	}
	if len(rec) > 0 {
		x := header{name: "PaxHeaders.0/x", typ: 'x', size: int64(len(rec))}
		b = x.block(b, x.name, &syscall.Stat_t{Mode: 0o644})
		b = append(b, rec...)
		if pad := len(rec) % tarBlock; pad != 0 {
			b = append(b, make([]byte, tarBlock-pad)...)
		}
	}
	return h.block(b, plain, st)
}

// block is the plain header: 512 bytes.
func (h *header) block(b []byte, name string, st *syscall.Stat_t) []byte {
	at := len(b)
	b = append(b, make([]byte, tarBlock)...)
	x := b[at:]
	copy(x[:100], name)
	oct := func(off, width int, v uint64) {
		if s := strconv.FormatUint(v, 8); len(s) < width {
			copy(x[off:], strings.Repeat("0", width-1-len(s))+s)
		}
	}
	oct(100, 8, uint64(st.Mode&0o7777))
	oct(108, 8, uint64(st.Uid))
	oct(116, 8, uint64(st.Gid))
	oct(124, 12, uint64(h.size))
	oct(136, 12, uint64(max(st.Mtim.Sec, 0)))
	x[156] = h.typ
	copy(x[157:257], h.link)
	copy(x[257:], "ustar\x0000")
	if h.typ == '3' || h.typ == '4' {
		oct(329, 8, st.Rdev>>8&0xfff|st.Rdev>>32&^0xfff)
		oct(337, 8, st.Rdev&0xff|st.Rdev>>12&0xfff00)
	}
	copy(x[148:156], "        ")
	sum := 0
	for _, c := range x {
		sum += int(c)
	}
	copy(x[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// paxRecord appends "length key=value\n", where the length counts itself.
func paxRecord(b []byte, k, v string) []byte {
	n := len(k) + len(v) + 3
	for w := len(strconv.Itoa(n)); ; w++ {
		if len(strconv.Itoa(n+w)) <= w {
			n += w
			break
		}
	}
	return append(b, strconv.Itoa(n)+" "+k+"="+v+"\n"...)
}

func paxTime(sec, nsec int64) string {
	if sec < 0 && nsec > 0 {
		return fmt.Sprintf("-%d.%09d", -(sec + 1), 1_000_000_000-nsec)
	}
	return fmt.Sprintf("%d.%09d", sec, nsec)
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
