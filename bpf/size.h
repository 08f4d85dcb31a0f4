/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* How large a frame is on the wire, and the bits of its IP header that the switch may set. */
#ifndef DROVER_SIZE_H
#define DROVER_SIZE_H

#include "meter.h"
#include "parse.h"

/* network_bytes is what counts against an MTU: bytes behind the Ethernet header of the frame, or of each segment that it will be. */
static __always_inline __u32 network_bytes(struct __sk_buff *skb, struct packet *p)
{
	if (skb->gso_size)
		return header_bytes(skb) - ETH_HLEN + skb->gso_size;
	return p->length - ETH_HLEN;
}

#define MAX_SEGMENTS_LOG 11

/* is_shredded tells a frame that would be cut into more segments than any guest has a use for: all of that work is the host's, or its network card's. */
static __always_inline bool is_shredded(struct __sk_buff *skb)
{
	__u32 size = skb->gso_size;

	return size && skb->len > size << MAX_SEGMENTS_LOG;
}

/* set_dscp sets the class of an IP packet and leaves its congestion bits alone (RFC 3168). */
static __always_inline void set_dscp(struct __sk_buff *skb, struct packet *p, __u8 dscp)
{
	__be16 before, after;

	if (parse_network(skb, p) || !p->family || bpf_skb_load_bytes(skb, L3_OFFSET, &before, sizeof(before)))
		return;
	if (p->family == 4) {
		after = bpf_htons((bpf_ntohs(before) & 0xff03) | dscp << 2);
		if (after == before)
			return;
		bpf_l3_csum_replace(skb, L3_OFFSET + 10, before, after, sizeof(after));
	} else {
		after = bpf_htons((bpf_ntohs(before) & 0xf03f) | dscp << 6);
	}
	bpf_skb_store_bytes(skb, L3_OFFSET, &after, sizeof(after), 0);
}

#endif
