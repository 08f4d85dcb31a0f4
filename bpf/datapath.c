// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* The programs. docs/formats/datapath.md says what each does, and in which order. */
#include "answer.h"
#include "flood.h"
#include "guard.h"
#include "size.h"
#include "tag.h"

/* Flags of a port whose frames are looked at for more than their way. */
#define PORT_EXTRAS (PORT_MARK | PORT_MIRROR_IN | PORT_PRIORITY | PORT_CAPTURE)

/* extras marks and mirrors a frame that may pass. */
__noinline int extras(struct __sk_buff *skb, struct packet *p)
{
	struct port *from;
	__u32 index;

	if (!p)
		return 0;
	index = p->ifindex;
	from = bpf_map_lookup_elem(&ports, &index);
	if (!from)
		return 0;
	if (from->flags & PORT_PRIORITY)
		skb->priority = from->priority;
	if (from->flags & PORT_MARK && from->dscp < 64)
		set_dscp(skb, p, from->dscp);
	if (from->flags & PORT_MIRROR_IN)
		mirror(skb, p, from->mirror_ifindex, from->slot, CAPTURE_ACCEPTED);
	/* A mirror to the ring has the same record. */
	if (from->flags & PORT_CAPTURE && (!(from->flags & PORT_MIRROR_IN) || from->mirror_ifindex))
		capture(skb, index, from->slot, p->vid, CAPTURE_ACCEPTED, DROP_NONE);
	return 0;
}

/* forward is rule 11 of a port: it sends the frame where it is to go. */
static __always_inline __u32 forward(struct __sk_buff *skb, struct packet *p, const struct port *from, __u32 network_flags, int *action)
{
	struct fdb_key key = { .net = p->net };
	struct fdb_entry *to;
	__u32 ifindex, reason;

	if (is_group(p->dst)) {
		*action = TC_ACT_SHOT; /* all who were to get it have their copies */
		return flood(skb, p, p->control ? FLOOD_HERE : FLOOD_EVERYWHERE, 0, 0);
	}
	copy_mac(key.mac, p->dst);
	to = bpf_map_lookup_elem(&fdb, &key);
	if (!to) {
		reason = meter_unknown(skb, from);
		if (reason)
			return reason;
	}
	if (network_flags & NETWORK_WATCHED)
		flood(skb, p, FLOOD_WATCHERS, to && to->place == PLACE_LOCAL ? to->target : 0, 0);
	if (to && to->place == PLACE_LOCAL) {
		if (to->target == p->ifindex)
			return DROP_HAIRPIN;
		return deliver(skb, p, to->target, to->vid, action);
	}
	if (to && to->place == PLACE_TUNNEL) {
		ifindex = to_tunnel(skb, p, to->target, from->flags & PORT_MARK ? from->dscp : 255);
		if (!ifindex)
			return DROP_UNREGISTERED;
	} else {
		if (!to && !(network_flags & NETWORK_UPLINK))
			return DROP_UNREGISTERED;
		ifindex = to_uplink(skb, p);
		if (!ifindex)
			return DROP_NO_UPLINK;
	}
	*action = bpf_redirect(ifindex, 0);
	return DROP_NONE;
}

/* send_back returns an answer to the port that asked. */
static __always_inline int send_back(struct __sk_buff *skb, struct packet *p, const struct port *from)
{
	count_out(p->slot, skb->len);
	if (from->flags & PORT_CAPTURE)
		capture(skb, p->ifindex, p->slot, p->vid, CAPTURE_TO_GUEST, DROP_NONE);
	skb->mark = DROVER_MARK;
	if (p->vid)
		bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), p->vid & 0xfff);
	return bpf_redirect(p->ifindex, 0);
}

/* is_replaced says whether a row of ports has become another since check was read. Whatever was read of it in between is void then. */
static __always_inline bool is_replaced(const struct port *port, __u32 check)
{
	asm volatile("" ::: "memory");
	return *(const volatile __u32 *)&port->check != check;
}

