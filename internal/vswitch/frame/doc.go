// Package frame makes Ethernet frames from a short description, and one line of text from a frame.
//
// # Purpose
//
// People describe a packet ("arp who-has 10.0.0.1") and ask what the switch would do with it; events and traces show frames to people. Tests make
// frames the same way.
//
// # Main types
//
// Describe makes a frame; Env is what it fills in by itself. Summary is the line. Error says where a description is wrong and what would be right.
//
// # Grammar
//
//	packet  = { option } body
//	option  = "from" MAC | "to" MAC | "vlan" 0..4095 | "size" 14..9018
//	body    = "arp" "who-has" IP [ "tell" IP ] | "arp" "reply" IP "is-at" MAC | "arp" "probe" IP | "arp" "announce" IP
//	        | "tcp" path { "syn" | "ack" | "fin" | "rst" | "psh" } | "udp" path
//	        | ( "icmp" | "icmp6" ) path [ "request" | "reply" | "unreachable" ]
//	        | "nd" ( "solicit" IP | "advert" IP [ "is-at" MAC ] | "rs" | "ra" | "redirect" IP )
//	        | "dhcp" ( "discover" | "request" IP | "release" IP | "offer" IP | "ack" IP | "nak" )
//	        | "dhcp6" ( "solicit" | "request" | "advertise" | "reply" )
//	        | "igmp" ( "join" GROUP | "leave" GROUP | "query" ) | "mld" ( "join" GROUP | "leave" GROUP | "query" )
//	        | "bpdu" | "pvst" | "lldp" | "cdp" | "lacp" | "pause" | "vrrp" [ ID ] | "hsrp" | "glbp"
//	path    = [ end ">" ] end
//	end     = IP | IPv4 ":" PORT | "[" IPv6 "]" ":" PORT
//
// Without "from" and a source address the port's own are used; without "to" the destination's MAC is looked up. Ports that are not given are 40000 for
// the source and 80 (tcp) or 9 (udp) for the destination. Without flags a tcp segment has syn.
//
// # Invariants
//
//   - Summary never fails: any bytes have a line.
//   - What Describe makes has right lengths and checksums.
//
// # Lock order
//
// There are no locks; nothing here does I/O.
//
// # Not here
//
// What the switch does with a frame (vswitch/model), files of frames (vswitch/pcapng).
package frame
