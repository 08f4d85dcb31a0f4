/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Ways off this host: uplinks and tunnels. */
#ifndef DROVER_WIRE_H
#define DROVER_WIRE_H

#include "deliver.h"
#include "parse.h"

#define AF_INET 2
#define AF_INET6 10

/* spread maps what frames of one conversation have in common to one of TEAM_BUCKETS: Fibonacci hashing. */
static __always_inline __u32 spread(__u32 x)
{
	return (x * 0x9e3779b1u) >> 26;
}

static __always_inline __u32 last_four(const __u8 *b)
{
	return (__u32)b[0] << 24 | (__u32)b[1] << 16 | (__u32)b[2] << 8 | b[3];
}

static __always_inline __u32 team_bucket(struct __sk_buff *skb, struct packet *p, const struct port *from)
{
	__u32 x = 0;

	if (from->team_hash == TEAM_BY_PORT)
		return from->bucket;
	if (from->team_hash == TEAM_BY_MAC)
		return spread(last_four(p->src + 2));
	if (parse_network(skb, p) == DROP_NONE && p->family) {
		for (int i = 0; i < 16; i += 4)
			x ^= last_four(p->saddr.b + i) ^ last_four(p->daddr.b + i);
		return spread(x);
	}
	return spread(last_four(p->src + 2) ^ last_four(p->dst + 2));
}

/* to_uplink tags a frame for the network's team and says by which device it goes; 0: by none. The frame keeps its tag: who only sends a copy takes it off. */
__noinline __u32 to_uplink(struct __sk_buff *skb, struct packet *p)
{
	struct network *network;
	struct port *from;
	struct uplink *uplink;
	struct team *team;
	__u32 bucket, index, ifindex;
	__u16 vid;

	if (!p)
		return 0;
	index = p->net;
	network = bpf_map_lookup_elem(&networks, &index);
	index = p->ifindex;
	from = bpf_map_lookup_elem(&ports, &index);
	if (!network || !from)
		return 0;
	index = network->team;
	team = bpf_map_lookup_elem(&teams, &index);
	bucket = team_bucket(skb, p, from);
	if (!team || bucket >= TEAM_BUCKETS)
		return 0;
	ifindex = team->bucket[bucket];
	uplink = bpf_map_lookup_elem(&uplinks, &ifindex);
	if (!uplink)
		return 0;
	vid = from->uplink_vid && p->net == from->net ? from->uplink_vid : network->vid;
	count_out(uplink->slot, p->length);
	if (uplink->flags & UPLINK_CAPTURE)
		capture(skb, ifindex, uplink->slot, vid ? 0x1000 | vid : 0, CAPTURE_TO_GUEST, DROP_NONE);
	skb->mark = 0;
	if (!vid)
		return ifindex;
	if (from->flags & PORT_MARK && from->cos < 8)
		vid |= from->cos << 13;
	return bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), vid) ? 0 : ifindex;
}

/* to_tunnel addresses a frame to another host and says by which device it goes; 0: by none. */
__noinline __u32 to_tunnel(struct __sk_buff *skb, struct packet *p, __u32 host, __u32 dscp)
{
	struct bpf_tunnel_key key = { .tunnel_ttl = 64 };
	struct vtep *vtep = bpf_map_lookup_elem(&vteps, &host);
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	if (!p || !vtep)
		return 0;
	key.tunnel_id = p->net;
	key.tunnel_tos = dscp < 64 ? dscp << 2 : 0;
	if (vtep->family == AF_INET6) {
		flags |= BPF_F_TUNINFO_IPV6; /* no checksum there either: RFC 6935; the device takes such packets */
		__builtin_memcpy(key.remote_ipv6, vtep->addr.b, 16);
		__builtin_memcpy(key.local_ipv6, vtep->local.b, 16);
	} else {
		key.remote_ipv4 = bpf_ntohl(*(__be32 *)(vtep->addr.b + 12));
		key.local_ipv4 = bpf_ntohl(*(__be32 *)(vtep->local.b + 12));
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags))
		return 0;
	count_out(0, p->length);
	skb->mark = 0;
	return vtep->ifindex;
}

#endif
