// Package httpapi is the manager's surface: the API over HTTP, with who may call what, and what is written down of it.
//
// # Purpose
//
// Connect handlers over the manager's domain; authentication of each request and permission for each procedure in one table;
// the audit log; image files for hosts, uploads, VNC over websockets, Prometheus metrics.
//
// # Main types
//
// Run opens a manager and serves it. Server is what listens. calls is the table of procedures.
//
// # Invariants
//
// No procedure is served that is not in the table of calls. Nothing but log-in, enrolment and the health check answers a caller who isn't known. A
// call that changed something, or tried to, is in the audit log before its answer is sent. No secret is written there,
// and nothing that a guest said. What unknown callers try is only counted, so that they can't fill it.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// What calls mean (manager), how passwords and tokens work (auth), errors and codecs (rpc).
package httpapi
