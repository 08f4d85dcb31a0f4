package qga

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

type obj = map[string]any

// Bounds on what a guest may claim.
const (
	maxInterfaces = 128
	maxAddresses  = 64 // on one interface
	maxCommands   = 512
)

// clean makes text of a guest fit for logs and terminals: valid UTF-8, only
// printable characters, at most max bytes.
func clean(s string, max int) string {
	if len(s) > 4*max {
		s = s[:4*max]
	}
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	for len(s) > max {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// Ping reports, by a nil error, that the agent answers.
func (c *Client) Ping(ctx context.Context) error {
	return c.Execute(ctx, "guest-ping", nil, nil)
}

// Info is what the agent says of itself.
type Info struct {
	Version  string
	Commands map[string]bool // true: enabled
}

// Info asks for the agent's version and commands.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var r struct {
		Version  string `json:"version"`
		Commands []struct {
			Name    string `json:"name"`
			Enabled bool   `json:"enabled"`
		} `json:"supported_commands"`
	}
	if err := c.Execute(ctx, "guest-info", nil, &r); err != nil {
		return Info{}, err
	}
	i := Info{Version: clean(r.Version, 64), Commands: map[string]bool{}}
	for _, cmd := range r.Commands[:min(len(r.Commands), maxCommands)] {
		i.Commands[clean(cmd.Name, 64)] = cmd.Enabled
	}
	return i, nil
}

// Interface is a network interface in the guest.
type Interface struct {
	Name  string
	MAC   string         // "52:54:00:…", or empty
	Addrs []netip.Prefix // without zones
}

type rawInterface struct {
	Name  string `json:"name"`
	MAC   string `json:"hardware-address"`
	Addrs []struct {
		Address string `json:"ip-address"`
		Prefix  int    `json:"prefix"`
	} `json:"ip-addresses"`
}

// NetworkInterfaces lists the guest's interfaces; what is no address is left
// out.
func (c *Client) NetworkInterfaces(ctx context.Context) ([]Interface, error) {
	var raw []rawInterface
	if err := c.Execute(ctx, "guest-network-get-interfaces", nil, &raw); err != nil {
		return nil, err
	}
	return interfaces(raw), nil
}

func interfaces(raw []rawInterface) []Interface {
	var out []Interface
	for _, r := range raw[:min(len(raw), maxInterfaces)] {
		i := Interface{Name: clean(r.Name, 64)}
		if mac, err := net.ParseMAC(r.MAC); err == nil && len(mac) == 6 {
			i.MAC = mac.String()
		}
		for _, a := range r.Addrs[:min(len(r.Addrs), maxAddresses)] {
			if ip, err := netip.ParseAddr(a.Address); err == nil {
				if p := netip.PrefixFrom(ip.WithZone(""), a.Prefix); p.IsValid() {
					i.Addrs = append(i.Addrs, p)
				}
			}
		}
		out = append(out, i)
	}
	return out
}

// OSInfo is the guest's operating system, from its os-release.
type OSInfo struct {
	ID            string `json:"id"` // "debian", "mswindows"
	Name          string `json:"name"`
	PrettyName    string `json:"pretty-name"`
	Version       string `json:"version"`
	VersionID     string `json:"version-id"`
	Variant       string `json:"variant"`
	Machine       string `json:"machine"`
	KernelRelease string `json:"kernel-release"`
	KernelVersion string `json:"kernel-version"`
}

// OSInfo asks for the operating system.
func (c *Client) OSInfo(ctx context.Context) (OSInfo, error) {
	var o OSInfo
	if err := c.Execute(ctx, "guest-get-osinfo", nil, &o); err != nil {
		return OSInfo{}, err
	}
	for _, s := range []*string{&o.ID, &o.Name, &o.PrettyName, &o.Version, &o.VersionID, &o.Variant, &o.Machine, &o.KernelRelease, &o.KernelVersion} {
		*s = clean(*s, 256)
	}
	return o, nil
}

// HostName asks for the guest's host name.
func (c *Client) HostName(ctx context.Context) (string, error) {
	var r struct {
		Name string `json:"host-name"`
	}
	err := c.Execute(ctx, "guest-get-host-name", nil, &r)
	return clean(r.Name, 253), err
}

// SetTime sets the guest's clock, or, with the zero time, lets it read its
// hardware clock, as is needed after it was paused.
func (c *Client) SetTime(ctx context.Context, t time.Time) error {
	if t.IsZero() {
		return c.Execute(ctx, "guest-set-time", nil, nil)
	}
	return c.Execute(ctx, "guest-set-time", obj{"time": t.UnixNano()}, nil)
}

// AddAuthorizedKeys adds SSH public keys, one a string, for a user of the guest.
func (c *Client) AddAuthorizedKeys(ctx context.Context, user string, keys []string) error {
	for _, k := range keys {
		if strings.ContainsAny(k, "\r\n\x00") || strings.TrimSpace(k) == "" {
			return fmt.Errorf("qga: SSH key %q is not one line", clean(k, 40))
		}
	}
	return c.Execute(ctx, "guest-ssh-add-authorized-keys", obj{"username": user, "keys": keys}, nil)
}
