/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The network header and what is behind it, read once and only when somebody asks. */
#ifndef DROVER_PARSE_H
#define DROVER_PARSE_H

#include "packet.h"
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#define L3_OFFSET ETH_HLEN     /* tags are off the frame, or were never in it */
#define MAX_EXTENSIONS 8

static __always_inline void map_ip4(struct ip_addr *to, __be32 addr)
{
	__u32 *word = (__u32 *)to->b;

	word[0] = 0;
	word[1] = 0;
	word[2] = bpf_htonl(0xffff);
	word[3] = addr;
}

/* upper_bytes is how much of an upper-layer header a first fragment must hold, so that nobody is led past it (RFC 7112). */
static __always_inline __u32 upper_bytes(__u8 family, __u8 l4)
{
	if (family == 4)
		return l4 == IPPROTO_TCP || l4 == IPPROTO_UDP ? 4 : 0;
	return l4 == IPPROTO_TCP ? 20 : l4 == IPPROTO_UDP || l4 == IPPROTO_ICMPV6 ? 8 : 0;
}

/* parse_upper reads ports or the ICMPv6 type. end is where the IP packet ends in the frame; near is where they are, if they are at hand. */
static __always_inline __u32 parse_upper(struct __sk_buff *skb, struct packet *p, __u32 end, const __be16 *near)
{
	__be16 ports[2];

	if (p->fragment == 2)
		return DROP_NONE;
	if (p->fragment && p->l4_offset + upper_bytes(p->family, p->l4) > end)
		return DROP_FRAGMENT;
	if (p->l4 != IPPROTO_TCP && p->l4 != IPPROTO_UDP && p->l4 != IPPROTO_ICMPV6)
		return DROP_NONE;
	if (p->l4_offset + 4u > end)
		return DROP_NONE;
	if (near) {
		ports[0] = near[0];
		ports[1] = near[1];
	} else if (bpf_skb_load_bytes(skb, p->l4_offset, ports, sizeof(ports))) {
		return DROP_NONE;
	}
	if (p->l4 == IPPROTO_ICMPV6) {
		if (p->family != 6)
			return DROP_NONE;
		p->icmp = bpf_ntohs(ports[0]) >> 8;
		/* RFC 6980: neighbour discovery and router messages are never fragmented. */
		return p->fragment && p->icmp >= 133 && p->icmp <= 137 ? DROP_FRAGMENT : DROP_NONE;
	}
	p->sport = bpf_ntohs(ports[0]);
	p->dport = bpf_ntohs(ports[1]);
	return DROP_NONE;
}

static __always_inline __u32 parse_ip4(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct iphdr *ip;
	__u32 header, total, end = p->length;
	__u16 fragment;

	if (data + L3_OFFSET + sizeof(*ip) > data_end) {
		if (p->length < L3_OFFSET + sizeof(*ip) || bpf_skb_pull_data(skb, L3_OFFSET + sizeof(*ip)))
			return DROP_MALFORMED;
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
		if (data + L3_OFFSET + sizeof(*ip) > data_end)
			return DROP_MALFORMED;
	}
	ip = data + L3_OFFSET;
	header = ip->ihl * 4;
	if (ip->version != 4 || header < sizeof(*ip) || L3_OFFSET + header > p->length)
		return DROP_MALFORMED;
	if (!skb->gso_size) {
		total = bpf_ntohs(ip->tot_len);
		if (total < header || L3_OFFSET + total > p->length)
			return DROP_MALFORMED;
		end = L3_OFFSET + total;
	}
	fragment = bpf_ntohs(ip->frag_off);
	p->fragment = fragment & 0x1fff ? 2 : fragment & 0x2000 ? 1 : 0;
	p->family = 4;
	p->l4 = ip->protocol;
	p->l4_offset = L3_OFFSET + header;
	p->hop_limit = ip->ttl;
	map_ip4(&p->saddr, ip->saddr);
	map_ip4(&p->daddr, ip->daddr);
	return parse_upper(skb, p, end, header == sizeof(*ip) && (void *)(ip + 1) + 4 <= data_end ? (__be16 *)(ip + 1) : NULL);
}

static __always_inline bool is_extension(__u8 next)
{
	switch (next) {
	case 0:   /* hop by hop */
	case 43:  /* routing */
	case 44:  /* fragment */
	case 51:  /* authentication */
	case 60:  /* destination options */
	case 135: /* mobility */
	case 139: /* HIP */
	case 140: /* shim6 */
		return true;
	}
	return false;
}

