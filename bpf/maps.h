/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * What the datapath knows. Every map, its key and its value; docs/formats/datapath.md says what each means.
 * Layouts are a contract with internal/vswitch (internal/vswitch/table has the same types in Go; a test compares them with the BTF of the object): a change of any layout
 * raises DROVER_LAYOUT, so that an upgrade makes new maps instead of reading old ones wrongly.
 * Structs have no implicit padding: a hash key with unset bytes matches nothing.
 */
#ifndef DROVER_MAPS_H
#define DROVER_MAPS_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define DROVER_LAYOUT 1

/* skb->mark of frames that the datapath itself sends to a port; the egress program drops others. */
#define DROVER_MARK 0x44524f56u

#define MAX_PORTS 4096         /* slots; ports of one host */
#define MAX_FDB 262144         /* registrations */
#define MAX_NETWORKS 16384
#define MAX_MEMBERS 65536      /* rows of flood lists, all networks together */
#define MAX_BINDINGS 131072
#define MAX_TRUNK 65536
#define MAX_VTEPS 4096
#define MAX_GROUPS 65536
#define MAX_UPLINK_VLANS 16384
#define MAX_TEAMS 64
#define TEAM_BUCKETS 64
#define INLINE_IP4 4
#define INLINE_IP6 4
#define PUNT_BYTES 1536
#define EVENT_BYTES 128
#define CAPTURE_BYTES 2048

struct ip_addr { __u8 b[16]; }; /* IPv4 as ::ffff:a.b.c.d, network order */

/* ---- ports: HASH ifindex -> port ------------------------------------------------------------------------------- */

enum port_flag {
	PORT_PROMISCUOUS     = 1 << 0,  /* gets every frame of its networks */
	PORT_FORGED          = 1 << 1,  /* may send from any source MAC */
	PORT_MAC_CHANGES     = 1 << 2,  /* may ask for more MACs (punted, registered by the manager) */
	PORT_TRUNK           = 1 << 3,  /* tags are looked up in trunks */
	PORT_IP_GUARD        = 1 << 4,  /* source IP must be bound to the port */
	PORT_ARP_GUARD       = 1 << 5,  /* ARP inspection */
	PORT_ND_GUARD        = 1 << 6,  /* ND inspection */
	PORT_DHCP_SERVER     = 1 << 7,  /* may answer DHCPv4/v6 */
	PORT_DHCP_SNOOP      = 1 << 8,  /* leases towards it become bindings */
	PORT_ROUTER          = 1 << 9,  /* may send router advertisements and redirects */
	PORT_BPDU            = 1 << 10, /* may send spanning tree frames (never leave the host's ports by it: they are for other VMs) */
	PORT_L2_CONTROL      = 1 << 11, /* may send CDP, LLDP, VTP, DTP, UDLD, LACP, pause … to other VMs */
	PORT_VIRTUAL_ROUTER  = 1 << 12, /* may speak VRRP, HSRP, GLBP, CARP and use their MACs */
	PORT_METER_IN        = 1 << 13, /* rate limit from the guest: meters[slot].in */
	PORT_METER_OUT       = 1 << 14, /* rate limit to the guest: meters[slot].out */
	PORT_STORM           = 1 << 15, /* storm control: meters[slot].broadcast/.multicast/.unknown */
	PORT_MORE_IPS        = 1 << 16, /* bindings has addresses beyond the inline ones */
	PORT_MORE_MACS       = 1 << 17, /* macs has more source MACs */
	PORT_MIRROR_IN       = 1 << 18, /* frames from the guest are mirrored */
	PORT_MIRROR_OUT      = 1 << 19, /* frames to the guest are mirrored */
	PORT_CAPTURE         = 1 << 20, /* frames are copied to the capture ring */
	PORT_PEER            = 1 << 21, /* a veth whose peer is elsewhere: bpf_redirect_peer */
	PORT_MARK            = 1 << 22, /* dscp and cos below are set on frames from the guest */
	PORT_DOWN            = 1 << 23, /* nothing passes (link_down, or being set up) */
	PORT_NO_PROXY        = 1 << 24, /* ARP and ND are not answered by the switch for it */
	PORT_NO_SNOOPING     = 1 << 25, /* gets multicast of every group */
	PORT_PRIORITY        = 1 << 26, /* skb->priority below is set on frames from the guest (guarantee by HTB) */
};

