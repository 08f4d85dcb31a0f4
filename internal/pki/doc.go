// Package pki is Drover's own certificate authority: who a process is, and how
// a new host comes to be known.
//
// # Purpose
//
// Every connection between Drover's processes is mutual TLS 1.3 under one CA
// that the manager makes at its first start. The package creates and loads that
// CA, issues the short-lived certificates of managers and hosts, renews them
// without a restart, builds every tls.Config, tells a handler which process it
// talks to, and makes the one-time tokens with which hosts join.
//
// Names. A certificate says who its holder is three times over, each for one
// reader: CN "host:NAME" for people, URI SAN "drover://host/UID" for the
// program, and DNS SAN "UID.host.drover.internal" for TLS, so that a client
// verifies the process it means, whatever address it dialled. A manager's DNS
// SAN is "manager.drover.internal". Further DNS names and addresses are added
// for browsers.
//
// # Main types
//
// [CA] issues; [Identity] is what a certificate says; [Credential] is a
// process's own key and certificate, replaced while in use; [Trust] is whom a
// process believes; [JoinToken] and [Joins] bring in new hosts.
//
// # Invariants
//
// Nothing in a certificate request but its public key ever reaches a
// certificate. A private key is never on disk with a mode wider than 0600, and
// a file is never seen half written. An existing CA is never overwritten. A
// join secret is never stored, only its hash, and never lets in two keys. A
// client never accepts a peer for a role that the peer's certificate does not
// carry: a host cannot pose as the manager. A chain that was not verified never
// yields an [Identity].
//
// # Lock order
//
// Credential.mu only; nothing is called with it held but the file write that
// makes a replacement durable. Readers take no lock.
//
// # Not here
//
// Whether a host is still a member: the manager's registry knows, and answers
// through the Admit hook of [ServerOptions], once per handshake, and again per
// request through [FromState]. Storage of join records: see [JoinStore].
// People: package auth. Change of the CA itself: [Trust] already holds several
// roots, so that a new one can be spread before the first certificate under it.
package pki