/* from_port is what port_in does behind rule 1. */
static __always_inline __u32 from_port(struct __sk_buff *skb, struct packet *p, const struct port *from, __u32 check, int *action)
{
	struct tag tag = {};
	struct network *network;
	__u32 reason, flags;

	reason = parse_ethernet(skb, p, &tag);
	count_in(p->slot, p->length);
	if (reason)
		return reason;
	if (from->flags & PORT_CAPTURE)
		capture(skb, p->ifindex, p->slot, beside(p, &tag), CAPTURE_FROM_GUEST, DROP_NONE);
	reason = port_network(skb, p, &tag, from);
	if (reason)
		return reason;
	flags = from->network_flags;
	if (tag.proto) {
		network = bpf_map_lookup_elem(&networks, &p->net);
		flags = network ? network->flags | NETWORK_HERE : 0;
	}
	if (!(flags & NETWORK_HERE))
		return DROP_NETWORK;
	reason = guard(skb, p, from);
	if (reason)
		return reason;
	reason = meter_in(skb, p, from);
	if (reason)
		return reason;
	if (is_shredded(skb))
		return DROP_MALFORMED;
	if (network_bytes(skb, p) > from->mtu)
		return DROP_MTU;
	if (is_replaced(from, check))
		return DROP_NO_PORT;
	if (flags & NETWORK_PROXY && !(from->flags & PORT_NO_PROXY) && answer(skb, p)) {
		*action = send_back(skb, p, from);
		return DROP_NONE;
	}
	/* A firewall of the sender's zone belongs here. */
	if (from->flags & PORT_EXTRAS)
		extras(skb, p);
	return forward(skb, p, from, flags, action);
}

SEC("tcx/ingress")
int port_in(struct __sk_buff *skb)
{
	struct packet p = { .ifindex = skb->ifindex };
	struct port *from = bpf_map_lookup_elem(&ports, &p.ifindex);
	int action = TC_ACT_SHOT;
	__u32 reason = DROP_NO_PORT, check;

	if (from) {
		check = *(const volatile __u32 *)&from->check;
		p.slot = from->slot;
		p.flags = from->flags;
		p.pvlan = from->pvlan;
		p.community = from->community;
		reason = from->flags & PORT_DOWN ? DROP_PORT_DOWN : from_port(skb, &p, from, check, &action);
		if (reason && is_replaced(from, check))
			reason = DROP_NO_PORT; /* not what a rule said of another's row */
	}
	return reason ? drop(skb, &p, reason) : action;
}

SEC("tcx/egress")
int port_out(struct __sk_buff *skb)
{
	struct packet p = {};
	struct port *port;

	if (skb->mark == DROVER_MARK)
		return TC_ACT_UNSPEC;
	p.ifindex = skb->ifindex;
	p.length = skb->len;
	port = bpf_map_lookup_elem(&ports, &p.ifindex);
	if (port) {
		p.slot = port->slot;
		p.net = port->net;
	}
	return drop(skb, &p, DROP_UNMARKED);
}

/* sender fills in what registrations say of a frame's source. It returns DROP_REFLECTED if that is a port of this host. */
static __always_inline __u32 sender(struct packet *p, __u8 pvlan, __u16 community)
{
	struct fdb_key key = { .net = p->net };
	struct fdb_entry *source;

	copy_mac(key.mac, p->src);
	source = bpf_map_lookup_elem(&fdb, &key);
	if (!source) {
		p->pvlan = pvlan ? pvlan : PVLAN_PROMISCUOUS;
		p->community = community;
		return DROP_NONE;
	}
	p->pvlan = source->pvlan;
	p->community = source->community;
	return source->place == PLACE_LOCAL ? DROP_REFLECTED : DROP_NONE;
}

