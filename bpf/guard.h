/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* What a port may send: rules 5 to 7 of docs/formats/datapath.md, "From a port". */
#ifndef DROVER_GUARD_H
#define DROVER_GUARD_H

#include "inspect.h"
#include "late.h"
#include "meter.h"
#include "ring.h"

#define PORT_TRUSTED (PORT_DHCP_SERVER | PORT_ROUTER | PORT_VIRTUAL_ROUTER)
#define PORT_LOOKED_INTO (PORT_IP_GUARD | PORT_ND_GUARD | PORT_DHCP_SNOOP)

/* is_open: nothing that the port could write into IP matters. */
static __always_inline bool is_open(__u32 flags)
{
	return (flags & (PORT_TRUSTED | PORT_LOOKED_INTO)) == PORT_TRUSTED;
}

/* control_address says what kind of control frames a group address is for: DROP_BPDU, DROP_L2_CONTROL or DROP_NONE. */
static __always_inline __u32 control_address(const __u8 *mac)
{
	__u32 high = bpf_ntohl(*(__u32 *)mac);
	__u16 low = bpf_ntohs(*(__u16 *)(mac + 4));

	if (high == 0x0180c200) {
		if (low == 0 || low == 8)
			return DROP_BPDU;
		return low < 0x10 || (low >= 0x20 && low < 0x30) ? DROP_L2_CONTROL : DROP_NONE;
	}
	if (high >> 8 == 0x01000c)
		return high == 0x01000ccc && low == 0xcccd ? DROP_BPDU : DROP_L2_CONTROL;
	return high == 0x03000c00 && low < 0x100 ? DROP_L2_CONTROL : DROP_NONE;
}

/* control_content finds control frames by what they hold, to whichever address; DROP_MALFORMED is IP, ARP or a tag where guards would not see it. */
__noinline __u32 control_content(struct __sk_buff *skb, __u32 proto)
{
	struct { __u8 dsap, ssap, control, oui[3]; __be16 pid; } llc;
	__u32 oui;

	switch (proto) {
	case 0x8808: /* pause */
	case 0x8809: /* LACP, OAM */
	case 0x88cc: /* LLDP */
	case 0x88f5: /* MVRP */
	case 0x88f6: /* MMRP */
		return DROP_L2_CONTROL;
	}
	if (proto >= 0x600)
		return DROP_NONE;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &llc, 3))
		return DROP_NONE;
	/* Receivers look at the first byte, and at the others more or less. */
	if ((llc.dsap | 1) == 0x43)
		return DROP_BPDU;
	if ((llc.dsap | 1) != 0xab || bpf_skb_load_bytes(skb, ETH_HLEN, &llc, sizeof(llc)))
		return DROP_NONE;
	if ((llc.control & 3) != 3) /* numbered: SNAP would be a byte further */
		return DROP_MALFORMED;
	oui = llc.oui[0] << 16 | llc.oui[1] << 8 | llc.oui[2];
	if (oui == 0x00000c)
		return llc.pid == bpf_htons(0x010b) ? DROP_BPDU : DROP_L2_CONTROL;
	if (oui != 0 && oui != 0x0000f8)
		return DROP_NONE;
	switch (bpf_ntohs(llc.pid)) {
	case ETH_P_IP:
	case ETH_P_ARP:
	case ETH_P_IPV6:
	case ETH_P_8021Q:
	case ETH_P_8021AD:
	case 0x9100:
		return DROP_MALFORMED;
	}
	return DROP_NONE;
}

static __always_inline bool may_control(__u32 flags, __u32 kind)
{
	return kind == DROP_BPDU ? flags & PORT_BPDU : kind == DROP_L2_CONTROL ? flags & PORT_L2_CONTROL : true;
}