enum pvlan { PVLAN_NONE = 0, PVLAN_PROMISCUOUS = 1, PVLAN_ISOLATED = 2, PVLAN_COMMUNITY = 3 };
enum team_hash { TEAM_BY_PORT = 0, TEAM_BY_MAC = 1, TEAM_BY_IP = 2 };

struct port {
	__u32 check;               /* of all below: the memory of a row that was replaced becomes another's at once, also under a packet that still reads it */
	__u32 slot;                /* index of traffic, meters, gate; < MAX_PORTS */
	__u32 net;                 /* network of untagged frames; 0: none (a trunk without native VLAN) */
	__u32 flags;               /* enum port_flag */
	__u32 team;                /* index of teams */
	__u8  mac[6];
	__u8  pvlan;               /* enum pvlan */
	__u8  team_hash;           /* enum team_hash */
	__u16 community;           /* of PVLAN_COMMUNITY */
	__u16 mtu;                 /* of the network: bytes after the Ethernet header and tag */
	__u8  dscp;                /* 0..63; 255: leave */
	__u8  cos;                 /* 0..7 on the uplink's tag; 255: leave */
	__u8  ip4_count;
	__u8  ip6_count;
	__u32 bucket;              /* TEAM_BY_PORT: of teams.bucket, < TEAM_BUCKETS */
	__u32 priority;            /* skb->priority: an HTB class */
	__u32 mirror_ifindex;      /* SPAN: a port of this host; 0: none, or by the capture ring (ERSPAN) */
	__u32 generation;          /* of the policy */
	__u32 network_flags;       /* of the row of net, and NETWORK_HERE; 0: it has none. A copy, as every frame would pay for the lookup */
	__u16 uplink_vid;          /* of frames in net on the uplinks: its role's VLAN in a private VLAN; 0: the network's vid */
	__u16 pad;
	__u32 ip4[INLINE_IP4];     /* network order */
	struct ip_addr ip6[INLINE_IP6];
};

/* ---- fdb: HASH {net, mac} -> where ------------------------------------------------------------------------------ */

struct fdb_key { __u32 net; __u8 mac[6]; __u16 pad; };
enum place { PLACE_LOCAL = 1, PLACE_UPLINK = 2, PLACE_TUNNEL = 3 };
struct fdb_entry {
	__u32 target;              /* LOCAL: ifindex; TUNNEL: key of vteps; UPLINK: 0 */
	__u8  place;               /* enum place */
	__u8  pvlan;
	__u16 community;
	__u16 vid;                 /* LOCAL: tag to push for a trunk port; 0: none */
	__u16 pad;
};

/* ---- networks: HASH net -> network ------------------------------------------------------------------------------ */

enum network_flag {
	NETWORK_UPLINK   = 1 << 0,  /* has a physical side on this host */
	NETWORK_OVERLAY  = 1 << 1,
	NETWORK_SNOOPING = 1 << 2,  /* multicast goes to members of the group only */
	NETWORK_WATCHED  = 1 << 3,  /* a promiscuous port of it is on this host */
	NETWORK_PROXY    = 1 << 4,  /* ARP and ND are answered from registration */
	NETWORK_ENCRYPTED = 1 << 5, /* between sites: frames come from ends with VTEP_PRIVATE only */
	NETWORK_HERE     = 1 << 30, /* in port.network_flags alone */
};
struct network {
	__u32 flags;
	__u32 team;
	__u32 members;             /* rows of members: 0 … members-1 */
	__u16 vid;                 /* on the uplinks; 0: untagged */
	__u16 mtu;
};

/* ---- members: HASH {net, row} -> who gets broadcasts -------------------------------------------------------------- */

