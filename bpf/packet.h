/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* A frame on its way through one program: parsed once, then asked by everybody. */
#ifndef DROVER_PACKET_H
#define DROVER_PACKET_H

#include "maps.h"
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>

/*
 * packet is on the stack of the program. parse_ethernet fills the first part, parse_network (lazily: only when a guard, a rate or a hash asks)
 * the second. Offsets count from the start of the frame, tag already off.
 */
struct packet {
	__u32 net;
	__u32 ifindex;             /* where it came in */
	__u32 slot;
	__u32 length;              /* skb->len */
	__u16 vid;                 /* tag that came off; 0x1000 | VLAN */
	__u16 proto;               /* EtherType, host order */
	__u8  dst[6];
	__u8  src[6];
	/* second part */
	__u8  parsed;              /* parse_network was here */
	__u8  family;              /* 4, 6, or 0 */
	__u8  l4;                  /* upper-layer protocol behind extension headers */
	__u8  fragment;            /* 0 whole, 1 first, 2 later */
	__u16 l4_offset;
	__u16 sport, dport;        /* host order; 0 if there are none or it is a later fragment */
	__u8  hop_limit;
	__u8  icmp;                /* ICMPv6 type */
	struct ip_addr saddr, daddr;
};

static __always_inline bool is_group(const __u8 *mac) { return mac[0] & 1; }

#endif
