// Package rpc is what servers and clients of the API share.
//
// # Purpose
//
// One place where errors become Connect errors and back, one strict JSON codec, one way to dial.
//
// # Main types
//
// Options are for handlers and clients. Error and FromError map resource.Error to connect.Error and back.
// Dialer makes HTTP clients for a Unix socket, for a bearer token over TLS, and for mutual TLS.
//
// # Invariants
//
// An error that isn't a resource.Error never tells its text to the other side, only that something broke and where to look.
// A request with a field that this version does not know is never half understood: it is refused.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Handlers (httpapi, host), permissions (auth), certificates (pki).
package rpc
