/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Which addresses are a port's own: what IP guard, ARP inspection and ND inspection ask. */
#ifndef DROVER_BOUND_H
#define DROVER_BOUND_H

#include "packet.h"

/* is_virtual_mac tells MACs that virtual routers share: VRRP and CARP, HSRP 1 and 2, HSRP for IPv6, GLBP. */
static __always_inline bool is_virtual_mac(const __u8 *mac)
{
	if (mac[0])
		return false;
	switch (mac[1] << 8 | mac[2]) {
	case 0x005e:
		return !mac[3] && (mac[4] == 1 || mac[4] == 2);
	case 0x000c:
		return (mac[3] == 0x07 && mac[4] == 0xac) || (mac[3] == 0x9f && (mac[4] & 0xf0) == 0xf0);
	case 0x0573:
		return mac[3] == 0xa0 && !(mac[4] & 0xf0);
	case 0x07b4:
		return true;
	}
	return false;
}

static __always_inline bool same_ip(const struct ip_addr *a, const struct ip_addr *b)
{
	const __u32 *x = (const __u32 *)a->b, *y = (const __u32 *)b->b;

	return x[3] == y[3] && x[2] == y[2] && x[1] == y[1] && x[0] == y[0];
}

static __always_inline bool is_unspecified(const struct ip_addr *a)
{
	const __u32 *x = (const __u32 *)a->b;

	return !(x[0] | x[1] | x[2] | x[3]);
}

/* is_mapped tells an IPv4 address: in an IPv6 header it is a disguise. */
static __always_inline bool is_mapped(const struct ip_addr *a)
{
	const __u32 *x = (const __u32 *)a->b;

	return !x[0] && !x[1] && x[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_link_local(const struct ip_addr *a)
{
	return a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80;
}

/* is_own_link_local tells the link-local address that comes from the MAC, RFC 4291 appendix A. */
static __always_inline bool is_own_link_local(const struct ip_addr *a, const __u8 *mac)
{
	const __u32 *x = (const __u32 *)a->b;

	return x[0] == bpf_htonl(0xfe800000) && !x[1] && a->b[8] == (mac[0] ^ 2) && a->b[9] == mac[1] && a->b[10] == mac[2] &&
	       a->b[11] == 0xff && a->b[12] == 0xfe && a->b[13] == mac[3] && a->b[14] == mac[4] && a->b[15] == mac[5];
}

/* find_binding returns the row that gives ip to this port, unless it is over. */
static __always_inline struct binding *find_binding(const struct packet *p, const struct port *port, const struct ip_addr *ip)
{
	struct binding_key key = { .net = p->net };
	struct binding *b;

	if (!(port->flags & PORT_MORE_IPS))
		return 0;
	__builtin_memcpy(&key.ip, ip, sizeof(key.ip));
	b = bpf_map_lookup_elem(&bindings, &key);
	if (!b || b->ifindex != p->ifindex || (b->expires && b->expires <= bpf_ktime_get_boot_ns()))
		return 0;
	return b;
}

static __always_inline bool is_inline_ip4(const struct port *port, __be32 ip)
{
#pragma unroll
	for (int i = 0; i < INLINE_IP4; i++)
		if (i < port->ip4_count && port->ip4[i] == ip)
			return true;
	return false;
}

static __always_inline bool is_bound_ip4(const struct packet *p, const struct port *port, const struct ip_addr *ip)
{
	return is_inline_ip4(port, ((const __u32 *)ip->b)[3]) || find_binding(p, port, ip);
}

static __always_inline bool is_bound_ip6(const struct packet *p, const struct port *port, const struct ip_addr *ip)
{
#pragma unroll
	for (int i = 0; i < INLINE_IP6; i++)
		if (i < port->ip6_count && same_ip(&port->ip6[i], ip))
			return !is_mapped(ip);
	return is_own_link_local(ip, port->mac) || (!is_mapped(ip) && find_binding(p, port, ip));
}

#endif
