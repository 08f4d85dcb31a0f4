package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"

	"drover/internal/osimage/helperinit/wire"
)

// maxLVMText bounds the metadata that is read: LVM's own area is 1 MiB unless somebody asked for more.
const maxLVMText = 16 << 20

// pv is a physical volume: who it is, and the text of its group if it carries one.
type pv struct {
	uuid string
	text string
}

// readPV reads the label, the header and the newest text of a physical volume (LVM2's lib/format_text/layout.h).
func readPV(r io.ReaderAt) (pv, bool) {
	le := binary.LittleEndian
	head := make([]byte, 2048)
	r.ReadAt(head, 0)
	for s := range 4 {
		b := head[s*512 : s*512+512]
		if string(b[:8]) != "LABELONE" || string(b[24:32]) != "LVM2 001" {
			continue
		}
		off := int(le.Uint32(b[20:]))
		if off < 32 || off > 512-40 {
			return pv{}, false
		}
		p := pv{uuid: string(b[off : off+32])}
		// Two lists of offset and size, each ended by zeros: of data, then of metadata.
		lists := 0
		for off += 40; off+16 <= 512 && lists < 2; off += 16 {
			o, n := le.Uint64(b[off:]), le.Uint64(b[off+8:])
			if o == 0 && n == 0 || o == 0 && lists == 1 {
				lists++
			} else if lists == 1 && p.text == "" {
				p.text = readLVMText(r, int64(o), int64(n))
			}
		}
		return p, true
	}
	return pv{}, false
}

func readLVMText(r io.ReaderAt, start, size int64) string {
	le := binary.LittleEndian
	b := make([]byte, 512)
	if start < 0 || size < 1024 {
		return ""
	}
	if _, err := r.ReadAt(b, start); err != nil || string(b[4:20]) != " LVM2 x[5A%r0N*>" {
		return ""
	}
	off, n := int64(le.Uint64(b[40:])), int64(le.Uint64(b[48:]))
	if off < 512 || off >= size || n <= 0 || n > min(maxLVMText, size-512) {
		return ""
	}
	// The area is a ring behind its header.
	text := make([]byte, n)
	first := min(n, size-off)
	if _, err := r.ReadAt(text[:first], start+off); err != nil {
		return ""
	}
	if first < n {
		if _, err := r.ReadAt(text[first:], start+512); err != nil {
			return ""
		}
	}
	return string(text)
}

// lv is a logical volume: its table, or why there is none.
type lv struct {
	group, name string
	size        uint64 // bytes
	table       []target
	note        string
}

// groupOf is the one section of a text that is a volume group.
func groupOf(text string) (string, *node) {
	n, err := parseLVM(text)
	if err != nil {
		return "", nil
	}
	for _, k := range n.keys {
		if g := n.sections[k]; g.sections["physical_volumes"] != nil {
			return k, g
		}
	}
	return "", nil
}

// lvsOf makes tables of the visible volumes of a group. devOf gives major:minor of a physical volume by its uuid without dashes.
func lvsOf(name string, g *node, devOf func(uuid string) (string, bool)) []lv {
	var out []lv
	extent := g.num("extent_size")
	all := g.sub("logical_volumes")
	for _, k := range all.keys {
		l := all.sections[k]
		if !has(l.list("status"), "VISIBLE") {
			continue
		}
		v := lv{group: name, name: k}
		v.table, v.note = tableOf(g, l, extent, devOf)
		for _, t := range v.table {
			v.size += t.length * 512
		}
		out = append(out, v)
	}
	return out
}

const maxSectors = 1 << 54

func tableOf(g, l *node, extent uint64, devOf func(string) (string, bool)) ([]target, string) {
	var out []target
	var at uint64
	n := l.num("segment_count")
	if n == 0 || n > 1<<16 || extent == 0 || extent > 1<<32 {
		return nil, "has metadata of LVM that make no sense"
	}
	for i := uint64(1); i <= n; i++ {
		s := l.sub(fmt.Sprintf("segment%d", i))
		if t := s.str("type"); t != "striped" && t != "linear" {
			return nil, fmt.Sprintf("is of LVM's type %q, which is not supported", t)
		}
		stripes := s.list("stripes")
		count := s.num("extent_count")
		if len(stripes) < 2 || len(stripes)%2 != 0 || count == 0 || count > maxSectors/extent || s.num("start_extent")*extent != at {
			return nil, "has metadata of LVM that make no sense"
		}
		params := ""
		for j := 0; j < len(stripes); j += 2 {
			where, _ := stripes[j].(string)
			first, ok := stripes[j+1].(int64)
			p := g.sub("physical_volumes").sub(where)
			dev, have := devOf(strings.ReplaceAll(p.str("id"), "-", ""))
			if !have {
				return nil, fmt.Sprintf("needs a disk of its volume group that is not in this restore point (%s)", where)
			}
			if !ok || first < 0 || uint64(first) > maxSectors/extent {
				return nil, "has metadata of LVM that make no sense"
			}
			params += fmt.Sprintf(" %s %d", dev, p.num("pe_start")+uint64(first)*extent)
		}
		t := target{start: at, length: count * extent, kind: "linear", params: params[1:]}
		if k := len(stripes) / 2; k > 1 {
			t.kind, t.params = "striped", fmt.Sprintf("%d %d%s", k, s.num("stripe_size"), params)
		}
		out = append(out, t)
		at += t.length
	}
	return out, ""
}

func has(list []any, want string) bool {
	for _, v := range list {
		if v == want {
			return true
		}
	}
	return false
}

// groups maps the logical volumes whose physical volumes are among the devices.
func (m *machine) groups(devs []device) []device {
	where := map[string]device{}
	newest := map[string]*node{}
	names := map[string]string{}
	var order []string
	for _, d := range devs {
		if d.f.fs != fsLVM {
			continue
		}
		f, err := os.Open("/dev/" + d.name)
		if err != nil {
			continue
		}
		p, ok := readPV(f)
		f.Close()
		if !ok {
			continue
		}
		if _, copied := where[p.uuid]; copied {
			continue // of two copies of a physical volume the first counts
		}
		where[p.uuid] = d
		name, g := groupOf(p.text)
		if g == nil {
			continue
		}
		id := g.str("id")
		if newest[id] == nil {
			order = append(order, id)
		}
		if newest[id] == nil || g.num("seqno") > newest[id].num("seqno") {
			newest[id], names[id] = g, name
		}
	}
	if len(order) == 0 {
		return nil
	}
	m.mods.load("dm_mod")
	var out []device
	for _, id := range order {
		lvs := lvsOf(names[id], newest[id], func(uuid string) (string, bool) {
			d, ok := where[uuid]
			return strings.TrimSpace(readText("/sys/class/block/" + d.name + "/dev")), ok
		})
		for _, v := range lvs {
			d := device{Volume: wire.Volume{ID: "lvm/" + v.group + "/" + v.name, Size: v.size, Disk: wire.NoDisk, Place: "LVM volume " + v.name + " of group " + v.group}}
			if v.note == "" {
				var err error
				if d.name, err = mapDevice(fmt.Sprintf("v%d", len(out)), v.table); err != nil {
					v.note = "cannot be mapped: " + err.Error()
				}
			}
			if v.note != "" {
				d.f = found{fs: fsLVM + "-volume", note: v.note}
			}
			out = append(out, d)
		}
	}
	return out
}
