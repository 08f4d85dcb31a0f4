/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The Ethernet header and its tags. */
#ifndef DROVER_TAG_H
#define DROVER_TAG_H

#include "packet.h"

#ifndef ETH_P_QINQ1
#define ETH_P_QINQ1 0x9100
#endif

/* What a program cannot see from the frame alone: a tag may be beside it, where the kernel keeps the outermost. */
struct tag {
	__u16 vid;                 /* of the outer tag */
	__u16 proto;               /* its EtherType, host order; 0: no tag */
	__u8  in_frame;            /* bytes of the frame that the outer tag takes: 4, or 0 */
	__u8  twice;               /* a tag behind the tag */
};

static __always_inline bool is_tag(__u16 proto)
{
	return proto == ETH_P_8021Q || proto == ETH_P_8021AD || proto == ETH_P_QINQ1;
}

/* parse_ethernet fills MACs, EtherType and length of p, and finds out about tags. It takes nothing off. */
static __always_inline __u32 parse_ethernet(struct __sk_buff *skb, struct packet *p, struct tag *tag)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct { __be16 tci, proto; } *in;

	p->length = skb->len;
	if (data + sizeof(*eth) > data_end) {
		if (p->length < sizeof(*eth) || bpf_skb_pull_data(skb, sizeof(*eth)))
			return DROP_MALFORMED;
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
		eth = data;
		if (data + sizeof(*eth) > data_end)
			return DROP_MALFORMED;
	}
	copy_mac(p->dst, eth->h_dest);
	copy_mac(p->src, eth->h_source);
	p->proto = bpf_ntohs(eth->h_proto);
	if (is_group(p->src))
		return DROP_SOURCE_MULTICAST;
	if (skb->vlan_present) {
		tag->proto = bpf_ntohs(skb->vlan_proto);
		tag->vid = skb->vlan_tci & 0xfff;
		tag->twice = is_tag(p->proto);
	} else if (is_tag(p->proto)) {
		if (data + sizeof(*eth) + 4 > data_end) {
			if (p->length < sizeof(*eth) + 4 || bpf_skb_pull_data(skb, sizeof(*eth) + 4))
				return DROP_MALFORMED;
			data = (void *)(long)skb->data;
			data_end = (void *)(long)skb->data_end;
			if (data + sizeof(*eth) + 4 > data_end)
				return DROP_MALFORMED;
		}
		in = data + sizeof(*eth);
		tag->proto = p->proto;
		tag->vid = bpf_ntohs(in->tci) & 0xfff;
		tag->in_frame = 4;
		p->proto = bpf_ntohs(in->proto);
		tag->twice = is_tag(p->proto);
	}
	if (tag->proto)
		p->vid = 0x1000 | tag->vid;
	return DROP_NONE;
}

/* beside is the tag as captures want it: only when it is not in the frame anyway. */
static __always_inline __u16 beside(const struct packet *p, const struct tag *tag)
{
	return tag->in_frame ? 0 : p->vid;
}

/* take_tag takes the tag off the frame. */
static __always_inline __u32 take_tag(struct __sk_buff *skb, struct packet *p)
{
	if (bpf_skb_vlan_pop(skb))
		return DROP_MALFORMED;
	p->length = skb->len;
	return DROP_NONE;
}

/* port_network is rule 3 of a port: it says which network the frame is in and takes the tag off. */
static __always_inline __u32 port_network(struct __sk_buff *skb, struct packet *p, const struct tag *tag, const struct port *port)
{
	struct trunk_key key = { .ifindex = p->ifindex, .vid = tag->vid };
	__u32 *net;

	if (!tag->proto) {
		p->net = port->net;
		return p->net ? DROP_NONE : DROP_VLAN;
	}
	if (tag->twice)
		return DROP_DOUBLE_TAG;
	if (!(port->flags & PORT_TRUNK) || !tag->vid || tag->proto != ETH_P_8021Q)
		return DROP_TAGGED;
	net = bpf_map_lookup_elem(&trunks, &key);
	if (!net)
		return DROP_VLAN;
	p->net = *net;
	return take_tag(skb, p);
}

#endif
