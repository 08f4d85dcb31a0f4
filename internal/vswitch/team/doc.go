// Package team decides which uplinks of a host carry frames now.
//
// # Purpose
//
// A team is a few uplinks that stand in for each other. From what is known of each uplink (its link, its beacons) and the time it follows which are
// active, and for each of the datapath's buckets which uplink it is sent by.
//
// # Main types
//
// Config: a team as somebody wants it. Health: what is known of an uplink. Team: the state machine. View: what it decided. Buckets: uplink by bucket.
//
// # Invariants
//
//   - When an uplink goes, no bucket of another uplink moves.
//   - No two active uplinks' shares differ by more than one bucket, but with PolicyFailover, where one uplink has all.
//   - No bucket is without an uplink while any is up.
//   - An uplink that came back is never used before FailbackDelay has passed, unless nothing else is up.
//   - The same inputs always give the same result.
//
// # Lock order
//
// There are no locks: a Team belongs to one goroutine. Time is handed in.
//
// # Not here
//
// Link state (hostnet), beacons (vswitch/beacon), rows of the datapath (vswitch/compile), frames that tell physical switches (vswitch/announce).
package team
