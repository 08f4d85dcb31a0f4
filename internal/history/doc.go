// Package history keeps what is too much for the state store in one bounded SQLite file: metrics, events, audit
// records, task logs.
//
// # Purpose
//
// Append in batches, ask by object and time, forget by age and size. Metric samples are rolled up into 5 minutes and
// 1 hour, so that a long range stays cheap and outlives the samples. For more than that there is the user's own
// collector.
//
// # Main types
//
// DB is the open file. Options and Limits say where it is and how much it keeps. Batch is what Append takes. Sample is one
// measurement; Event, AuditRecord and Series are the API's own messages.
//
// # Invariants
//
// Append never returns nil before the batch is on disk, and a batch is never half there. Only the writer goroutine ever
// writes. The file never grows far past Limits.Bytes: what is old goes first, audit records last. A corrupt
// file never stops the manager: it is moved aside, said so in the log, and a new one begun; a file of a newer schema is never touched.
//
// # Lock order
//
// DB.mu guards the reader handle while a corrupt file is replaced; the writer takes it alone, readers share it for
// the time of a query.
//
// # Not here
//
// What is measured and when (manager, host), Prometheus (their /metrics), desired and actual state (store).
package history
