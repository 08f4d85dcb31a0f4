// Package tunnel encrypts what goes between hosts of different sites: WireGuard.
//
// # Purpose
//
// A host has one WireGuard device, whose peers are the other hosts. VXLAN packets to a peer's address inside the tunnel are encrypted on their way.
// Where the kernel has WireGuard, it does the work. Elsewhere a process of its own does, which outlives the agent: no packet waits for one that restarts.
//
// # Main types
//
// Key is a host's key. Config: the device as it should be, with Peers. Tunnel: makes, adopts and changes it. Serve: the process, behind a hidden subcommand
// of the program.
//
// # Invariants
//
//   - A private key is never readable by others: its file and the socket that tells it are root's.
//   - A change of peers never breaks the sessions of peers that stay.
//   - A device that is there is adopted, never made again: its sessions survive the agent.
//   - A peer never sends from an address inside the tunnel that is not its own (WireGuard's allowed IPs).
//
// # Lock order
//
// Tunnel.mu is held while the process is asked; nothing else is locked under it.
//
// # Not here
//
// VXLAN (hostnet), which hosts are peers (vswitch/compile), the addresses inside the tunnel (resource.TunnelAddress).
package tunnel
