package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"drover/internal/osimage/helperinit/wire"
)

// mdMagic begins a superblock of MD (linux/raid/md_p.h).
const mdMagic = 0xa92b4efc

// MD's ioctls (linux/raid/md_u.h) and its major number.
const (
	mdMajor        = 9
	mdAddNewDisk   = 1<<30 | 20<<16 | mdMajor<<8 | 0x21
	mdSetArrayInfo = 1<<30 | 72<<16 | mdMajor<<8 | 0x23
	mdRunArray     = 1<<30 | 12<<16 | mdMajor<<8 | 0x30
)

// mdOffsets are where a superblock may be: of versions 1.2, 1.1, 1.0 and 0.90.
func mdOffsets(size int64) []int64 {
	sectors := size / 512
	return []int64{4096, 0, (sectors - 16) &^ 7 * 512, (sectors&^127 - 128) * 512}
}

// mdMember is what the superblock of a member says.
type mdMember struct {
	major, minor uint32
	uuid, name   string
	level        int32
	events       uint64
}

func readMember(r io.ReaderAt, size int64) (mdMember, bool) {
	le := binary.LittleEndian
	for i, off := range mdOffsets(size) {
		b := make([]byte, 4096)
		if off < 0 || off+256 > size {
			continue
		}
		r.ReadAt(b, off)
		if le.Uint32(b) != mdMagic {
			continue
		}
		if major := le.Uint32(b[4:]); i < 3 && major == 1 {
			return mdMember{major: 1, minor: uint32(2 - i), uuid: uuid(b[16:32]), name: text(b[32:64]), level: int32(le.Uint32(b[72:])), events: le.Uint64(b[200:])}, true
		} else if i == 3 && major == 0 {
			id := append(append([]byte(nil), b[20:24]...), b[52:64]...)
			return mdMember{major: 0, minor: 90, uuid: uuid(id), level: int32(le.Uint32(b[28:]))}, true
		}
	}
	return mdMember{}, false
}

var mdLevels = map[int32]string{-1: "linear", 0: "raid0", 1: "raid1", 10: "raid10", 4: "raid456", 5: "raid456", 6: "raid456"}

// arrays starts the MD arrays whose members are among the devices.
func (m *machine) arrays(devs []device) []device {
	type array struct {
		head    mdMember
		members []device
	}
	found := map[string]*array{}
	var order []string
	for _, d := range devs {
		if d.f.fs != fsMD {
			continue
		}
		f, err := os.Open("/dev/" + d.name)
		if err != nil {
			continue
		}
		h, ok := readMember(f, int64(d.Size))
		f.Close()
		if !ok {
			continue
		}
		if found[h.uuid] == nil {
			found[h.uuid] = &array{head: h}
			order = append(order, h.uuid)
		}
		found[h.uuid].members = append(found[h.uuid].members, d)
	}
	sort.Strings(order)
	var out []device
	for i, id := range order {
		a := found[id]
		name := a.head.name
		if _, after, ok := strings.Cut(name, ":"); ok {
			name = after // the host's name stands before it
		}
		if name == "" {
			name = id[:8]
		}
		places := make([]string, len(a.members))
		for i, d := range a.members {
			places[i] = d.Place
		}
		place := fmt.Sprintf("MD array %s on %s", name, strings.Join(places, " and "))
		if err := m.runArray(i, a.head, a.members); err != nil {
			out = append(out, device{Volume: wire.Volume{ID: "md/" + name, Disk: wire.NoDisk, Place: place}, f: unusable("cannot be started: " + err.Error())})
			continue
		}
		out = append(out, partitions("md"+strconv.Itoa(i), "md/"+name, wire.NoDisk, place)...)
	}
	return out
}

func unusable(note string) found { return found{fs: fsUnknown, note: note} }

func (m *machine) runArray(n int, h mdMember, members []device) error {
	kind, ok := mdLevels[h.level]
	if !ok {
		return fmt.Errorf("level %d is not supported", h.level)
	}
	m.mods.load("md_mod", kind)
	// Nothing is written but for a journal's replay, and nothing is rebuilt.
	os.WriteFile("/sys/module/md_mod/parameters/start_ro", []byte("1"), 0)
	os.WriteFile("/sys/module/raid0/parameters/default_layout", []byte("2"), 0)
	path := "/dev/md" + strconv.Itoa(n)
	if err := makeNode(path, mdMajor, n); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info := [18]int32{int32(h.major), int32(h.minor)}
	if err := ioctl(f.Fd(), mdSetArrayInfo, unsafe.Pointer(&info[0])); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	for _, d := range members {
		var st syscall.Stat_t
		if err := syscall.Stat("/dev/"+d.name, &st); err != nil {
			return err
		}
		disk := [5]int32{0, int32(st.Rdev >> 8 & 0xfff), int32(st.Rdev&0xff | st.Rdev>>12&0xfff00)}
		if err := ioctl(f.Fd(), mdAddNewDisk, unsafe.Pointer(&disk[0])); err != nil {
			return fmt.Errorf("add %s: %w", d.Place, err)
		}
	}
	var param [3]int32
	if err := ioctl(f.Fd(), mdRunArray, unsafe.Pointer(&param[0])); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	os.WriteFile("/sys/block/md"+strconv.Itoa(n)+"/md/sync_action", []byte("frozen"), 0)
	return nil
}
