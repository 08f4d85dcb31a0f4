/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* ARP and neighbour discovery: who claims which address. */
#ifndef DROVER_INSPECT_H
#define DROVER_INSPECT_H

#include "bound.h"
#include "parse.h"

#define MAX_ND_OPTIONS 8

struct arp4 {
	__be16 htype, ptype;
	__u8   hlen, plen;
	__be16 op;
	__u8   sha[6], spa[4], tha[6], tpa[4];
} __attribute__((aligned(4)));

/* inspect_arp returns DROP_NONE, MALFORMED, VIRTUAL_ROUTER or ARP. */
__noinline __u32 inspect_arp(struct __sk_buff *skb, struct packet *p, const struct port *port)
{
	struct ip_addr ip;
	struct binding *b;
	struct arp4 arp;
	__be32 spa;

	if (!p || !port)
		return DROP_ARP;
	if (bpf_skb_load_bytes(skb, L3_OFFSET, &arp, sizeof(arp)))
		return port->flags & PORT_ARP_GUARD ? DROP_ARP : DROP_MALFORMED;
	if (is_virtual_mac(arp.sha) && !(port->flags & PORT_VIRTUAL_ROUTER))
		return DROP_VIRTUAL_ROUTER;
	if (!(port->flags & PORT_ARP_GUARD))
		return DROP_NONE;
	if (arp.htype != bpf_htons(1) || arp.ptype != bpf_htons(ETH_P_IP) || arp.hlen != 6 || arp.plen != 4 ||
	    (arp.op != bpf_htons(1) && arp.op != bpf_htons(2)))
		return DROP_ARP;
	if (!same_mac(arp.sha, p->src))
		return DROP_ARP;
	__builtin_memcpy(&spa, arp.spa, sizeof(spa));
	if (!spa && arp.op == bpf_htons(1))
		return DROP_NONE;
	if (is_inline_ip4(port, spa) && (same_mac(arp.sha, port->mac) || is_virtual_mac(arp.sha)))
		return DROP_NONE;
	map_ip4(&ip, spa);
	b = find_binding(p, port, &ip);
	return b && same_mac(b->mac, arp.sha) ? DROP_NONE : DROP_ARP;
}

/* inspect_options looks at the link-layer addresses that a message of neighbour discovery names, from offset to end. */
static __always_inline __u32 inspect_options(struct __sk_buff *skb, struct packet *p, const struct port *port, __u32 offset, __u32 end)
{
	__u32 odd = port->flags & PORT_ND_GUARD ? DROP_ND : DROP_NONE;
	struct { __u8 type, length, mac[6]; } __attribute__((aligned(4))) option;
	__u8 mac[6] __attribute__((aligned(4)));

	for (int i = 0; i < MAX_ND_OPTIONS; i++) {
		if (offset >= end)
			return DROP_NONE;
		if (offset + sizeof(option) > end || bpf_skb_load_bytes(skb, offset, &option, sizeof(option)))
			return odd;
		if (!option.length || offset + option.length * 8u > end)
			return odd;
		offset += option.length * 8u;
		if (option.type != 1 && option.type != 2)
			continue;
		if (option.length == 1 && is_virtual_mac(option.mac) && !(port->flags & PORT_VIRTUAL_ROUTER))
			return DROP_VIRTUAL_ROUTER;
		__builtin_memcpy(mac, option.mac, sizeof(mac));
		if (odd && (option.length != 1 || !same_mac(mac, p->src)))
			return odd;
	}
	return offset < end ? odd : DROP_NONE;
}

/* inspect_nd returns DROP_NONE, ND or VIRTUAL_ROUTER for ICMPv6 133 to 136. */
__noinline __u32 inspect_nd(struct __sk_buff *skb, struct packet *p, const struct port *port)
{
	__u32 end, body, flags;
	struct ip_addr target;
	__be16 payload;

	if (!p || !port)
		return DROP_ND;
	flags = port->flags;
	end = p->length;
	if (!skb->gso_size) {
		if (bpf_skb_load_bytes(skb, L3_OFFSET + 4, &payload, sizeof(payload)))
			return DROP_ND;
		/* 0 is a jumbogram, which parse_network let pass as long as the frame. */
		if (payload)
			end = L3_OFFSET + sizeof(struct ipv6hdr) + bpf_ntohs(payload);
	}
	body = p->icmp == 133 ? 8 : p->icmp == 134 ? 16 : 24;
	if (flags & PORT_ND_GUARD && p->icmp >= 135) {
		if (p->hop_limit != 255 || p->l4_offset + body > end || bpf_skb_load_bytes(skb, p->l4_offset + 8, &target, sizeof(target)))
			return DROP_ND;
		if (p->icmp == 136) {
			if (!is_bound_ip6(p, port, &target))
				return DROP_ND;
		} else if (is_unspecified(&p->saddr)) {
			/* Who looks for duplicates of another's address at the moment when the other does takes it from both (RFC 4862, 5.4.3). */
			if (is_link_local(&target) && !is_bound_ip6(p, port, &target))
				return DROP_ND;
		} else if (!is_bound_ip6(p, port, &p->saddr)) {
			return DROP_ND;
		}
	}
	if (!(flags & PORT_ND_GUARD) && flags & PORT_VIRTUAL_ROUTER)
		return DROP_NONE;
	return inspect_options(skb, p, port, p->l4_offset + body, end);
}

#endif
