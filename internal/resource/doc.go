// Package resource is the vocabulary: names, labels, identifiers, defaults and validation of what the API's
// messages describe.
//
// # Purpose
//
// Whether a resource makes sense by itself, before anything else is looked at. Whether it fits the others (a
// network that must exist, a name that must be free) is the manager's to say.
//
// # Main types
//
// Error is the one error that reaches people: a code, the object, the field, what is wrong and what to do.
// Kind names the kinds. Check… functions collect every fault of a resource, not only the first.
//
// # Invariants
//
// A resource that passed its check never has a name, path or address that means something to a shell, a file
// system or QEMU. Defaults are only filled in, what a user said is never changed. Nothing here does I/O.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// Storage (store), the tables of hardware (guest), permissions (auth).
package resource
