package model

import (
	"fmt"
	"strings"

	"drover/internal/vswitch/table"
)

var (
	unspecified4 = table.IP{10: 0xff, 11: 0xff}
	unspecified6 table.IP
)

func ip4(b []byte) table.IP {
	return table.IP{10: 0xff, 11: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]}
}

// isOwnLinkLocal says whether a is fe80::/64 with the EUI-64 of the port's MAC.
func (w *walk) isOwnLinkLocal(a table.IP) bool {
	m := w.port.MAC
	return a == table.IP{0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]}
}

func isMapped(a table.IP) bool {
	return [12]byte(a[:12]) == [12]byte{10: 0xff, 11: 0xff}
}

// inline says whether an address is in the port's row.
func (w *walk) inline(a table.IP) bool {
	if isMapped(a) {
		for i := range min(int(w.port.IP4Count), table.InlineIPs) {
			if w.port.IP4[i] == [4]byte(a[12:]) {
				return true
			}
		}
		return false
	}
	for i := range min(int(w.port.IP6Count), table.InlineIPs) {
		if w.port.IP6[i] == a {
			return true
		}
	}
	return false
}

// more is a row of bindings that makes an address the port's.
func (w *walk) more(a table.IP) (table.Binding, bool) {
	if !w.has(table.PortMoreIPs) {
		return table.Binding{}, false
	}
	b, ok := w.binding(a)
	return b, ok && b.Ifindex == w.ifindex
}

// bound says whether an address is the port's. v6 is the family of the packet: a mapped address in IPv6 is nobody's.
func (w *walk) bound(a table.IP, v6 bool) bool {
	if v6 && isMapped(a) {
		return false
	}
	if w.inline(a) || v6 && w.isOwnLinkLocal(a) {
		return true
	}
	_, ok := w.more(a)
	return ok
}

// boundWith says whether an IPv4 address is the port's together with a MAC.
func (w *walk) boundWith(a table.IP, m table.MAC) bool {
	if w.inline(a) && (m == w.port.MAC || w.has(table.PortVirtualRouter) && virtualOf(m) != "") {
		return true
	}
	b, ok := w.more(a)
	return ok && b.MAC == m
}

var sources = map[table.BindingSource]string{table.BindingAssigned: "assigned", table.BindingDHCP: "by DHCP",
	table.BindingProvisional: "by a DHCP lease just seen", table.BindingRemote: "registered", table.BindingVirtual: "virtual"}

// whyUnbound says whose an address is, and which are the port's.
func (w *walk) whyUnbound(a table.IP, m *table.MAC) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is not bound to this port", a.Addr())
	if m != nil {
		fmt.Fprintf(&b, " with %s", text(*m))
	}
	if o, ok := w.binding(a); ok {
		switch {
		case o.Ifindex == 0:
			fmt.Fprintf(&b, "; it belongs to %s on another host", text(o.MAC))
		case o.Ifindex != w.ifindex:
			fmt.Fprintf(&b, "; it belongs to %s (%s)", w.m.names.Port(o.Ifindex), text(o.MAC))
		case m != nil && o.MAC != *m:
			fmt.Fprintf(&b, "; it is bound with %s", text(o.MAC))
		}
	}
	var own []string
	for i := range min(int(w.port.IP4Count), table.InlineIPs) {
		own = append(own, w.inlineWords(ip4(w.port.IP4[i][:])))
	}
	for i := range min(int(w.port.IP6Count), table.InlineIPs) {
		own = append(own, w.inlineWords(w.port.IP6[i]))
	}
	if w.has(table.PortMoreIPs) {
		own = append(own, w.moreWords()...)
	}
	if len(own) == 0 {
		return b.String() + "; none is"
	}
	fmt.Fprintf(&b, "; bound are %s", strings.Join(own, ", "))
	return b.String()
}

// inlineWords names an address of the port's row, with where it comes from if bindings know it too.
func (w *walk) inlineWords(a table.IP) string {
	source := table.BindingAssigned
	if b, ok := w.binding(a); ok && b.Ifindex == w.ifindex {
		source = b.Source
	}
	return fmt.Sprintf("%s (%s)", a.Addr(), sources[source])
}

// maxShown is how many addresses a text lists.
const maxShown = 8

// moreWords are the port's addresses that are in bindings alone.
func (w *walk) moreWords() []string {
	var out []string
	for _, k := range sortedBindings(w.m.t.Bindings, w.net, w.ifindex) {
		b, ok := w.binding(k.IP)
		if !ok || w.inline(k.IP) {
			continue
		}
		if len(out) == maxShown {
			return append(out, "and more")
		}
		out = append(out, fmt.Sprintf("%s (%s)", k.IP.Addr(), sources[b.Source]))
	}
	return out
}
