/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* What the datapath tells user space: drops, punts, captures. Rings that are full lose news, never packets. */
#ifndef DROVER_RING_H
#define DROVER_RING_H

#include "meter.h"

#define EVENT_GAP_NS 1000000000ull

/* copy_frame copies the head of the frame, at most size bytes, and returns how many. */
static __always_inline __u32 copy_frame(struct __sk_buff *skb, __u8 *to, __u32 size)
{
	__u32 n = skb->len;

	if (n > size)
		n = size;
	asm volatile("" : "+r"(n)); /* the verifier must see both bounds in one register */
	if (n < 2 || n > size)
		return 0;
	return bpf_skb_load_bytes(skb, 0, to, n) ? 0 : n;
}

/* capture_frame is capture with point | reason << 8 | vid << 16: a function takes five arguments. */
__noinline int capture_frame(struct __sk_buff *skb, __u32 ifindex, __u32 slot, __u32 how)
{
	struct capture *c = bpf_ringbuf_reserve(&captures, sizeof(*c), 0);

	if (!c)
		return 0;
	c->time = bpf_ktime_get_boot_ns();
	c->ifindex = ifindex;
	c->slot = slot;
	c->point = how & 0xff;
	c->reason = how >> 8 & 0xff;
	c->vid = how >> 16;
	c->length = skb->len;
	c->gso_size = skb->gso_size;
	c->pad = 0;
	c->captured = copy_frame(skb, c->data, CAPTURE_BYTES);
	bpf_ringbuf_submit(c, 0);
	return 0;
}

/* capture copies the frame to the capture ring; the caller knows that somebody looks. */
static __always_inline int capture(struct __sk_buff *skb, __u32 ifindex, __u32 slot, __u16 vid, __u32 point, __u32 reason)
{
	return capture_frame(skb, ifindex, slot, point | reason << 8 | (__u32)vid << 16);
}

/* punt copies the frame to user space's slow path, if the slot can still pay for it. */
__noinline int punt(struct __sk_buff *skb, struct packet *p, __u32 kind, __u32 to_ifindex)
{
	struct meter *m;
	struct punt *u;
	__u32 slot;

	if (!p)
		return 0;
	slot = p->slot;
	m = bpf_map_lookup_elem(&meters, &slot);
	if (!m || !bucket_take(&m->punt, 1))
		return 0;
	u = bpf_ringbuf_reserve(&punts, sizeof(*u), 0);
	if (!u)
		return 0;
	u->time = bpf_ktime_get_boot_ns();
	u->ifindex = p->ifindex;
	u->slot = slot;
	u->net = p->net;
	u->kind = kind;
	u->length = skb->len;
	u->to_ifindex = to_ifindex;
	u->vid = p->vid;
	u->pad = 0;
	u->captured = copy_frame(skb, u->data, PUNT_BYTES);
	bpf_ringbuf_submit(u, 0);
	return 0;
}

/* is_told says whether a drop for the reason is news for people. */
static __always_inline bool is_told(__u32 reason)
{
	switch (reason) {
	case DROP_REFLECTED:
	case DROP_NOT_ACTIVE:
	case DROP_RESERVED_UPLINK:
	case DROP_PUNTED:
	case DROP_ANSWERED:
		return false;
	}
	return true;
}

/* tell_drop writes an event when the last for this slot and reason is a second old: the gate is the slot's own, so nobody pays for another's flood. */
__noinline int tell_drop(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	__u64 now, last;
	struct gate *g;
	struct event *e;
	__u32 slot, count;

	if (!p || reason >= DROP_REASONS)
		return 0;
	slot = p->slot;
	g = bpf_map_lookup_elem(&gates, &slot);
	if (!g)
		return 0;
	__sync_fetch_and_add(&g->since[reason], 1);
	now = bpf_ktime_get_boot_ns();
	last = g->last[reason];
	if (last && now - last < EVENT_GAP_NS)
		return 0;
	if (__sync_val_compare_and_swap(&g->last[reason], last, now) != last)
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e)
		return 0; /* what was counted is told with the next */
	count = __sync_lock_test_and_set(&g->since[reason], 0);
	e->time = now;
	e->ifindex = p->ifindex;
	e->slot = slot;
	e->net = p->net;
	e->reason = reason;
	e->count = count;
	e->length = skb->len;
	e->vid = p->vid;
	e->pad = 0;
	e->captured = copy_frame(skb, e->data, EVENT_BYTES);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* is_captured says whether somebody looks at the port or uplink where the frame came in. */
static __always_inline bool is_captured(const struct packet *p)
{
	__u32 ifindex = p->ifindex;
	struct uplink *uplink;

	if (p->origin != FROM_UPLINK)
		return p->flags & PORT_CAPTURE;
	uplink = bpf_map_lookup_elem(&uplinks, &ifindex);
	return uplink && uplink->flags & UPLINK_CAPTURE;
}

/* drop counts a frame that ends here, tells of it at most once a second for each slot and reason, and returns TC_ACT_SHOT. */
__noinline int drop(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	struct drop_count *count, first = { 1, skb->len };
	struct drop_key key;

	if (!p || reason == DROP_ANSWERED)
		return TC_ACT_SHOT;
	key.slot = p->slot;
	key.reason = reason;
	count = bpf_map_lookup_elem(&drops, &key);
	if (count) {
		count->packets++;
		count->bytes += skb->len;
	} else {
		bpf_map_update_elem(&drops, &key, &first, BPF_NOEXIST);
	}
	if (is_told(reason))
		tell_drop(skb, p, reason);
	if (is_captured(p))
		capture(skb, p->ifindex, p->slot, p->vid, CAPTURE_DROPPED, reason);
	return TC_ACT_SHOT;
}

#endif