/* guard_foreign decides on a source MAC that is not the port's own. */
__noinline __u32 guard_foreign(struct __sk_buff *skb, struct packet *p, const struct port *port)
{
	struct mac_key key = {};
	struct fdb_key at = {};
	struct fdb_entry *entry;
	__u32 flags;

	if (!p || !port)
		return DROP_SOURCE_MAC;
	flags = port->flags;
	if (is_virtual_mac(p->src)) {
		if (!(flags & PORT_VIRTUAL_ROUTER))
			return DROP_VIRTUAL_ROUTER;
		at.net = p->net;
		copy_mac(at.mac, p->src);
		entry = bpf_map_lookup_elem(&fdb, &at);
		if (!entry || entry->place != PLACE_LOCAL || entry->target != p->ifindex)
			punt(skb, p, PUNT_VIRTUAL, 0);
		return DROP_NONE;
	}
	if (flags & PORT_FORGED)
		return DROP_NONE;
	if (flags & PORT_MORE_MACS) {
		key.ifindex = p->ifindex;
		__builtin_memcpy(key.mac, p->src, sizeof(key.mac));
		if (bpf_map_lookup_elem(&macs, &key))
			return DROP_NONE;
	}
	if (!(flags & PORT_MAC_CHANGES))
		return DROP_SOURCE_MAC;
	punt(skb, p, PUNT_NEW_MAC, 0);
	return DROP_NEW_MAC;
}

/* is_anothers says whether an IPv4 address is known to be neither the port's nor of the frame's source. */
static __always_inline bool is_anothers(const struct packet *p, __be32 addr)
{
	struct binding_key key = { .net = p->net };
	struct binding *b;

	map_ip4(&key.ip, addr);
	b = bpf_map_lookup_elem(&bindings, &key);
	return b && b->ifindex != p->ifindex && !same_mac(b->mac, p->src) && (!b->expires || b->expires > bpf_ktime_get_boot_ns());
}

/*
 * is_own_request says whether a DHCPv4 client asks for itself: for the MAC that it sends from (one that asks for others takes all addresses that a server has),
 * not as a relay (which names another network's addresses), nor with the address of another, which it would give back or take.
 */
static __always_inline bool is_own_request(struct __sk_buff *skb, const struct packet *p)
{
	struct { __u8 op, htype, hlen, rest[9]; __be32 ciaddr, yiaddr, siaddr, giaddr; __u8 chaddr[8]; } m;

	if (bpf_skb_load_bytes(skb, p->l4_offset + 8, &m, sizeof(m) - 2) || m.op != 1 || m.htype != 1 || m.hlen != 6 || m.giaddr || !same_mac(m.chaddr, p->src))
		return false;
	return !m.ciaddr || !is_anothers(p, m.ciaddr);
}

/* guard_udp knows the protocols that one talks to everybody with. */
static __always_inline __u32 guard_udp(struct __sk_buff *skb, const struct packet *p, const struct port *port)
{
	__u16 server = p->family == 4 ? 67 : 547, client = p->family == 4 ? 68 : 546;
	__u32 slot = port->slot;
	struct meter *m;

	if ((p->sport == server || p->dport == client) && !(port->flags & PORT_DHCP_SERVER))
		return DROP_DHCP_SERVER;
	if (p->dport == server) {
		if (p->family == 4 && (port->flags & (PORT_DHCP_SNOOP | PORT_DHCP_SERVER)) == PORT_DHCP_SNOOP && !is_own_request(skb, p))
			return DROP_DHCP_CLIENT;
		m = bpf_map_lookup_elem(&meters, &slot);
		if (m && !bucket_take(&m->dhcp, 1))
			return DROP_DHCP_RATE;
	}
	return DROP_NONE;
}

/* is_virtual_router tells VRRP and CARP, HSRP 1 and 2, HSRP for IPv6, GLBP. */
static __always_inline bool is_virtual_router(const struct packet *p)
{
	if (p->l4 != 112 && (p->l4 != IPPROTO_UDP || (p->dport != 1985 && p->dport != 2029 && p->dport != 3222)))
		return false;
	return is_group_ip(p);
}