struct member_key { __u32 net; __u32 row; };
struct member {
	__u32 target;              /* as fdb_entry */
	__u8  place;               /* LOCAL or TUNNEL; the uplink is in the network */
	__u8  pvlan;
	__u16 community;
	__u16 vid;
	__u8  flags;               /* enum member_flag */
	__u8  pad;
};
enum member_flag {
	MEMBER_ALL_GROUPS  = 1 << 0, /* gets multicast of every group: a multicast router, or snooping is off for it */
	MEMBER_PROMISCUOUS = 1 << 1,
};

/* groups: HASH {net, group, target} -> 1: who listens to a multicast group. target as in member. */
struct group_key { __u32 net; __u32 target; struct ip_addr group; __u32 place; };

/* ---- bindings: HASH {net, ip} -> who has an address: IP guard, ARP and ND inspection and their answers ---------- */

struct binding_key { __u32 net; struct ip_addr ip; };
struct binding {
	__u32 ifindex;             /* of the port on this host; 0: elsewhere */
	__u8  mac[6];
	__u8  source;              /* enum binding_source */
	__u8  pad;
	__u32 pad2;
	__u64 expires;             /* bpf_ktime_get_boot_ns; 0: never */
};
enum binding_source { BINDING_ASSIGNED = 1, BINDING_DHCP = 2, BINDING_PROVISIONAL = 3, BINDING_REMOTE = 4, BINDING_VIRTUAL = 5 };

/* macs: HASH {ifindex, mac} -> 1: source MACs of a port besides its own. */
struct mac_key { __u32 ifindex; __u8 mac[6]; __u16 pad; };

/* trunks: HASH {ifindex, vid} -> network of a guest's tag. */
struct trunk_key { __u32 ifindex; __u32 vid; };

/* uplink_vlans: HASH {ifindex, vid} -> which network a frame from an uplink is in. */
struct uplink_key { __u32 ifindex; __u32 vid; };
struct uplink_vlan { __u32 net; __u8 pvlan; __u8 pad; __u16 community; };

/* uplinks: HASH ifindex -> uplink. */
enum uplink_flag {
	UPLINK_SHARED = 1 << 0,    /* the machine uses it too: what is for no VM goes on to the kernel */
	UPLINK_CAPTURE = 1 << 1,
};
struct uplink { __u32 slot; __u32 team; __u32 flags; __u8 mac[6]; __u16 pad; };

/* teams: ARRAY. bucket[i] is an uplink's ifindex, or 0 when none is up. With any hash but TEAM_BY_IP, broadcasts from an uplink
 * reach a port only by the uplink that its own bucket names, so that no port gets them twice. */
struct team { __u32 bucket[TEAM_BUCKETS]; __u32 hash; __u32 pad; };

/* vteps: HASH id -> tunnel endpoint; vtep_sources: HASH address -> id, the only sources that are believed. */
enum vtep_flag {
	VTEP_PRIVATE = 1 << 0,     /* encrypted, or of a host of this site: frames of encrypted networks may come from it */
};
struct vtep {
	struct ip_addr addr;
	__u32 family;              /* AF_INET 2, AF_INET6 10 */
	__u32 ifindex;             /* the VXLAN device */
	struct ip_addr local;      /* this host's outer address; 0: as the route says */
	__u32 flags;               /* enum vtep_flag */
};

/* ---- meters: ARRAY slot ------------------------------------------------------------------------------------------- */

struct bucket { __u64 rate; /* bytes or packets per second; 0: no limit */ __u64 burst; __u64 tokens; /* not used */ __u64 stamp; /* when it is full again, 1/16 ns of ktime */ };
struct meter { struct bucket in, out, broadcast, multicast, unknown, dhcp, punt; };

/* ---- counters ----------------------------------------------------------------------------------------------------- */

struct traffic { __u64 in_packets, in_bytes, out_packets, out_bytes; }; /* in: from the guest or wire into the switch */
struct drop_key { __u32 slot; __u32 reason; };
struct drop_count { __u64 packets, bytes; };

