/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* ARP and neighbour discovery, answered from what is registered: rule 10 of docs/formats/datapath.md. */
#ifndef DROVER_ANSWER_H
#define DROVER_ANSWER_H

#include "bound.h"
#include "parse.h"

#define ARP_BYTES 28
#define ND_BYTES 32            /* of our advertisement: 24 and one link-layer option */
#define ND_SOLICIT_BYTES 24
#define IP6_BYTES 40

struct arp_ip4 {
	__be16 hardware, protocol;
	__u8   hardware_bytes, protocol_bytes;
	__be16 operation;
	__u8   sender_mac[6], sender_ip[4], target_mac[6], target_ip[4];
};

struct nd_message {
	__u8   type, code;
	__be16 checksum;
	__be32 flags;
	__u8   target[16];
	__u8   option, option_length, mac[6];
};

/* holder finds who has an address, other than the asker. */
static __always_inline struct binding *holder(const struct packet *p, const struct binding_key *key)
{
	struct binding *b = bpf_map_lookup_elem(&bindings, key);

	if (!b || same_mac(b->mac, p->src) || (b->expires && b->expires <= bpf_ktime_get_boot_ns()))
		return NULL;
	return b;
}

static __always_inline void copy_ip4(__u8 *to, const __u8 *from)
{
	__builtin_memcpy(to, from, 4);
}

/* answer_arp turns a request into its reply. It returns whether it did. */
__noinline int answer_arp(struct __sk_buff *skb, struct packet *p)
{
	struct { struct ethhdr eth; struct arp_ip4 arp; } __attribute__((packed)) f;
	struct binding_key key;
	struct binding *b;
	__be32 target;
	__u8 asker[4];

	if (!p || bpf_skb_load_bytes(skb, 0, &f, sizeof(f)))
		return 0;
	if (f.arp.hardware != bpf_htons(1) || f.arp.protocol != bpf_htons(ETH_P_IP) || f.arp.hardware_bytes != 6 || f.arp.protocol_bytes != 4 || f.arp.operation != bpf_htons(1))
		return 0;
	key.net = p->net;
	__builtin_memcpy(&target, f.arp.target_ip, 4);
	map_ip4(&key.ip, target);
	b = holder(p, &key);
	if (!b)
		return 0;
	__builtin_memcpy(f.eth.h_dest, p->src, 6);
	__builtin_memcpy(f.eth.h_source, b->mac, 6);
	f.arp.operation = bpf_htons(2);
	copy_ip4(asker, f.arp.sender_ip);
	__builtin_memcpy(f.arp.target_mac, f.arp.sender_mac, 6);
	copy_ip4(f.arp.sender_ip, f.arp.target_ip);
	copy_ip4(f.arp.target_ip, asker);
	__builtin_memcpy(f.arp.sender_mac, b->mac, 6);
	return !bpf_skb_store_bytes(skb, 0, &f, sizeof(f), 0);
}

/*
 * answer_nd turns a solicitation into its advertisement. Link-local targets are left to their owner: only it knows whether it is a router, and an
 * answer without the router flag would take it off the asker's list of routers (RFC 4861, 7.2.5).
 */
__noinline int answer_nd(struct __sk_buff *skb, struct packet *p)
{
	struct { struct ip_addr saddr, daddr; __be32 length; __u8 zero[3], next; struct nd_message nd; } sum = {};
	struct binding_key key;
	struct binding *b;
	struct ethhdr eth __attribute__((aligned(8)));
	struct ipv6hdr ip;
	__u32 mac[2];
	__s64 checksum;

	if (!p || parse_network(skb, p) || p->family != 6 || p->l4 != IPPROTO_ICMPV6 || p->icmp != 135 || p->fragment)
		return 0;
	if (p->l4_offset != L3_OFFSET + IP6_BYTES || p->hop_limit != 255)
		return 0;
	if (bpf_skb_load_bytes(skb, L3_OFFSET, &ip, sizeof(ip)) || bpf_ntohs(ip.payload_len) < ND_SOLICIT_BYTES)
		return 0;
	if (bpf_skb_load_bytes(skb, p->l4_offset, &sum.nd, ND_SOLICIT_BYTES))
		return 0;
	if (sum.nd.code || (sum.nd.target[0] == 0xfe && (sum.nd.target[1] & 0xc0) == 0x80))
		return 0;
	key.net = p->net;
	__builtin_memcpy(&key.ip, sum.nd.target, 16);
	if (is_mapped(&key.ip)) /* a row of IPv4 */
		return 0;
	b = holder(p, &key);
	if (!b)
		return 0;
	copy_mac((__u8 *)mac, b->mac);
	__builtin_memcpy(&ip.saddr, sum.nd.target, 16);
	__builtin_memcpy(eth.h_source, mac, 6);
	eth.h_proto = bpf_htons(ETH_P_IPV6);
	sum.nd.flags = bpf_htonl(0x60000000); /* solicited, override */
	if (!*(__u64 *)p->saddr.b && !*(__u64 *)(p->saddr.b + 8)) {
		/* It looks for duplicates and has no address yet: all nodes are told. */
		__u32 *to = (__u32 *)&ip.daddr;

		to[0] = bpf_htonl(0xff020000);
		to[1] = to[2] = 0;
		to[3] = bpf_htonl(1);
		__builtin_memset(eth.h_dest, 0, 6);
		eth.h_dest[0] = eth.h_dest[1] = 0x33;
		eth.h_dest[5] = 1;
		sum.nd.flags = bpf_htonl(0x20000000);
	} else {
		__builtin_memcpy(&ip.daddr, &p->saddr, 16);
		__builtin_memcpy(eth.h_dest, p->src, 6);
	}
	ip.payload_len = bpf_htons(ND_BYTES);
	ip.hop_limit = 255;
	sum.nd.type = 136;
	sum.nd.checksum = 0;
	sum.nd.option = 2;
	sum.nd.option_length = 1;
	__builtin_memcpy(sum.nd.mac, mac, 6);
	__builtin_memcpy(&sum.saddr, &ip.saddr, 16);
	__builtin_memcpy(&sum.daddr, &ip.daddr, 16);
	sum.length = bpf_htonl(ND_BYTES);
	sum.next = IPPROTO_ICMPV6;
	checksum = bpf_csum_diff(NULL, 0, (__be32 *)&sum, sizeof(sum), 0);
	checksum = (checksum & 0xffff) + (checksum >> 16 & 0xffff);
	checksum = (checksum & 0xffff) + (checksum >> 16);
	sum.nd.checksum = ~checksum;
	if (!sum.nd.checksum)
		sum.nd.checksum = 0xffff;
	if (bpf_skb_change_tail(skb, L3_OFFSET + IP6_BYTES + ND_BYTES, 0))
		return 0;
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) || bpf_skb_store_bytes(skb, L3_OFFSET, &ip, sizeof(ip), 0))
		return 0;
	return !bpf_skb_store_bytes(skb, L3_OFFSET + IP6_BYTES, &sum.nd, sizeof(sum.nd), 0);
}

/* answer turns a question into its answer, if the switch knows it. */
static __always_inline bool answer(struct __sk_buff *skb, struct packet *p)
{
	if (p->proto == ETH_P_ARP)
		return answer_arp(skb, p);
	return p->proto == ETH_P_IPV6 && parse_network(skb, p) == DROP_NONE && p->icmp == 135 && answer_nd(skb, p);
}

#endif
