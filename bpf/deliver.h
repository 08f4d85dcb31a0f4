/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Delivery to a port: what the receiver's policy says, and the way to it. */
#ifndef DROVER_DELIVER_H
#define DROVER_DELIVER_H

#include "lease.h"
#include "meter.h"
#include "ring.h"

static __always_inline void count_in(__u32 slot, __u32 bytes)
{
	struct traffic *t = bpf_map_lookup_elem(&counters, &slot);

	if (t) {
		t->in_packets++;
		t->in_bytes += bytes;
	}
}

static __always_inline void count_out(__u32 slot, __u32 bytes)
{
	struct traffic *t = bpf_map_lookup_elem(&counters, &slot);

	if (t) {
		t->out_packets++;
		t->out_bytes += bytes;
	}
}

/* may_meet is the private VLAN: who may send to whom. */
static __always_inline bool may_meet(const struct packet *p, const struct port *to)
{
	if (p->pvlan < PVLAN_ISOLATED || to->pvlan == PVLAN_PROMISCUOUS)
		return true;
	return p->pvlan == PVLAN_COMMUNITY && to->pvlan == PVLAN_COMMUNITY && p->community == to->community;
}

/* admit asks the receiver's policy. A firewall of the receiver's zone belongs here, in front of the rate. */
static __always_inline __u32 admit(struct __sk_buff *skb, const struct packet *p, const struct port *to)
{
	if (to->flags & PORT_DOWN)
		return DROP_PORT_DOWN;
	if (!may_meet(p, to))
		return DROP_PVLAN;
	return to->flags & PORT_METER_OUT ? meter_out(skb, to->slot, to) : DROP_NONE;
}

/* mirror copies a frame to the port that watches another one, or to the ring from which ERSPAN is sent. The copy is a copy: no policy but that the port is up. */
__noinline int mirror(struct __sk_buff *skb, struct packet *p, __u32 to_ifindex, __u32 slot, __u32 point)
{
	struct port *to;

	if (!p)
		return 0;
	if (!to_ifindex)
		return capture(skb, p->ifindex, slot, p->vid, point, DROP_NONE);
	to = bpf_map_lookup_elem(&ports, &to_ifindex);
	if (!to || to->flags & PORT_DOWN || to_ifindex == p->ifindex)
		return 0;
	count_out(to->slot, skb->len);
	if (to->flags & PORT_CAPTURE)
		capture(skb, to_ifindex, to->slot, 0, CAPTURE_TO_GUEST, DROP_NONE);
	skb->mark = DROVER_MARK;
	bpf_clone_redirect(skb, to_ifindex, 0);
	return 0;
}

/* Flags of a receiver that cost more than a test. */
#define PORT_OBSERVED (PORT_CAPTURE | PORT_MIRROR_OUT)

/* observe copies a frame that is delivered to whoever watches the receiver. */
__noinline int observe(struct __sk_buff *skb, struct packet *p, __u32 ifindex, __u32 vid)
{
	struct port *to = bpf_map_lookup_elem(&ports, &ifindex);

	if (!p || !to)
		return 0;
	if (to->flags & PORT_CAPTURE || (to->flags & PORT_MIRROR_OUT && !to->mirror_ifindex))
		capture(skb, ifindex, to->slot, vid, CAPTURE_TO_GUEST, DROP_NONE);
	if (to->flags & PORT_MIRROR_OUT && to->mirror_ifindex)
		mirror(skb, p, to->mirror_ifindex, to->slot, CAPTURE_TO_GUEST);
	return 0;
}

/* hand_over does for a frame and for a copy of one what comes between the policy and the redirect. */
static __always_inline void hand_over(struct __sk_buff *skb, struct packet *p, __u32 ifindex, __u16 vid, const struct port *to)
{
	if (to->flags & PORT_DHCP_SNOOP && (p->origin != FROM_PORT || p->flags & PORT_DHCP_SERVER))
		note_lease(skb, p, ifindex);
	if (to->flags & PORT_OBSERVED)
		observe(skb, p, ifindex, vid ? 0x1000 | vid : 0);
	count_out(to->slot, p->length);
	skb->mark = DROVER_MARK;
}

/* deliver sends the frame itself to a port: *action is what the program returns. */
static __always_inline __u32 deliver(struct __sk_buff *skb, struct packet *p, __u32 ifindex, __u16 vid, int *action)
{
	struct port *to = bpf_map_lookup_elem(&ports, &ifindex);
	__u32 reason;

	if (!to)
		return DROP_NO_PORT;
	reason = admit(skb, p, to);
	if (reason)
		return reason;
	hand_over(skb, p, ifindex, vid, to);
	if (vid && bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), vid))
		return DROP_REDIRECT;
	if (to->flags & PORT_PEER) {
		/* The peer's stack takes the frame as it is: it must not look as if it were for somebody else, nor carry our mark. */
		skb->mark = 0;
		bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
		*action = bpf_redirect_peer(ifindex, 0);
		return DROP_NONE;
	}
	*action = bpf_redirect(ifindex, 0);
	return DROP_NONE;
}

/* deliver_copy sends a copy to a port and leaves the frame as it was. It returns whether it was admitted. */
static __always_inline bool deliver_copy(struct __sk_buff *skb, struct packet *p, __u32 ifindex, __u16 vid, const struct port *to)
{
	if (admit(skb, p, to))
		return false;
	hand_over(skb, p, ifindex, vid, to);
	if (vid && bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), vid))
		return false;
	if (bpf_clone_redirect(skb, ifindex, 0))
		drop(skb, p, DROP_REDIRECT);
	if (vid)
		bpf_skb_vlan_pop(skb);
	return true;
}

#endif
