/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Token buckets: storm control and rate limits, rule 8 of docs/formats/datapath.md.
 *
 * A bucket is one 64-bit word, so that processors can share it by compare-and-swap alone: the time at which it is full again. A lock in the value
 * would cost about the same alone (it switches interrupts off and on), more when two want it, and would let a processor that a hypervisor has
 * stopped hold all the others. Tokens and a time apart, each atomic, would let a late refill overfill the bucket.
 */
#ifndef DROVER_METER_H
#define DROVER_METER_H

#include "parse.h"

#define TICKS_NS 16ull                            /* parts of a nanosecond: 60 bytes at 100 Gbit/s take 4.8 ns */
#define TICKS_SECOND (TICKS_NS * 1000000000ull)
#define MAX_BURST (1ull << 29)                    /* in ticks it must fit 63 bits */

/* bucket_take pays n units, or says that the bucket has not enough. A loser of four races has seen room and passes, and pays. */
__noinline int bucket_take(struct bucket *b, __u64 n)
{
	__u64 rate, burst, cost, now, seen, from;

	if (!b || !b->rate)
		return 1;
	rate = b->rate;
	burst = b->burst < MAX_BURST ? b->burst : MAX_BURST;
	burst = burst * TICKS_SECOND / rate;
	cost = n * TICKS_SECOND / rate;
	now = bpf_ktime_get_ns() * TICKS_NS;
	for (int i = 0; i < 4; i++) {
		seen = *(volatile __u64 *)&b->stamp;
		from = seen > now ? seen : now;
		/* A frame larger than the bucket passes when it is full. */
		if (from + (cost < burst ? cost : burst) > now + burst)
			return 0;
		if (__sync_val_compare_and_swap(&b->stamp, seen, from + cost) == seen)
			return 1;
	}
	__sync_fetch_and_add(&b->stamp, cost);
	return 1;
}

/* behind_extensions says where the upper layer of an IPv6 frame begins, and sets *l4; with more extension headers than are walked, at the end of the frame. */
static __always_inline __u32 behind_extensions(struct __sk_buff *skb, __u32 offset, __u8 *l4)
{
	struct { __u8 next, len; } h;

	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		if (!is_extension(*l4))
			return offset;
		if (bpf_skb_load_bytes(skb, offset, &h, sizeof(h)))
			return skb->len;
		offset += *l4 == 44 ? 8 : *l4 == 51 ? (h.len + 2) * 4 : (h.len + 1) * 8;
		*l4 = h.next;
	}
	return is_extension(*l4) ? skb->len : offset;
}

/* header_bytes is what each segment of a GSO frame begins with: Ethernet, IP with extension headers, which the kernel repeats, and TCP or UDP. */
__noinline __u32 header_bytes(struct __sk_buff *skb)
{
	__u32 offset = ETH_HLEN;
	__be16 proto = 0;
	__u8 b = 0, l4;

	bpf_skb_load_bytes(skb, ETH_HLEN - 2, &proto, sizeof(proto));
	if (proto == bpf_htons(ETH_P_8021Q)) {
		bpf_skb_load_bytes(skb, ETH_HLEN + 2, &proto, sizeof(proto));
		offset += 4;
	}
	if (proto == bpf_htons(ETH_P_IP)) {
		bpf_skb_load_bytes(skb, offset + 9, &l4, 1);
		bpf_skb_load_bytes(skb, offset, &b, 1);
		offset += (b & 15) * 4;
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		l4 = 59; /* nothing comes behind */
		bpf_skb_load_bytes(skb, offset + 6, &l4, 1);
		offset = behind_extensions(skb, offset + 40, &l4);
	} else {
		return offset;
	}
	if (l4 == 6) {
		b = 0;
		bpf_skb_load_bytes(skb, offset + 12, &b, 1);
		return offset + (b >> 4) * 4;
	}
	return l4 == 17 ? offset + 8 : offset;
}

struct wire { __u32 packets, bytes; };

/* wire_size is what the frame is on a wire: gso_segs is 0 from a TAP, so it is counted. */
static __always_inline struct wire wire_size(struct __sk_buff *skb)
{
	struct wire w = { 1, skb->len };
	__u32 size = skb->gso_size, header;

	if (!size)
		return w;
	header = header_bytes(skb);
	if (w.bytes <= header + size)
		return w;
	w.packets = (w.bytes - header + size - 1) / size;
	w.bytes += (w.packets - 1) * header;
	return w;
}

/* meter_in returns DROP_NONE, or which rate a frame from a port is above. meter_unknown is apart. */
static __always_inline __u32 meter_in(struct __sk_buff *skb, struct packet *p, const struct port *port)
{
	__u32 flags = port->flags, slot = port->slot;
	struct meter *m;
	struct wire w;

	if (!is_group(p->dst))
		flags &= ~PORT_STORM;
	if (!(flags & (PORT_STORM | PORT_METER_IN)))
		return DROP_NONE;
	m = bpf_map_lookup_elem(&meters, &slot);
	if (!m)
		return DROP_NONE;
	w = wire_size(skb);
	if (flags & PORT_STORM) {
		if (is_broadcast(p->dst)) {
			if (!bucket_take(&m->broadcast, w.packets))
				return DROP_STORM_BROADCAST;
		} else if (!bucket_take(&m->multicast, w.packets)) {
			return DROP_STORM_MULTICAST;
		}
	}
	if (flags & PORT_METER_IN && !bucket_take(&m->in, w.bytes))
		return DROP_RATE_IN;
	return DROP_NONE;
}

/* meter_unknown is the storm control of unicast to nobody: rule 11 asks it where fdb has no row, so that others pay no lookup for it. */
static __always_inline __u32 meter_unknown(struct __sk_buff *skb, const struct port *port)
{
	__u32 slot = port->slot;
	struct meter *m;

	if (!(port->flags & PORT_STORM))
		return DROP_NONE;
	m = bpf_map_lookup_elem(&meters, &slot);
	return m && !bucket_take(&m->unknown, wire_size(skb).packets) ? DROP_STORM_UNKNOWN : DROP_NONE;
}

/* meter_out returns DROP_NONE, or DROP_RATE_OUT when the port that owns slot has had its share. */
static __always_inline __u32 meter_out(struct __sk_buff *skb, __u32 slot, const struct port *port)
{
	struct meter *m;

	if (!(port->flags & PORT_METER_OUT))
		return DROP_NONE;
	m = bpf_map_lookup_elem(&meters, &slot);
	return m && !bucket_take(&m->out, wire_size(skb).bytes) ? DROP_RATE_OUT : DROP_NONE;
}

#endif
