// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* The programs. docs/formats/datapath.md says what each does, and in which order. */
#include "guard.h"

SEC("tcx/ingress")
int port_in(struct __sk_buff *skb)
{
	return TC_ACT_SHOT;
}

SEC("tcx/egress")
int port_out(struct __sk_buff *skb)
{
	return skb->mark == DROVER_MARK ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

SEC("tcx/ingress")
int uplink_in(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

SEC("tcx/ingress")
int tunnel_in(struct __sk_buff *skb)
{
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
