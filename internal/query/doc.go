// Package query filters, orders, pages and updates protobuf messages by their field paths.
//
// # Purpose
//
// The list and update half of every API kind: a filter in a subset of AIP-160, an order, pages that resume,
// and field masks; compiled once against a message descriptor, then run over thousands of messages.
//
// The filter: restrictions joined by AND and OR, negated by NOT or a leading "-", grouped by parentheses. As in AIP-160,
// OR binds tighter than AND: a AND b OR c is a AND (b OR c). A restriction is FIELD OP VALUE. FIELD is a path in
// proto or JSON names; through a repeated field it means any element; after a map field the rest is
// the key, quoted if need be: meta.labels."a b". OP is = != < <= > >= or ":", which is substring without case on
// strings, equality on other values, "has the key" on maps, and presence with "*": spec.nics:*. FIELD != v is NOT FIELD = v,
// so it also holds where there is no value. VALUE is a word or a quoted string: numbers (also 4GiB, 500M),
// true and false, enum names with or without their prefix, RFC 3339 times and durations (90s), both quoted where they
// have a ":". A word alone matches what has it in its name.
//
// # Main types
//
// Query is a compiled filter and order: Match, Page. Error is a mistake in one of them, with its position. Apply is the
// field-mask update.
//
// # Invariants
//
// An unknown field is never ignored: it is an error at Compile or Apply. A page never repeats or skips an
// object that was there all along, whatever else comes and goes. A page token never works with another filter, order or
// message type. Messages are never changed, but for Apply's dst, and that only if all of the mask is valid.
// It does no I/O, starts no goroutine and reads no clock.
//
// # Lock order
//
// No locks: a Query is immutable.
//
// # Not here
//
// Where the messages come from (store), which fields a caller may change (the API's services).
package query
