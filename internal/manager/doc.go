// Package manager is the role that knows the whole installation: it keeps the resources, decides, and tells hosts.
//
// # Purpose
//
// The domain behind the API: what may be created, changed and deleted, where VMs are placed, which host owns them,
// long operations, history, people, and the conversation with the hosts.
//
// # Main types
//
// Manager is the role, made by Open from Config and run by Run. Registry is one kind of resource: read from a
// copy in memory, written by compare-and-swap. Nodes are the connections to hosts. board is the switch as it is worked out of VMs, networks,
// profiles and the hosts' reports: ports and registrations. pointView are the restore points as the vaults of their repositories told them last. scheduler makes
// the runs of backup policies.
//
// # Invariants
//
// status.owner and status.epoch of a VM never change but together and by compare-and-swap. A report of a host about a VM that
// it doesn't own in the present epoch never changes anything. A VM's record never goes before its owner has said that nothing
// of it is left, or the host was given up by force. No two NICs ever have the same MAC address. A secret never leaves by a
// Get, List or Watch. Nothing is told to a user as done before it is in the store. The number of a network never
// changes. A MAC is registered for one port of a network at a time, and never for another than the NIC that has it. No host is told to
// forget a registration because another host has not been heard yet. No passphrase, and no secret of storage or webhooks, is ever in the store. No run of a policy
// is forgotten or made twice, whenever the manager is killed: its task is named in a record before there is one. No point is pruned that its policy did not
// make, that is kept by hand, or that is the only whole one of a VM that exists.
//
// # Lock order
//
// admission (held over "look at what is used, then give it away") is taken before any lock of a cache. board.mu is taken before locks of caches. hub.mu
// and nodes.mu are leaves; so are pointView.mu but for the cache that it feeds, scheduler.mu, gate.mu and browsers.mu.
//
// # Not here
//
// Wire formats, log-in and permissions of calls (httpapi). What a host does with what it is told (host).
package manager
