package manager

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"
)

// claim is a port that says it has an address.
type claim struct {
	port string
	// assigned: the NIC's spec has it. Such a one goes before those that a host saw leased: no DHCP server, and no host, takes from a VM what a person gave it.
	assigned bool
}

// claim notes which addresses a port says it has on its network, and returns the other ports that got one by it, or lost one. Of several the first has it,
// but assigned ones go before the rest. Addresses of virtual routers are nobody's alone. b.mu is held.
func (b *board) claim(name string, p *boardPort, vni int32, bound []*v1.Binding) (others []string) {
	is := map[string]bool{}
	for _, x := range bound {
		if vni != 0 && x.Source != bindingVirtual {
			is[addressKey(vni, x.Address)] = x.Source == bindingAssigned
		}
	}
	if maps.Equal(p.claims, is) {
		return nil
	}
	change := func(key string, do func([]claim) []claim) {
		was, list := b.addressee(key), do(b.addresses[key])
		if len(list) == 0 {
			delete(b.addresses, key)
		} else {
			b.addresses[key] = list
		}
		if now := b.addressee(key); now != was {
			others = append(others, was, now)
		}
	}
	for key, assigned := range p.claims {
		if again, stays := is[key]; !stays || again != assigned {
			change(key, func(list []claim) []claim {
				return slices.DeleteFunc(list, func(c claim) bool { return c.port == name })
			})
		}
	}
	for _, key := range sorted(is) {
		if before, had := p.claims[key]; had && before == is[key] {
			continue
		}
		change(key, func(list []claim) []claim {
			at := len(list)
			if is[key] {
				if at = slices.IndexFunc(list, func(c claim) bool { return !c.assigned }); at < 0 {
					at = len(list)
				}
			}
			return slices.Insert(list, at, claim{name, is[key]})
		})
	}
	p.claims = is
	return slices.DeleteFunc(others, func(s string) bool { return s == "" || s == name })
}

// addressee is the port that has an address; "" if none has. b.mu is held.
func (b *board) addressee(key string) string {
	if list := b.addresses[key]; len(list) > 0 {
		return list[0].port
	}
	return ""
}

// addressFaults says which of a port's addresses others have. b.mu is held.
func (b *board) addressFaults(name string, p *boardPort) (list []*v1.Condition) {
	for _, key := range sorted(p.claims) {
		if has := b.addressee(key); has != name {
			_, address, _ := strings.Cut(key, "/")
			list = append(list, &v1.Condition{Type: "ADDRESS_CONFLICT", Status: true, Reason: "ADDRESS_CONFLICT", Message: address + " is that of port " + has + ", and so not this one's"})
		}
	}
	return list
}

func addressKey(vni int32, address string) string { return fmt.Sprintf("%d/%s", vni, address) }