/* walk_extensions brings p->l4 and p->l4_offset behind extension headers. Apart, as few packets have any. */
__noinline __u32 walk_extensions(struct __sk_buff *skb, struct packet *p, __u32 end)
{
	struct { __u8 next, len; __be16 offset; } h;
	__u32 offset;

	if (!p)
		return DROP_MALFORMED;
	offset = p->l4_offset;
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		if (!is_extension(p->l4)) {
			p->l4_offset = offset;
			return DROP_NONE;
		}
		/* No extension header is shorter than 8 bytes. */
		if (offset + 8 > end || offset > 0xffff || bpf_skb_load_bytes(skb, offset, &h, sizeof(h)))
			return p->fragment ? DROP_FRAGMENT : DROP_MALFORMED;
		if (p->l4 == 44) {
			if (p->fragment) /* fragments of fragments hide what they carry */
				return DROP_FRAGMENT;
			p->fragment = bpf_ntohs(h.offset) & 0xfff8 ? 2 : 1;
			offset += 8;
			p->l4 = h.next;
			if (p->fragment == 2) {
				p->l4_offset = offset;
				return DROP_NONE;
			}
			continue;
		}
		offset += p->l4 == 51 ? (h.len + 2) * 4 : (h.len + 1) * 8;
		p->l4 = h.next;
		if (offset > end)
			return p->fragment ? DROP_FRAGMENT : DROP_MALFORMED;
	}
	p->l4_offset = offset;
	return is_extension(p->l4) ? DROP_FRAGMENT : DROP_NONE;
}

static __always_inline __u32 parse_ip6(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip;
	__u32 payload, end = p->length, reason;

	if (data + L3_OFFSET + sizeof(*ip) > data_end) {
		if (p->length < L3_OFFSET + sizeof(*ip) || bpf_skb_pull_data(skb, L3_OFFSET + sizeof(*ip)))
			return DROP_MALFORMED;
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
		if (data + L3_OFFSET + sizeof(*ip) > data_end)
			return DROP_MALFORMED;
	}
	ip = data + L3_OFFSET;
	if (ip->version != 6)
		return DROP_MALFORMED;
	payload = bpf_ntohs(ip->payload_len);
	/* A payload length of 0 is a jumbogram when hop-by-hop options follow (RFC 2675). */
	if (!skb->gso_size && (payload || ip->nexthdr)) {
		end = L3_OFFSET + sizeof(*ip) + payload;
		if (end > p->length)
			return DROP_MALFORMED;
	}
	p->family = 6;
	p->l4 = ip->nexthdr;
	p->l4_offset = L3_OFFSET + sizeof(*ip);
	p->hop_limit = ip->hop_limit;
	__builtin_memcpy(&p->saddr, &ip->saddr, 16);
	__builtin_memcpy(&p->daddr, &ip->daddr, 16);
	if (is_extension(p->l4)) {
		reason = walk_extensions(skb, p, end);
		return reason ? reason : parse_upper(skb, p, end, NULL);
	}
	return parse_upper(skb, p, end, (void *)(ip + 1) + 4 <= data_end ? (__be16 *)(ip + 1) : NULL);
}

static __always_inline bool is_group_ip(const struct packet *p)
{
	return p->family == 4 ? (p->daddr.b[12] & 0xf0) == 0xe0 : p->daddr.b[0] == 0xff;
}

/* is_group_news tells who listens to groups, and who routes them: IGMP, MLD, and PIM to a group. */
static __always_inline bool is_group_news(const struct packet *p)
{
	if (p->l4 == IPPROTO_PIM)
		return is_group_ip(p);
	if (p->family == 4)
		return p->l4 == IPPROTO_IGMP;
	return p->family == 6 && ((p->icmp >= 130 && p->icmp <= 132) || p->icmp == 143);
}

/* parse_here does the work of parse_network, in line: for the one place that every frame of a guarded port comes by. */
static __always_inline __u32 parse_here(struct __sk_buff *skb, struct packet *p)
{
	__u32 reason = DROP_NONE;

	if (p->proto == ETH_P_IP)
		reason = parse_ip4(skb, p);
	else if (p->proto == ETH_P_IPV6)
		reason = parse_ip6(skb, p);
	if (reason)
		p->family = 0;
	p->parsed = reason + 1;
	return reason;
}

/* parse_l3 is the same for all other places. It is verified once, on its own. */
__noinline __u32 parse_l3(struct __sk_buff *skb, struct packet *p)
{
	return p ? parse_here(skb, p) : DROP_MALFORMED;
}

/*
 * parse_network fills the second part of p, once. It returns DROP_NONE, DROP_MALFORMED or DROP_FRAGMENT, and the same again when it is
 * asked again. With a reason, or with neither IPv4 nor IPv6, family is 0. It may move packet data: pointers into the frame are void after it.
 * Ports are 0 in later fragments and where the packet ends before them.
 */
static __always_inline __u32 parse_network(struct __sk_buff *skb, struct packet *p)
{
	return p->parsed ? p->parsed - 1 : parse_l3(skb, p);
}

#endif
