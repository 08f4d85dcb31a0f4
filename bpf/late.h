/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Checksums that a sender leaves to others. A guest names in virtio's header any two bytes of its frame, and the kernel or a network card writes a sum of
 * the guest's choice there: behind the guards, on the way out. So it must be where guards do not look. Rule 2 and rule 7 of docs/formats/datapath.md.
 */
#ifndef DROVER_LATE_H
#define DROVER_LATE_H

#include "packet.h"
#include <linux/in.h>
#include <bpf/bpf_core_read.h>

#define CHECKSUM_PARTIAL 3     /* linux/skbuff.h */
#define LATE_NOWHERE 0xffff    /* a place that no rule allows */

/* What struct __sk_buff does not tell. */
struct sk_buff {
	__u8  ip_summed : 2;
	__u16 csum_start, csum_offset;
	unsigned char *head, *data;
} __attribute__((preserve_access_index));

void *bpf_cast_to_kern_ctx(void *ctx) __ksym;

/* late_checksum says where in the frame a checksum is yet to be written; 0: nowhere. */
static __always_inline __u16 late_checksum(struct __sk_buff *skb, __u32 length)
{
	struct sk_buff *kernel = bpf_cast_to_kern_ctx(skb);
	__u32 at;

	if (BPF_CORE_READ_BITFIELD(kernel, ip_summed) != CHECKSUM_PARTIAL)
		return 0;
	at = kernel->csum_start + kernel->csum_offset - (__u32)((unsigned long)kernel->data - (unsigned long)kernel->head);
	return at && at < length && at < LATE_NOWHERE ? at : LATE_NOWHERE;
}

/* is_late_ip says whether a checksum of a parsed packet is where IP guards do not look: the upper layer's own, or behind its header. */
static __always_inline bool is_late_ip(const struct packet *p)
{
	__u32 at = p->checksum, start = p->l4_offset;

	if (at == LATE_NOWHERE || at < start)
		return false;
	if (p->fragment == 2)
		return true;
	switch (p->l4) {
	case IPPROTO_TCP:
		return at == start + 16;
	case IPPROTO_UDP:
		/* Behind the header are a tunnel's packets. DHCP requests are read there. */
		return at == start + 6 || (at >= start + 8 && p->dport != 67);
	case IPPROTO_ICMPV6:
		return at == start + 2;
	}
	return true;
}

/* is_late says the same of other frames: not in the Ethernet header, nor in that of LLC and SNAP, nor in ARP. */
static __always_inline bool is_late(const struct packet *p)
{
	if (p->proto == ETH_P_ARP || p->checksum == LATE_NOWHERE)
		return false;
	return p->checksum >= ETH_HLEN + (p->proto < 0x600 ? 8 : 0);
}

#endif
