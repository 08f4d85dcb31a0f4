// Package storetest runs etcd clusters of their own processes for tests.
//
// # Purpose
//
// What users bring when they keep the manager's state in a cluster of theirs: real members, which a test kills.
//
// # Main types
//
// Member is one etcd, a child process of the test. StartCluster makes a cluster of them; MaybeMember is what makes the test binary one.
//
// # Invariants
//
// No member outlives its test. Members listen on loopback only.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// The store itself, and its embedded etcd.
package storetest
