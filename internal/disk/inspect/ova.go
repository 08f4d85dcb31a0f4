package inspect

import (
	"archive/tar"
	"encoding/xml"
	"errors"
	"io"
	"path"
	"strconv"
	"strings"
)

const (
	ovaMembers = 128
	ovfMax     = 1 << 20
)

// ova checks the archive and its descriptor (DMTF DSP0243) and returns where each disk lies. It reads headers only.
func ova(f file) (Info, error) {
	sec := io.NewSectionReader(f.r, 0, f.size)
	tr := tar.NewReader(sec)
	members := make(map[string]Member)
	var ovf []byte
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Info{}, refuse(OVA, "the archive is corrupt or truncated: %v", err)
		}
		if n >= ovaMembers {
			return Info{}, refuse(OVA, "it has more than %d members", ovaMembers)
		}
		name := strings.TrimPrefix(h.Name, "./")
		if !safeName(name) {
			return Info{}, refuse(OVA, "the member name %.100q isn't a plain file name", h.Name)
		}
		if h.Typeflag != tar.TypeReg || h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != "" {
			return Info{}, refuse(OVA, "the member %q isn't a regular file", name)
		}
		if _, dup := members[name]; dup {
			return Info{}, refuse(OVA, "the member %q is there twice", name)
		}
		at, err := sec.Seek(0, io.SeekCurrent)
		if err != nil {
			return Info{}, err
		}
		if !f.holds(uint64(at), uint64(h.Size)) {
			return Info{}, refuse(OVA, "the member %q lies beyond the end of the file: truncated", name)
		}
		members[name] = Member{Name: name, Offset: at, Size: h.Size}
		if strings.EqualFold(path.Ext(name), ".ovf") {
			if ovf != nil {
				return Info{}, refuse(OVA, "it has two descriptors")
			}
			if h.Size > ovfMax {
				return Info{}, refuse(OVA, "the descriptor has %d bytes; at most 1 MiB is believed", h.Size)
			}
			if ovf, err = io.ReadAll(tr); err != nil {
				return Info{}, refuse(OVA, "the descriptor is truncated: %v", err)
			}
		}
	}
	if ovf == nil {
		return Info{}, refuse(OVA, "it has no .ovf descriptor")
	}
	disks, err := ovfDisks(ovf, members)
	return Info{Disks: disks}, err
}

func safeName(s string) bool {
	if s == "" || len(s) > 255 || s[0] == '.' || strings.ContainsAny(s, "/\\\x00") {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) < 0
}

type envelope struct {
	Files []struct {
		ID          string `xml:"id,attr"`
		Href        string `xml:"href,attr"`
		Size        string `xml:"size,attr"`
		Compression string `xml:"compression,attr"`
		ChunkSize   string `xml:"chunkSize,attr"`
	} `xml:"References>File"`
	Disks []struct {
		FileRef  string `xml:"fileRef,attr"`
		Parent   string `xml:"parentRef,attr"`
		Capacity string `xml:"capacity,attr"`
		Units    string `xml:"capacityAllocationUnits,attr"`
	} `xml:"DiskSection>Disk"`
}

func ovfDisks(b []byte, members map[string]Member) ([]Member, error) {
	var e envelope
	if err := xml.Unmarshal(b, &e); err != nil {
		return nil, refuse(OVA, "the descriptor isn't valid XML: %v", err)
	}
	hrefs := make(map[string]Member)
	for _, f := range e.Files {
		m, ok := members[f.Href]
		if !ok {
			return nil, refuse(OVA, "the descriptor refers to %.100q, which isn't in the archive", f.Href)
		}
		if f.Compression != "" && f.Compression != "identity" || f.ChunkSize != "" {
			return nil, refuse(OVA, "the file %q is compressed or split; export it again without", m.Name)
		}
		if f.Size != "" {
			if n, err := strconv.ParseInt(f.Size, 10, 64); err != nil || n != m.Size {
				return nil, refuse(OVA, "the descriptor says that %q has %.30s bytes; it has %d", m.Name, f.Size, m.Size)
			}
		}
		hrefs[f.ID] = m
	}
	var disks []Member
	for _, d := range e.Disks {
		if d.Parent != "" {
			return nil, refuse(OVA, "a disk is a delta of another; export whole disks")
		}
		if d.FileRef == "" {
			continue // an empty disk: nothing to import
		}
		m, ok := hrefs[d.FileRef]
		if !ok {
			return nil, refuse(OVA, "a disk refers to the file %.100q, which the descriptor doesn't list", d.FileRef)
		}
		n, err := ovfCapacity(d.Capacity, d.Units)
		if err != nil {
			return nil, err
		}
		m.Capacity = n
		disks = append(disks, m)
	}
	if len(disks) == 0 {
		return nil, refuse(OVA, "the descriptor has no disk")
	}
	return disks, nil
}

// ovfCapacity reads "10" with units "byte * 2^30".
func ovfCapacity(s, units string) (int64, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 63)
	if err != nil {
		return 0, refuse(OVA, "the disk capacity %.30q isn't a number", s)
	}
	units = strings.ReplaceAll(units, " ", "")
	var shift uint64
	if units != "" && units != "byte" {
		exp, ok := strings.CutPrefix(units, "byte*2^")
		if shift, err = strconv.ParseUint(exp, 10, 8); !ok || err != nil || shift > 50 {
			return 0, refuse(OVA, "the capacity units %.40q aren't known", units)
		}
	}
	if n == 0 || n > uint64(MaxVirtual)>>shift {
		return 0, refuse(OVA, "the disk capacity %d × 2^%d isn't believed", n, shift)
	}
	return int64(n << shift), nil
}
