package seed

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"

	"golang.org/x/crypto/ssh"
	"sigs.k8s.io/yaml"
)

// ErrInvalid is what every refusal of a Seed is.
var ErrInvalid = errors.New("invalid cloud-init data")

// MaxUserData is how many bytes of user data are accepted.
const MaxUserData = 1 << 20

// Seed is what a guest is told on its first boot. A new InstanceID makes cloud-init run again.
type Seed struct {
	InstanceID string
	Hostname   string
	SSHKeys    []string // of the distribution's default user
	Users      []User   // merged into user data, which must then be cloud-config or empty
	UserData   []byte
	NICs       []NIC // none: the guest tries DHCP by itself
}

// User is an account to make.
type User struct {
	Name         string
	Groups       []string
	Sudo         bool   // without a password
	PasswordHash string // crypt(3); "" locks the password
	SSHKeys      []string
}

// NIC is the configuration of the interface with the MAC address.
type NIC struct {
	MAC       string
	DHCP4     bool
	DHCP6     bool
	Addresses []netip.Prefix
	Gateways  []netip.Addr // at most one of each family
	DNS       []netip.Addr
	Search    []string
	MTU       int // 0: the guest's default
}

var (
	hostPattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)
	userPattern = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	instPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}$`)
	hashPattern = regexp.MustCompile(`^[$./a-zA-Z0-9=,_-]{1,512}$`)
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// ISO makes the image.
func (s Seed) ISO() ([]byte, error) {
	files, err := s.Files()
	if err != nil {
		return nil, err
	}
	return Build("cidata", files)
}

// Files makes what is in the image.
func (s Seed) Files() ([]File, error) {
	if !instPattern.MatchString(s.InstanceID) {
		return nil, invalid("the instance ID %.80q: letters, digits, dots and dashes, at most 128", s.InstanceID)
	}
	if len(s.Hostname) > 253 || !hostPattern.MatchString(s.Hostname) {
		return nil, invalid("the host name %.80q isn't one (RFC 1123)", s.Hostname)
	}
	keys, err := checkKeys(s.SSHKeys)
	if err != nil {
		return nil, err
	}
	meta := map[string]any{"instance-id": s.InstanceID, "local-hostname": s.Hostname}
	if len(keys) > 0 {
		meta["public-keys"] = keys
	}
	m, err := yaml.Marshal(meta)
	if err != nil {
		return nil, err
	}
	user, err := s.userData()
	if err != nil {
		return nil, err
	}
	files := []File{{"meta-data", m}, {"user-data", user}}
	if len(s.NICs) > 0 {
		n, err := network(s.NICs)
		if err != nil {
			return nil, err
		}
		files = append(files, File{"network-config", n})
	}
	return files, nil
}

func checkKeys(keys []string) ([]string, error) {
	var out []string
	for i, k := range keys {
		k = strings.TrimSpace(k)
		if _, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(k)); err != nil || len(rest) > 0 || strings.ContainsAny(k, "\r\n") {
			return nil, invalid("SSH key %d (%.30q…) isn't one line as in authorized_keys", i+1, k)
		}
		out = append(out, k)
	}
	return out, nil
}

const cloudConfig = "#cloud-config"

// userData checks the user's part and merges ours into it if there is any.
func (s Seed) userData() ([]byte, error) {
	in := s.UserData
	if len(in) > MaxUserData {
		return nil, invalid("user data has %d bytes; at most %d", len(in), MaxUserData)
	}
	doc := map[string]any{}
	if len(bytes.TrimSpace(in)) == 0 {
		in = []byte(cloudConfig + "\n")
	}
	first, _, _ := strings.Cut(string(in), "\n")
	config := strings.TrimSpace(first) == cloudConfig
	switch {
	case config:
		if err := yaml.UnmarshalStrict(in, &doc); err != nil {
			return nil, invalid("user data isn't valid YAML: %v", strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "))
		}
	case !knownStart(first):
		return nil, invalid("user data begins with %.40q; the first line must be #cloud-config, a #! line, or another start that cloud-init knows", first)
	}
	if len(s.Users) == 0 {
		return in, nil
	}
	if !config {
		return nil, invalid("users can only be merged into user data that is #cloud-config; write them into yours")
	}
	users, err := s.users(doc["users"])
	if err != nil {
		return nil, err
	}
	doc["users"] = users
	out, err := yaml.Marshal(doc)
	if err != nil {
		return nil, err
	}
	return append([]byte(cloudConfig+"\n"), out...), nil
}

// knownStart: https://cloudinit.readthedocs.io, "User data formats".
func knownStart(line string) bool {
	for _, p := range []string{"#!", "#include", "#cloud-boothook", "#part-handler", "#cloud-config-archive", "## template: jinja", "Content-Type:", "MIME-Version:"} {
		if strings.HasPrefix(line, p) {
			return true
		}
	}
	return false
}

// users appends ours to those of the user data; without any there, the default user stays.
func (s Seed) users(there any) ([]any, error) {
	list := []any{"default"}
	if there != nil {
		l, ok := there.([]any)
		if !ok {
			return nil, invalid("users in the user data isn't a list")
		}
		list = l
	}
	seen := make(map[string]bool)
	for _, e := range list {
		if u, ok := e.(map[string]any); ok {
			if name, ok := u["name"].(string); ok {
				seen[name] = true
			}
		}
	}
	for _, u := range s.Users {
		if !userPattern.MatchString(u.Name) {
			return nil, invalid("the user name %.40q: small letters, digits, _ and -, at most 32", u.Name)
		}
		if seen[u.Name] {
			return nil, invalid("the user %s is there twice", u.Name)
		}
		seen[u.Name] = true
		keys, err := checkKeys(u.SSHKeys)
		if err != nil {
			return nil, fmt.Errorf("user %s: %w", u.Name, err)
		}
		e := map[string]any{"name": u.Name, "shell": "/bin/bash", "lock_passwd": u.PasswordHash == ""}
		if u.PasswordHash != "" {
			if !hashPattern.MatchString(u.PasswordHash) {
				return nil, invalid("the password hash of %s isn't one of crypt(3)", u.Name)
			}
			e["passwd"] = u.PasswordHash
		}
		if u.Sudo {
			e["sudo"] = "ALL=(ALL) NOPASSWD:ALL"
		}
		for _, g := range u.Groups {
			if !userPattern.MatchString(g) {
				return nil, invalid("the group name %.40q of user %s", g, u.Name)
			}
		}
		if len(u.Groups) > 0 {
			e["groups"] = u.Groups
		}
		if len(keys) > 0 {
			e["ssh_authorized_keys"] = keys
		}
		list = append(list, e)
	}
	return list, nil
}

// network makes a version 2 (netplan) configuration; interfaces are found by MAC address.
func network(nics []NIC) ([]byte, error) {
	eth := make(map[string]any)
	seen := make(map[string]bool)
	for i, n := range nics {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 {
			return nil, invalid("NIC %d: %.40q isn't a MAC address", i+1, n.MAC)
		}
		if seen[mac.String()] {
			return nil, invalid("NIC %d: the MAC address %s is there twice", i+1, mac)
		}
		seen[mac.String()] = true
		e, err := nicConfig(n)
		if err != nil {
			return nil, fmt.Errorf("NIC %d: %w", i+1, err)
		}
		e["match"] = map[string]any{"macaddress": mac.String()}
		eth[fmt.Sprintf("nic%d", i)] = e
	}
	return yaml.Marshal(map[string]any{"version": 2, "ethernets": eth})
}

func nicConfig(n NIC) (map[string]any, error) {
	e := map[string]any{"dhcp4": n.DHCP4, "dhcp6": n.DHCP6}
	var addrs, dns []string
	for _, a := range n.Addresses {
		if !a.IsValid() || a.Addr().IsMulticast() || a.Addr().IsUnspecified() {
			return nil, invalid("the address %v can't be an interface's", a)
		}
		addrs = append(addrs, a.String())
	}
	var routes []any
	family := make(map[bool]bool)
	for _, g := range n.Gateways {
		reach := g.IsLinkLocalUnicast()
		for _, a := range n.Addresses {
			reach = reach || a.Masked().Contains(g)
		}
		if !g.IsValid() || !reach {
			return nil, invalid("the gateway %v is in none of the interface's networks", g)
		}
		if family[g.Is4()] {
			return nil, invalid("a second gateway (%v) of the same family", g)
		}
		family[g.Is4()] = true
		to := "::/0"
		if g.Is4() {
			to = "0.0.0.0/0"
		}
		routes = append(routes, map[string]any{"to": to, "via": g.String()})
	}
	for _, d := range n.DNS {
		if !d.IsValid() {
			return nil, invalid("a DNS server's address is empty")
		}
		dns = append(dns, d.String())
	}
	for _, d := range n.Search {
		if len(d) > 253 || !hostPattern.MatchString(d) {
			return nil, invalid("the search domain %.80q isn't a domain name", d)
		}
	}
	if n.MTU != 0 && (n.MTU < 576 || n.MTU > 65535) {
		return nil, invalid("the MTU %d: 576 to 65535", n.MTU)
	}
	if len(addrs) > 0 {
		e["addresses"] = addrs
	}
	if len(routes) > 0 {
		e["routes"] = routes
	}
	if len(dns) > 0 || len(n.Search) > 0 {
		ns := map[string]any{}
		if len(dns) > 0 {
			ns["addresses"] = dns
		}
		if len(n.Search) > 0 {
			ns["search"] = n.Search
		}
		e["nameservers"] = ns
	}
	if n.MTU != 0 {
		e["mtu"] = n.MTU
	}
	return e, nil
}