/* arrive delivers a frame from outside to ports of this host, and never elsewhere. */
static __always_inline __u32 arrive(struct __sk_buff *skb, struct packet *p, __u32 network_flags, __u32 team, int *action)
{
	struct fdb_key key = { .net = p->net };
	struct fdb_entry *to;

	if (is_group(p->dst)) {
		*action = TC_ACT_SHOT;
		return flood(skb, p, FLOOD_HERE, 0, team);
	}
	copy_mac(key.mac, p->dst);
	to = bpf_map_lookup_elem(&fdb, &key);
	if (network_flags & NETWORK_WATCHED)
		flood(skb, p, FLOOD_WATCHERS, to && to->place == PLACE_LOCAL ? to->target : 0, 0);
	if (!to)
		return DROP_UNREGISTERED;
	if (to->place != PLACE_LOCAL)
		return DROP_SPLIT_HORIZON;
	return deliver(skb, p, to->target, to->vid, action);
}

/* uplink_news tells frames that switches and hosts send to each other: what kind of punt one is; -1: none of ours; 0: no such frame. */
static __always_inline int uplink_news(struct __sk_buff *skb, const struct packet *p, const struct tag *tag)
{
	__u8 llc[8];

	if (p->proto == ETH_P_LLDP)
		return PUNT_LLDP;
	if (p->proto == ETH_P_BEACON && is_beacon(p->dst))
		return PUNT_BEACON;
	if (!is_reserved(p->dst))
		return 0;
	/* CDP: SNAP of 00000c, protocol 2000 */
	if (p->dst[0] == 1 && p->dst[1] == 0 && p->dst[5] == 0xcc && p->proto < 0x600 && !bpf_skb_load_bytes(skb, ETH_HLEN + tag->in_frame, llc, sizeof(llc)) &&
	    llc[0] == 0xaa && llc[1] == 0xaa && llc[2] == 3 && llc[3] == 0 && llc[4] == 0 && llc[5] == 0x0c && llc[6] == 0x20 && llc[7] == 0)
		return PUNT_CDP;
	return -1;
}

/* from_uplink is what uplink_in does behind rule 1. */
static __always_inline __u32 from_uplink(struct __sk_buff *skb, struct packet *p, const struct uplink *uplink, int *action)
{
	struct uplink_key key = { .ifindex = p->ifindex };
	int shared = uplink->flags & UPLINK_SHARED, news;
	struct tag tag = {};
	struct uplink_vlan *vlan;
	struct network *network;
	__u32 reason, flags;

	reason = parse_ethernet(skb, p, &tag);
	count_in(p->slot, p->length);
	if (reason)
		return reason;
	if (uplink->flags & UPLINK_CAPTURE)
		capture(skb, p->ifindex, p->slot, beside(p, &tag), CAPTURE_FROM_GUEST, DROP_NONE);
	if (shared && same_mac(p->dst, uplink->mac)) {
		*action = TC_ACT_UNSPEC;
		return DROP_NONE;
	}
	news = uplink_news(skb, p, &tag);
	if (news > 0)
		punt(skb, p, news, 0);
	if (news)
		return news > 0 ? DROP_PUNTED : DROP_RESERVED_UPLINK;
	key.vid = tag.vid;
	reason = DROP_NONE;
	if (tag.twice)
		reason = DROP_DOUBLE_TAG;
	else if (tag.proto && tag.proto != ETH_P_8021Q)
		reason = DROP_TAGGED;
	vlan = bpf_map_lookup_elem(&uplink_vlans, &key);
	if (!reason && !vlan)
		reason = DROP_VLAN;
	if (reason || !vlan) {
		if (!shared)
			return reason;
		*action = TC_ACT_UNSPEC;
		return DROP_NONE;
	}
	p->net = vlan->net;
	reason = sender(p, vlan->pvlan, vlan->community);
	if (reason)
		return reason;
	network = bpf_map_lookup_elem(&networks, &p->net);
	if (!network)
		return DROP_NETWORK;
	flags = network->flags;
	if (tag.proto) {
		reason = take_tag(skb, p);
		if (reason)
			return reason;
	}
	if (network_bytes(skb, p) > network->mtu)
		return DROP_MTU;
	if (flags & NETWORK_SNOOPING && is_group(p->dst) && parse_network(skb, p) == DROP_NONE && is_group_news(p))
		punt(skb, p, PUNT_GROUP, 0);
	reason = arrive(skb, p, flags, uplink->team, action);
	if (shared && !tag.vid && is_group(p->dst)) {
		skb->mark = 0;
		*action = TC_ACT_UNSPEC;
		return DROP_NONE;
	}
	return reason;
}

