// Package policy decides when backups run, which restore points are kept, and how a VM stands. It is pure.
//
// # Purpose
//
// Calendar expressions and windows, recovery point objectives, retention with reasons, what is due now and later within bounds on load, and
// whether a VM is protected. The manager gives it the time and what it knows; the preview is the same code with a later time.
//
// # Main types
//
// [Schedule] is a calendar expression, [Window] a time in which runs may begin. [Retention] chooses points. [Plan] chooses what starts now. [State] is how a VM stands.
//
// # Invariants
//
// Nothing here reads a clock or does I/O. Equal input gives equal output. The only point of a VM that still exists is never pruned, and no point that is
// kept by hand. A schedule has one due time for each day and time of day that it names, also on days when the clocks change. No run is due twice.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Who runs backups, and what was run: the manager. What a point is: backup.
package policy
