package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/unit"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// A disk or NIC on the command line is a list of KEY=VALUE: "size=10G,image=debian". A key of which there can be several is
// repeated.

const (
	diskKeys = "name, size, image, datastore, format, bus, boot, ro"
	nicKeys  = "name, network, profile, adapter, mac, link, address, gateway, nameserver"
)

// fieldsOf splits a specification. bare is the key of a first element without "=".
func fieldsOf(flag, s, bare string, set func(key, value string) error) error {
	seen := map[string]bool{}
	for i, part := range strings.Split(s, ",") {
		key, value, ok := strings.Cut(part, "=")
		switch {
		case ok:
		case i == 0 && bare != "":
			key, value = bare, part
		case part == "ro":
			key, value = part, "yes"
		default:
			return usage("--%s %q: %q is not KEY=VALUE", flag, s, part)
		}
		key = strings.TrimSpace(key)
		if value = strings.TrimSpace(value); value == "" {
			return usage("--%s %q: %s is empty", flag, s, key)
		}
		if many := key == "address" || key == "gateway" || key == "nameserver"; seen[key] && !many {
			return usage("--%s %q: %s is given twice", flag, s, key)
		}
		seen[key] = true
		if err := set(key, value); err != nil {
			return usage("--%s %q: %v", flag, s, err)
		}
	}
	return nil
}

func enumOf[E ~int32](zero protoreflect.Enum, s string) (E, error) {
	n, err := unit.ParseEnum(zero.Descriptor(), s)
	return E(n), err
}

// parseDisk reads "10G" or "size=10G,image=debian,bus=virtio-scsi,…".
func parseDisk(flag, s string) (*v1.DiskSpec, error) {
	d := &v1.DiskSpec{}
	err := fieldsOf(flag, s, "size", func(key, value string) (err error) {
		switch key {
		case "name":
			d.Name = value
		case "size":
			d.SizeBytes, err = unit.ParseSize(value)
		case "image":
			d.Image = value
		case "datastore":
			d.Datastore = value
		case "format":
			d.Format, err = enumOf[v1.DiskFormat](d.Format, value)
		case "bus":
			d.Bus, err = enumOf[v1.DiskBus](d.Bus, value)
		case "boot":
			var n int64
			n, err = strconv.ParseInt(value, 10, 32)
			d.BootOrder = int32(n)
		case "ro":
			d.ReadOnly, err = parseYes(value)
		default:
			err = fmt.Errorf("there is no key %q; there are %s", key, diskKeys)
		}
		return err
	})
	return d, err
}

// parseNIC reads "lan" or "network=lan,adapter=e1000,mac=…".
func parseNIC(flag, s string) (*v1.NICSpec, error) {
	n := &v1.NICSpec{}
	err := fieldsOf(flag, s, "network", func(key, value string) (err error) {
		switch key {
		case "name":
			n.Name = value
		case "network":
			n.Network = value
		case "profile":
			n.Profile = value
		case "adapter":
			n.Adapter, err = enumOf[v1.NICAdapter](n.Adapter, value)
		case "mac":
			n.Mac = value
		case "link":
			n.LinkDown, err = parseLink(value)
		case "address":
			n.Addresses = append(n.Addresses, value)
		case "gateway":
			n.Gateways = append(n.Gateways, value)
		case "nameserver":
			n.Nameservers = append(n.Nameservers, value)
		default:
			err = fmt.Errorf("there is no key %q; there are %s", key, nicKeys)
		}
		return err
	})
	if err == nil && n.Network == "" {
		err = usage("--%s %q: say which network", flag, s)
	}
	return n, err
}

func parseYes(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "yes", "true", "on", "1":
		return true, nil
	case "no", "false", "off", "0":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither yes nor no", s)
}

// parseLink reads whether the cable is in or out, as link_down.
func parseLink(s string) (down bool, err error) {
	switch strings.ToLower(s) {
	case "up", "in":
		return false, nil
	case "down", "out":
		return true, nil
	}
	return false, fmt.Errorf("%q is neither up nor down", s)
}

// freeName is a name for a disk or NIC that was given none: first for the first of all, else prefix and the lowest free number.
func freeName(taken []string, prefix, first string) string {
	if first != "" && len(taken) == 0 {
		return first
	}
	for i := 0; ; i++ {
		if n := prefix + strconv.Itoa(i); !slices.Contains(taken, n) {
			return n
		}
	}
}

// bytesFlag is a size on the command line.
type bytesFlag int64

func (b *bytesFlag) String() string {
	if b == nil || *b == 0 {
		return ""
	}
	return strings.ReplaceAll(unit.Size(int64(*b)), " ", "")
}
func (b *bytesFlag) Type() string { return "SIZE" }
func (b *bytesFlag) Set(s string) error {
	n, err := unit.ParseSize(s)
	*b = bytesFlag(n)
	return err
}