SEC("tcx/ingress")
int uplink_in(struct __sk_buff *skb)
{
	struct packet p = { .ifindex = skb->ifindex, .origin = FROM_UPLINK };
	struct uplink *uplink = bpf_map_lookup_elem(&uplinks, &p.ifindex);
	int action = TC_ACT_SHOT;
	__u32 reason;

	if (!uplink)
		return TC_ACT_UNSPEC;
	p.slot = uplink->slot;
	reason = from_uplink(skb, &p, uplink, &action);
	return reason ? drop(skb, &p, reason) : action;
}

/* from_host believes a tunnel's packet only if a host that the manager named sent it, and says which end that is, which network it is in, and to which
 * of our addresses it went. */
static __always_inline __u32 from_host(struct __sk_buff *skb, struct packet *p, __u32 *host, struct ip_addr *local)
{
	__u32 *id;
	struct bpf_tunnel_key key = {};
	struct ip_addr source = {};

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		map_ip4(&source, bpf_htonl(key.remote_ipv4));
		map_ip4(local, bpf_htonl(key.local_ipv4));
	} else {
		if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
			return DROP_VTEP;
		__builtin_memcpy(&source, key.remote_ipv6, sizeof(source));
		__builtin_memcpy(local, key.local_ipv6, sizeof(*local));
	}
	p->net = key.tunnel_id;
	id = bpf_map_lookup_elem(&vtep_sources, &source);
	if (!id)
		return DROP_VTEP;
	*host = *id;
	return DROP_NONE;
}

/*
 * is_private says whether frames of encrypted networks may come from a tunnel end. Anybody can write an address from inside the tunnel as source into a
 * packet to this host's open address; to that inside the tunnel no router carries it.
 */
static __always_inline bool is_private(__u32 host, const struct ip_addr *local)
{
	struct vtep *vtep = bpf_map_lookup_elem(&vteps, &host);

	return vtep && vtep->flags & VTEP_PRIVATE && (is_unspecified(&vtep->local) || same_ip(&vtep->local, local));
}

/* from_tunnel is all of tunnel_in. */
static __always_inline __u32 from_tunnel(struct __sk_buff *skb, struct packet *p, int *action)
{
	struct ip_addr local = {};
	struct tag tag = {};
	struct network *network;
	__u32 reason, flags, host = 0;

	p->length = skb->len;
	count_in(p->slot, p->length);
	reason = from_host(skb, p, &host, &local);
	if (reason)
		return reason;
	network = bpf_map_lookup_elem(&networks, &p->net);
	if (!network || !(network->flags & NETWORK_OVERLAY))
		return DROP_NETWORK;
	flags = network->flags;
	if (flags & NETWORK_ENCRYPTED && !is_private(host, &local))
		return DROP_VTEP;
	reason = parse_ethernet(skb, p, &tag);
	if (reason)
		return reason;
	if (tag.proto)
		return DROP_TAGGED;
	reason = sender(p, PVLAN_PROMISCUOUS, 0);
	if (reason)
		return reason;
	return arrive(skb, p, flags, 0, action);
}

SEC("tcx/ingress")
int tunnel_in(struct __sk_buff *skb)
{
	struct packet p = { .ifindex = skb->ifindex, .origin = FROM_TUNNEL };
	int action = TC_ACT_SHOT;
	__u32 reason = from_tunnel(skb, &p, &action);

	return reason ? drop(skb, &p, reason) : action;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
