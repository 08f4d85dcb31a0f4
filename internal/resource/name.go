package resource

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
)

// Kind names a kind of resource, as in keys of the store and in the CLI.
type Kind = string

// The kinds.
const (
	KindSite      Kind = "site"
	KindHost      Kind = "host"
	KindDatastore Kind = "datastore"
	KindNetwork   Kind = "network"
	KindImage     Kind = "image"
	KindVM        Kind = "vm"
	KindDisk      Kind = "disk"
	KindNIC       Kind = "nic"
	KindSnapshot  Kind = "snapshot"
	KindTask      Kind = "task"
	KindUser      Kind = "user"
	KindToken     Kind = "token"
	KindProfile   Kind = "profile"
	KindPort      Kind = "port"

	KindRepository Kind = "repository"
	KindPolicy     Kind = "policy"
	KindPoint      Kind = "point"
)

var (
	label    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	labelKey = regexp.MustCompile(`^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$`)
)

// maxAnnotations bounds all annotations of an object together, in bytes.
const maxAnnotations = 64 << 10

// ValidName reports whether s is a DNS label (RFC 1123): what a resource may be called.
func ValidName(s string) bool { return label.MatchString(s) }

// Part splits "VM/PART", the name of a snapshot, disk or NIC.
func Part(name string) (vm, part string, ok bool) {
	vm, part, ok = strings.Cut(name, "/")
	return vm, part, ok && ValidName(vm) && ValidName(part)
}

// NewUID is a random UUID, version 4 (RFC 9562).
func NewUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// NewMAC is a random address in 52:54:00, the block that KVM guests use.
func NewMAC() string {
	var b [3]byte
	rand.Read(b[:])
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2])
}

// NormalMAC is the address in lower case with colons. It must be a unicast address of 48 bits, not zero.
func NormalMAC(s string) (string, error) {
	hw, err := net.ParseMAC(s)
	switch {
	case err != nil || len(hw) != 6:
		return "", fmt.Errorf("%q is not a MAC address such as 52:54:00:12:34:56", s)
	case hw[0]&1 != 0:
		return "", fmt.Errorf("%q is a multicast address; the first byte must be even", s)
	case hw.String() == "00:00:00:00:00:00":
		return "", fmt.Errorf("%q is no address", s)
	}
	return hw.String(), nil
}

// virtualPrefixes begin the MACs of virtual routers: VRRP and CARP, HSRP, GLBP.
var virtualPrefixes = []string{"00:00:5e:00:01:", "00:00:5e:00:02:", "00:00:0c:07:ac:", "00:00:0c:9f:f", "00:05:73:a0:0", "00:07:b4:"}

// VirtualMAC reports whether a normal MAC is one of a virtual router, which moves from port to port.
func VirtualMAC(mac string) bool {
	return slices.ContainsFunc(virtualPrefixes, func(p string) bool { return strings.HasPrefix(mac, p) })
}

// begin checks what every kind has in common.
func begin(kind Kind, m *v1.Meta, parts bool) *Faults {
	f := &Faults{kind: kind, name: m.GetName()}
	ok := ValidName(m.GetName())
	if parts {
		_, _, ok = Part(m.GetName())
	}
	switch {
	case m.GetName() == "":
		f.Add("meta.name", "NAME_MISSING", "a name is needed")
	case !ok && parts:
		f.Add("meta.name", "NAME_INVALID", "must be VM/PART, each of 1 to 63 characters of a-z, 0-9 and '-', not beginning or ending with '-'")
	case !ok:
		f.Add("meta.name", "NAME_INVALID", "must have 1 to 63 characters of a-z, 0-9 and '-', and not begin or end with '-'")
	}
	checkLabels(f, "meta.labels", m.GetLabels())
	size := 0
	for k, v := range m.GetAnnotations() {
		size += len(k) + len(v)
		if !labelKey.MatchString(k) {
			f.Add("meta.annotations", "ANNOTATION_INVALID", "key %q must have 1 to 63 characters of a-z, 0-9, '.', '_', '/' and '-'", k)
		}
	}
	if size > maxAnnotations {
		f.Add("meta.annotations", "TOO_LARGE", "%d bytes in all; at most %d", size, maxAnnotations)
	}
	return f
}

func checkLabels(f *Faults, field string, m map[string]string) {
	if len(m) > 64 {
		f.Add(field, "TOO_MANY", "%d labels; at most 64", len(m))
	}
	for k, v := range m {
		if !labelKey.MatchString(k) {
			f.Add(field, "LABEL_INVALID", "key %q must have 1 to 63 characters of a-z, 0-9, '.', '_', '/' and '-'", k)
		}
		if len(v) > 255 || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			f.Add(field, "LABEL_INVALID", "value of %q must have at most 255 printable characters", k)
		}
	}
}

func checkText(f *Faults, field, s string, most int) {
	if len(s) > most {
		f.Add(field, "TOO_LARGE", "%d bytes; at most %d", len(s), most)
	}
	if strings.ContainsRune(s, 0) {
		f.Add(field, "TEXT_INVALID", "has a zero byte")
	}
}
