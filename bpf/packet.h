/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* A frame on its way through one program: parsed once, then asked by everybody. */
#ifndef DROVER_PACKET_H
#define DROVER_PACKET_H

#include "maps.h"
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>

#ifndef ETH_P_LLDP
#define ETH_P_LLDP 0x88cc
#endif
#define ETH_P_BEACON 0x88b5   /* IEEE's first EtherType for local experiments */

enum origin { FROM_PORT = 0, FROM_UPLINK = 1, FROM_TUNNEL = 2 };

/*
 * packet is on the stack of the program. The programs fill the first part, parse_network (lazily: only when a guard, a rate or a hash asks) the
 * second. Offsets count from the start of the frame, tag already off.
 */
struct packet {
	__u32 net;
	__u32 ifindex;             /* where it came in */
	__u32 slot;
	__u32 length;              /* skb->len */
	__u8  dst[6];
	__u16 vid;                 /* tag that came off; 0x1000 | VLAN */
	__u8  src[6];
	__u16 proto;               /* EtherType, host order */
	__u32 flags;               /* enum port_flag of the port that sent it; 0: from elsewhere */
	__u8  origin;              /* enum origin */
	__u8  pvlan;               /* of the sender */
	__u16 community;
	/* second part */
	__u8  parsed;              /* 0: parse_network was not here yet; else what it returned, plus 1 */
	__u8  family;              /* 4, 6, or 0 */
	__u8  l4;                  /* upper-layer protocol behind extension headers */
	__u8  fragment;            /* 0 whole, 1 first, 2 later */
	__u16 l4_offset;
	__u16 sport, dport;        /* host order; 0 if there are none or it is a later fragment */
	__u8  hop_limit;
	__u8  icmp;                /* ICMPv6 type */
	__u8  control;             /* guard found a control frame that the port may send: it stays on this host */
	__u8  pad;
	__u16 checksum;            /* where a checksum is yet to be written: see late.h; 0: nowhere */
	struct ip_addr saddr, daddr;
};

static __always_inline bool is_group(const __u8 *mac) { return mac[0] & 1; }

static __always_inline bool is_broadcast(const __u8 *mac) { return *(__u32 *)mac == 0xffffffff && *(__u16 *)(mac + 4) == 0xffff; }

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	return *(__u32 *)a == *(__u32 *)b && *(__u16 *)(a + 4) == *(__u16 *)(b + 4);
}

static __always_inline void copy_mac(__u8 *to, const __u8 *from)
{
	*(__u32 *)to = *(__u32 *)from;
	*(__u16 *)(to + 4) = *(__u16 *)(from + 4);
}

/* is_beacon tells the group that hosts' beacons go to: 03 and DROVE. */
static __always_inline bool is_beacon(const __u8 *mac)
{
	return *(__u32 *)mac == bpf_htonl(0x0344524f) && *(__u16 *)(mac + 4) == bpf_htons(0x5645);
}

/* is_reserved tells link-local frames, which switches keep to themselves: 802.1D's block, and Cisco's CDP and PVST+. */
static __always_inline bool is_reserved(const __u8 *mac)
{
	__u32 high = bpf_ntohl(*(__u32 *)mac);
	__u16 low = bpf_ntohs(*(__u16 *)(mac + 4));

	return (high == 0x0180c200 && low < 0x10) || (high == 0x01000ccc && (low == 0xcccc || low == 0xcccd));
}

#endif
