// Package attack lets real attack tools loose on the switch.
//
// # Purpose
//
// A guest attacks its neighbours with what every attacker has: macof, arpspoof, yersinia, thc-ipv6, hping3, ettercap, mausezahn. Its port has the built-in
// profile "secure". Another guest is the victim, a third looks on, and a router stands on the physical side of the uplink. Each is a namespace; the datapath
// between them is the real one, filled by the compiler of the agent.
//
// # Main types
//
// rig is the switch and its guests. watcher sees all that a guest gets and keeps what it should not. attack is one tool with what must come of it.
//
// # Invariants
//
// After each attack: nobody got a frame of it, the reason is counted on the attacker's port, neighbour tables, addresses, routes and registrations are as they
// were, and the victim's own traffic lost nothing meanwhile. The same tools against a port without guards do their harm: the test could see it.
//
// # Lock order
//
// watcher.mu and stream.mu are leaves.
//
// # Not here
//
// Single rules and their order: packages vswitch and vswitch/model.
package attack
