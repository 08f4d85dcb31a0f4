package lab

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
)

// DefaultRoot is where labs keep their state directories.
const DefaultRoot = "/run/drover-lab"

// Config says what a lab is to be. The zero value, given a name, is two sites with
// two hosts each, and a WAN without limits.
type Config struct {
	Name  string // a letter, then up to 11 letters and digits, lower case
	Root  string // parent of the state directory; empty: DefaultRoot
	Sites []Site
	MTU   int // of uplinks, switches and guests' networks; 0: 1500
	WAN   WAN // of each link at the start
	// WANMTU is the MTU between the routers; 0: 1500.
	WANMTU int
	// Owner is the process that the lab goes down with; 0: it stays until Down.
	Owner int
	// Daemon is the command that calls Daemon with the name and root it is
	// given as two more arguments. Empty: this executable with "lab daemon".
	Daemon []string
}

// Site is a data center.
type Site struct {
	Name  string
	Hosts []Host
}

// Host is a hypervisor machine.
type Host struct {
	Name    string
	Uplinks int // besides mgmt0; 0: 2
}

// The limits come from the address plan and from link names.
const (
	maxSites   = 8
	maxHosts   = 64
	maxUplinks = 8
	minMTU     = 1280 // RFC 8200, section 5
	maxMTU     = 9216
)

var (
	labName  = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`)
	nodeName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$`)
)

// CheckName says whether name can be a lab's.
func CheckName(name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab name %q: want a letter and up to 11 letters or digits, lower case", name)
	}
	return nil
}

// withDefaults fills in what was left empty. It copies what it changes.
func (c Config) withDefaults() Config {
	if c.Root == "" {
		c.Root = DefaultRoot
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.WANMTU == 0 {
		c.WANMTU = 1500
	}
	if len(c.Sites) == 0 {
		c.Sites = []Site{
			{Name: "east", Hosts: []Host{{Name: "east-1"}, {Name: "east-2"}}},
			{Name: "west", Hosts: []Host{{Name: "west-1"}, {Name: "west-2"}}},
		}
	}
	c.Sites = slices.Clone(c.Sites)
	for i := range c.Sites {
		hosts := slices.Clone(c.Sites[i].Hosts)
		for j := range hosts {
			if hosts[j].Uplinks == 0 {
				hosts[j].Uplinks = 2
			}
		}
		c.Sites[i].Hosts = hosts
	}
	return c
}

// Validate checks a Config, of which empty fields mean their defaults.
func (c Config) Validate() error {
	c = c.withDefaults()
	errs := []error{CheckName(c.Name), c.WAN.Validate()}
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Sites) > maxSites {
		add("%d sites: at most %d", len(c.Sites), maxSites)
	}
	for what, mtu := range map[string]int{"MTU": c.MTU, "WAN MTU": c.WANMTU} {
		if mtu < minMTU || mtu > maxMTU {
			add("%s %d: want %d to %d", what, mtu, minMTU, maxMTU)
		}
	}
	if c.Owner < 0 {
		add("owner process %d: want a process id", c.Owner)
	}
	taken := map[string]bool{nodeCore: true, nodeManager: true}
	take := func(name string) {
		if !nodeName.MatchString(name) {
			add("name %q: want letters, digits and dashes, at most 32, beginning with a letter", name)
		}
		if taken[name] {
			add("name %q is used twice", name)
		}
		taken[name] = true
	}
	for _, s := range c.Sites {
		take(s.Name)
		take(switchNode(s.Name))
		take(routerNode(s.Name))
		if len(s.Hosts) > maxHosts {
			add("site %s: %d hosts: at most %d", s.Name, len(s.Hosts), maxHosts)
		}
	}
	for _, s := range c.Sites {
		for _, h := range s.Hosts {
			take(h.Name)
			if h.Uplinks < 1 || h.Uplinks > maxUplinks {
				add("host %s: %d uplinks: want 1 to %d", h.Name, h.Uplinks, maxUplinks)
			}
		}
	}
	return errors.Join(errs...)
}

// forwardDelay is the least that the kernel's spanning tree takes: a port that
// comes up later forwards after twice this.
const forwardDelay = 2 * time.Second