/* Why a frame was dropped. Numbers are for ever: counters and events are kept by them. Names and words: internal/vswitch/reason.go. */
enum reason {
	DROP_NONE = 0,
	DROP_NO_PORT = 1,            /* no policy loaded for the device */
	DROP_PORT_DOWN = 2,
	DROP_MALFORMED = 3,          /* shorter than its headers, lengths that contradict each other */
	DROP_TAGGED = 4,             /* a tag on an access port, priority tags too */
	DROP_DOUBLE_TAG = 5,
	DROP_VLAN = 6,               /* a VLAN that the trunk, or the uplink, does not carry */
	DROP_SOURCE_MAC = 7,
	DROP_NEW_MAC = 8,            /* not registered yet; asked for */
	DROP_BPDU = 9,
	DROP_L2_CONTROL = 10,
	DROP_ARP = 11,               /* ARP that claims what is not the port's */
	DROP_SOURCE_IP = 12,
	DROP_ND = 13,
	DROP_RA = 14,
	DROP_DHCP_SERVER = 15,
	DROP_DHCP_RATE = 16,
	DROP_VIRTUAL_ROUTER = 17,
	DROP_STORM_BROADCAST = 18,
	DROP_STORM_MULTICAST = 19,
	DROP_STORM_UNKNOWN = 20,
	DROP_RATE_IN = 21,
	DROP_RATE_OUT = 22,
	DROP_MTU = 23,
	DROP_UNREGISTERED = 24,      /* destination that nobody registered, and no uplink to try */
	DROP_HAIRPIN = 25,           /* back to where it came from */
	DROP_SPLIT_HORIZON = 26,     /* from uplink or tunnel to uplink or tunnel */
	DROP_PVLAN = 27,
	DROP_REFLECTED = 28,         /* from an uplink, with a source MAC of this host */
	DROP_NOT_ACTIVE = 29,        /* broadcast from an uplink that is not the port's */
	DROP_VTEP = 30,              /* tunnel packet from an address that is no host's, or not encrypted though its network is */
	DROP_NETWORK = 31,           /* no such network here */
	DROP_NO_UPLINK = 32,         /* all uplinks are down */
	DROP_UNMARKED = 33,          /* to a port, but not by the datapath */
	DROP_REDIRECT = 34,          /* the kernel refused a copy */
	DROP_FRAGMENT = 35,          /* fragments that hide what guards must see (RFC 6980, RFC 7113) */
	DROP_SOURCE_MULTICAST = 36,  /* group bit in the source MAC */
	DROP_ZONE = 37,              /* the zone firewall */
	DROP_RESERVED_UPLINK = 38,   /* link-local control frames from an uplink: BPDU and such, ignored */
	DROP_PUNTED = 39,            /* taken by user space: LLDP, CDP, beacons */
	DROP_ANSWERED = 40,          /* ARP or ND, answered by the switch: no loss, kept out of the drop counters */
	DROP_DHCP_CLIENT = 41,       /* a DHCP request for a MAC that it does not come from */
	DROP_REASONS = 64,
};

/* gate: ARRAY slot -> when each reason was last told, so that a flood is one event a second. */
struct gate { __u64 last[DROP_REASONS]; __u32 since[DROP_REASONS]; };

/* ---- rings -------------------------------------------------------------------------------------------------------- */

struct event {                 /* RINGBUF events */
	__u64 time;                /* bpf_ktime_get_boot_ns */
	__u32 ifindex;
	__u32 slot;
	__u32 net;
	__u32 reason;
	__u32 count;               /* drops for this reason since the last event, this one included */
	__u32 length;              /* of the frame */
	__u16 vid;                 /* tag that was taken off, with 0x1000 set if there was one */
	__u16 captured;            /* bytes of data */
	__u32 pad;
	__u8  data[EVENT_BYTES];
};

enum punt_kind { PUNT_DHCP = 1, PUNT_GROUP = 2 /* IGMP, MLD */, PUNT_LLDP = 3, PUNT_CDP = 4, PUNT_BEACON = 5, PUNT_NEW_MAC = 6, PUNT_VIRTUAL = 7 /* VRRP, HSRP … */ };
struct punt {                  /* RINGBUF punts: copies for user space's slow path; the frame itself goes its way */
	__u64 time;
	__u32 ifindex;             /* where it came in */
	__u32 slot;
	__u32 net;
	__u32 kind;
	__u32 length;
	__u32 to_ifindex;          /* PUNT_DHCP: the port that it goes to, 0 if not one port */
	__u16 vid;
	__u16 captured;
	__u32 pad;
	__u8  data[PUNT_BYTES];
};