/* is_rootless tells frames that a guest sends before it has an address. */
static __always_inline bool is_rootless(const struct packet *p)
{
	if (p->family == 4)
		return !*(const __u32 *)(p->saddr.b + 12) && ((p->l4 == IPPROTO_UDP && p->dport == 67) || p->l4 == IPPROTO_IGMP);
	if (!is_unspecified(&p->saddr))
		return false;
	return p->icmp == 133 || p->icmp == 135 || p->icmp == 143 || p->icmp == 131 || p->icmp == 132;
}

/* guard_ip is rule 7 for IPv4 and IPv6. */
static __always_inline __u32 guard_ip(struct __sk_buff *skb, struct packet *p, const struct port *port)
{
	__u32 reason, flags, net;
	struct network *network;

	if (!p || !port)
		return DROP_MALFORMED;
	reason = parse_here(skb, p);
	if (reason)
		return reason;
	if (p->checksum && !is_late_ip(p))
		return DROP_MALFORMED;
	flags = port->flags;
	if (p->l4 == IPPROTO_UDP) {
		reason = guard_udp(skb, p, port);
		if (reason)
			return reason;
	} else if (p->icmp >= 133 && p->icmp <= 137) {
		if ((p->icmp == 134 || p->icmp == 137) && !(flags & PORT_ROUTER))
			return DROP_RA;
		if (p->icmp != 137) {
			reason = inspect_nd(skb, p, port);
			if (reason)
				return reason;
		}
	}
	if (!(flags & PORT_VIRTUAL_ROUTER) && is_virtual_router(p))
		return DROP_VIRTUAL_ROUTER;
	if (flags & PORT_IP_GUARD) {
		if (p->family == 4 ? !is_bound_ip4(p, port, &p->saddr) : !is_bound_ip6(p, port, &p->saddr))
			if (!is_rootless(p))
				return DROP_SOURCE_IP;
	}
	if (p->l4 == IPPROTO_UDP) {
		if (flags & PORT_DHCP_SNOOP && p->dport == (p->family == 4 ? 67 : 547))
			punt(skb, p, PUNT_DHCP, 0);
	} else if (is_group_news(p)) {
		net = p->net;
		network = bpf_map_lookup_elem(&networks, &net);
		if (network && network->flags & NETWORK_SNOOPING)
			punt(skb, p, PUNT_GROUP, 0);
	}
	return DROP_NONE;
}

/*
 * guard returns DROP_NONE, or why the port may not send this frame. It never changes the frame, but may move its data. A policy of the sender's zone
 * comes behind it.
 */
static __always_inline __u32 guard(struct __sk_buff *skb, struct packet *p, const struct port *port)
{
	__u32 flags = port->flags, reason, content = DROP_NONE;
	bool group = is_group(p->dst);

	p->checksum = late_checksum(skb, p->length);
	if (p->checksum && !is_late(p))
		return DROP_MALFORMED;
	if (group) {
		reason = p->proto == ETH_P_BEACON && is_beacon(p->dst) ? DROP_L2_CONTROL : control_address(p->dst);
		if (!may_control(flags, reason))
			return reason;
		p->control = reason != DROP_NONE;
	}
	if (p->proto != ETH_P_IP && p->proto != ETH_P_IPV6 && p->proto != ETH_P_ARP) {
		content = control_content(skb, p->proto);
		if (!may_control(flags, content))
			return content;
		if (group && content != DROP_NONE && content != DROP_MALFORMED)
			p->control = 1;
	}
	if (is_virtual_mac(p->src) || !same_mac(p->src, port->mac)) {
		reason = guard_foreign(skb, p, port);
		if (reason)
			return reason;
	}
	if (p->proto == ETH_P_IP || p->proto == ETH_P_IPV6)
		return is_open(flags) && !group ? DROP_NONE : guard_ip(skb, p, port);
	if (p->proto == ETH_P_ARP)
		return inspect_arp(skb, p, port);
	if (content == DROP_MALFORMED && (!is_open(flags) || flags & PORT_ARP_GUARD))
		return content;
	return DROP_NONE;
}

#endif
