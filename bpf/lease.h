/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Leases that pass on their way to a port: told to user space, and bound at once for a minute, so that the guest's first packet passes. */
#ifndef DROVER_LEASE_H
#define DROVER_LEASE_H

#include "parse.h"
#include "ring.h"

#define LEASE_NS (60ull * 1000000000)
#define BOOTP_BYTES 240        /* up to and with the magic cookie, RFC 2131 */
#define DHCP_OPTIONS 16        /* looked at for the message type, which servers put first */

struct bootp {
	__u8   op, htype, hlen, hops;
	__be32 xid;
	__be16 secs, flags;
	__be32 ciaddr, yiaddr, siaddr, giaddr;
	__u8   chaddr[16];
};

/* is_ack finds option 53 and says whether it is 5. */
static __always_inline bool is_ack(struct __sk_buff *skb, __u32 offset)
{
	struct { __u8 code, length, value; } option;

	for (int i = 0; i < DHCP_OPTIONS; i++) {
		if (offset > 0xffff || bpf_skb_load_bytes(skb, offset, &option, sizeof(option)))
			return false;
		if (option.code == 53)
			return option.length == 1 && option.value == 5;
		if (option.code == 255)
			return false;
		offset += option.code ? option.length + 2 : 1;
	}
	return false;
}

/* bind_lease writes the provisional binding, if nobody else holds the address, and lets go of the port's last one. */
static __always_inline void bind_lease(const struct packet *p, const struct port *to, __u32 ifindex, __be32 addr)
{
	struct binding_key key = { .net = p->net }, *last;
	struct binding fresh = { .ifindex = ifindex, .source = BINDING_PROVISIONAL }, *old;
	__u64 now = bpf_ktime_get_boot_ns();
	__u32 slot = to->slot;

	map_ip4(&key.ip, addr);
	old = bpf_map_lookup_elem(&bindings, &key);
	if (old && (!old->expires || old->expires > now) && (old->ifindex != ifindex || old->source != BINDING_PROVISIONAL))
		return;
	last = bpf_map_lookup_elem(&provisional, &slot);
	if (!last)
		return;
	if (last->net) {
		old = bpf_map_lookup_elem(&bindings, last);
		if (old && old->source == BINDING_PROVISIONAL && old->ifindex == ifindex)
			bpf_map_delete_elem(&bindings, last);
	}
	copy_mac(fresh.mac, to->mac);
	fresh.expires = now + LEASE_NS;
	if (!bpf_map_update_elem(&bindings, &key, &fresh, BPF_ANY))
		*last = key;
}

/* note_lease looks for a DHCP server's message in a frame from a trusted place to a port with PORT_DHCP_SNOOP. A copy that is not for this port is left alone. */
__noinline int note_lease(struct __sk_buff *skb, struct packet *p, __u32 ifindex)
{
	struct bootp message;
	struct port *to;
	__u32 offset;

	if (!p || parse_network(skb, p) || p->l4 != IPPROTO_UDP || p->fragment)
		return 0;
	if (p->family == 6) {
		if (p->sport == 547)
			punt(skb, p, PUNT_DHCP, ifindex);
		return 0;
	}
	if (p->sport != 67)
		return 0;
	to = bpf_map_lookup_elem(&ports, &ifindex);
	offset = p->l4_offset + 8;
	if (!to || bpf_skb_load_bytes(skb, offset, &message, sizeof(message)))
		return 0;
	if (message.op != 2 || message.htype != 1 || message.hlen != 6 || !same_mac(message.chaddr, to->mac))
		return 0;
	punt(skb, p, PUNT_DHCP, ifindex);
	if (message.yiaddr && is_ack(skb, offset + BOOTP_BYTES))
		bind_lease(p, to, ifindex, message.yiaddr);
	return 0;
}

#endif