enum capture_point { CAPTURE_FROM_GUEST = 1 /* before policy */, CAPTURE_ACCEPTED = 2 /* from the guest, after policy */, CAPTURE_TO_GUEST = 3 /* delivered */, CAPTURE_DROPPED = 4 };
struct capture {               /* RINGBUF captures */
	__u64 time;
	__u32 ifindex;
	__u32 slot;
	__u32 point;
	__u32 reason;              /* of CAPTURE_DROPPED */
	__u32 length;
	__u32 gso_size;
	__u16 vid;
	__u16 captured;
	__u32 pad;
	__u8  data[CAPTURE_BYTES];
};

/* ---- the maps ------------------------------------------------------------------------------------------------------ */

#define PINNED_HASH(NAME, KEY, VALUE, MAX)                 \
	struct {                                           \
		__uint(type, BPF_MAP_TYPE_HASH);           \
		__type(key, KEY);                          \
		__type(value, VALUE);                      \
		__uint(max_entries, MAX);                  \
		__uint(map_flags, BPF_F_NO_PREALLOC);      \
		__uint(pinning, LIBBPF_PIN_BY_NAME);       \
	} NAME SEC(".maps")

#define PINNED_ARRAY(TYPE, NAME, VALUE, MAX)               \
	struct {                                           \
		__uint(type, TYPE);                        \
		__type(key, __u32);                        \
		__type(value, VALUE);                      \
		__uint(max_entries, MAX);                  \
		__uint(pinning, LIBBPF_PIN_BY_NAME);       \
	} NAME SEC(".maps")

#define PINNED_RING(NAME, BYTES)                           \
	struct {                                           \
		__uint(type, BPF_MAP_TYPE_RINGBUF);        \
		__uint(max_entries, BYTES);                \
		__uint(pinning, LIBBPF_PIN_BY_NAME);       \
	} NAME SEC(".maps")

PINNED_HASH(ports, __u32, struct port, MAX_PORTS);
PINNED_HASH(fdb, struct fdb_key, struct fdb_entry, MAX_FDB);
PINNED_HASH(networks, __u32, struct network, MAX_NETWORKS);
PINNED_HASH(members, struct member_key, struct member, MAX_MEMBERS);
PINNED_HASH(groups, struct group_key, __u8, MAX_GROUPS);
PINNED_HASH(bindings, struct binding_key, struct binding, MAX_BINDINGS);
PINNED_HASH(macs, struct mac_key, __u8, MAX_BINDINGS);
PINNED_HASH(trunks, struct trunk_key, __u32, MAX_TRUNK);
PINNED_HASH(uplinks, __u32, struct uplink, 64);
PINNED_HASH(uplink_vlans, struct uplink_key, struct uplink_vlan, MAX_UPLINK_VLANS);
PINNED_ARRAY(BPF_MAP_TYPE_ARRAY, teams, struct team, MAX_TEAMS);
PINNED_HASH(vteps, __u32, struct vtep, MAX_VTEPS);
PINNED_HASH(vtep_sources, struct ip_addr, __u32, MAX_VTEPS);
PINNED_ARRAY(BPF_MAP_TYPE_ARRAY, meters, struct meter, MAX_PORTS);
PINNED_ARRAY(BPF_MAP_TYPE_ARRAY, gates, struct gate, MAX_PORTS);
PINNED_ARRAY(BPF_MAP_TYPE_PERCPU_ARRAY, counters, struct traffic, MAX_PORTS);
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__type(key, struct drop_key);
	__type(value, struct drop_count);
	__uint(max_entries, MAX_PORTS * 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} drops SEC(".maps");
PINNED_ARRAY(BPF_MAP_TYPE_ARRAY, provisional, struct binding_key, MAX_PORTS); /* by slot: the last binding that the datapath made for it */
PINNED_RING(events, 1 << 20);
PINNED_RING(punts, 1 << 21);
PINNED_RING(captures, 1 << 22);

#endif
