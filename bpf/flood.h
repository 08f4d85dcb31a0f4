/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Frames for many: groups, and the copies of promiscuous ports. */
#ifndef DROVER_FLOOD_H
#define DROVER_FLOOD_H

#include "wire.h"

enum flood_mode { FLOOD_EVERYWHERE = 0, FLOOD_HERE = 1 /* members of this host only */, FLOOD_WATCHERS = 2 /* promiscuous members of this host */ };

struct flood {
	struct __sk_buff *skb;
	struct packet *p;
	__u32 mode;
	__u32 skip;                /* WATCHERS: who gets the frame anyway */
	__u32 dscp;
	__u32 team;                /* FROM_UPLINK: of the uplink that it came by */
	__u32 snooped;             /* goes to those only who listen to the group, daddr */
	__u32 report;              /* says who listens: goes to routers only */
	__u32 sent;
	__u32 withheld;            /* from members that get it by another uplink */
};

/* is_snooped tells groups that only those get who asked: not those of the link itself, which hosts need not join aloud (RFC 4541). */
static __always_inline bool is_snooped(const struct packet *p)
{
	const __u32 *d = (const __u32 *)p->daddr.b;

	if (p->family == 4)
		return (d[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) && (d[3] & bpf_htonl(0xffffff00)) != bpf_htonl(0xe0000000);
	if (p->family != 6 || p->daddr.b[0] != 0xff)
		return false;
	if (d[0] != bpf_htonl(0xff020000) || d[1])
		return true;
	if (!d[2] && (d[3] == bpf_htonl(1) || d[3] == bpf_htonl(2)))
		return false;
	return d[2] != bpf_htonl(1) || (d[3] & bpf_htonl(0xff000000)) != bpf_htonl(0xff000000);
}

/*
 * is_report tells reports of IGMPv1, IGMPv2 and MLDv1. Hosts that hear another's keep their own back, and the switch would not know of them: only routers
 * may hear them (RFC 4541, 2.1.1).
 */
static __always_inline bool is_report(struct __sk_buff *skb, const struct packet *p)
{
	__u8 type;

	if (p->family != 4)
		return p->family == 6 && p->icmp == 131;
	if (p->l4 != IPPROTO_IGMP || p->fragment == 2 || bpf_skb_load_bytes(skb, p->l4_offset, &type, sizeof(type)))
		return false;
	return type == 0x12 || type == 0x16;
}

/* is_listed says whether a member listens to the group that a snooped frame is for. */
static __always_inline bool is_listed(const struct flood *f, const struct member *m)
{
	const struct packet *p = f->p;
	struct group_key key = { .net = p->net, .target = m->target, .place = m->place };

	if (m->flags & (MEMBER_ALL_GROUPS | MEMBER_PROMISCUOUS))
		return true;
	if (f->report)
		return false;
	__builtin_memcpy(&key.group, &p->daddr, sizeof(key.group));
	return bpf_map_lookup_elem(&groups, &key);
}

/* is_active says whether a port gets group frames by the uplink that one came by: each port by one, so that none gets a frame twice. */
static __always_inline bool is_active(const struct flood *f, const struct port *to)
{
	__u32 index = f->team, bucket;
	struct team *team;

	if (to->team_hash == TEAM_BY_IP)
		return true;
	team = bpf_map_lookup_elem(&teams, &index);
	bucket = to->team_hash == TEAM_BY_MAC ? spread(last_four(to->mac + 2)) : to->bucket;
	return team && bucket < TEAM_BUCKETS && team->bucket[bucket] == f->p->ifindex;
}

static long flood_row(__u32 row, struct flood *f)
{
	struct member_key key = { .net = f->p->net, .row = row };
	struct member *m = bpf_map_lookup_elem(&members, &key);
	struct port *to;
	__u32 ifindex;

	if (!m)
		return 0;
	if (m->place == PLACE_TUNNEL) {
		if (f->mode != FLOOD_EVERYWHERE)
			return 0;
		ifindex = to_tunnel(f->skb, f->p, m->target, f->dscp);
		if (!ifindex)
			return 0;
		if (bpf_clone_redirect(f->skb, ifindex, 0))
			drop(f->skb, f->p, DROP_REDIRECT);
		f->sent = 1;
		return 0;
	}
	if (m->place != PLACE_LOCAL || m->target == f->p->ifindex)
		return 0;
	if (f->mode == FLOOD_WATCHERS ? !(m->flags & MEMBER_PROMISCUOUS) || m->target == f->skip : f->snooped && !is_listed(f, m))
		return 0;
	ifindex = m->target;
	to = bpf_map_lookup_elem(&ports, &ifindex);
	if (!to)
		return 0;
	if (f->mode != FLOOD_WATCHERS && f->p->origin == FROM_UPLINK && !is_active(f, to)) {
		f->withheld = 1;
		return 0;
	}
	if (deliver_copy(f->skb, f->p, ifindex, m->vid, to))
		f->sent = 1;
	return 0;
}

/*
 * flood sends copies to the members of the frame's network, and by the uplink. The frame itself stays. It returns DROP_NONE, DROP_NOT_ACTIVE when
 * all members get theirs by another uplink, or DROP_NO_UPLINK when nobody got it and the uplink was the only one left.
 */
__noinline __u32 flood(struct __sk_buff *skb, struct packet *p, __u32 mode, __u32 skip, __u32 team)
{
	struct flood f = { .skb = skb, .p = p, .mode = mode, .skip = skip, .team = team, .dscp = 255 };
	struct network *network;
	struct port *from;
	__u32 index, flags;

	if (!p)
		return DROP_NONE;
	index = p->net;
	network = bpf_map_lookup_elem(&networks, &index);
	if (!network)
		return DROP_NETWORK;
	flags = network->flags;
	index = p->ifindex;
	from = p->origin == FROM_PORT ? bpf_map_lookup_elem(&ports, &index) : NULL;
	if (from && from->flags & PORT_MARK)
		f.dscp = from->dscp;
	if (flags & NETWORK_SNOOPING && mode != FLOOD_WATCHERS && !is_broadcast(p->dst) && parse_network(skb, p) == DROP_NONE) {
		f.report = is_report(skb, p);
		f.snooped = f.report || is_snooped(p);
	}
	bpf_loop(network->members, flood_row, &f, 0);
	if (mode == FLOOD_EVERYWHERE && flags & NETWORK_UPLINK) {
		index = to_uplink(skb, p);
		if (!index)
			return f.sent ? DROP_NONE : DROP_NO_UPLINK;
		if (bpf_clone_redirect(skb, index, 0))
			drop(skb, p, DROP_REDIRECT);
		if (skb->vlan_present)
			bpf_skb_vlan_pop(skb);
	}
	return f.withheld && !f.sent ? DROP_NOT_ACTIVE : DROP_NONE;
}

#endif
