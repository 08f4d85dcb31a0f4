// Package client finds a manager and speaks its API.
//
// # Purpose
//
// Which manager a command talks to, over the Unix socket of this machine or over TLS with a token; what of that is remembered
// between commands; and trust in a manager at the first use.
//
// # Main types
//
// Config is the remembered contexts, a file of mode 0600. Target is one manager with what is needed to reach it. Client has a
// stub for every service.
//
// # Invariants
//
// A token is never sent before the manager has proven to stand under the CA that was trusted for it. The file of contexts is
// never half written, and never readable by others.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Flags and questions to people (cli), certificates (pki).
package client
