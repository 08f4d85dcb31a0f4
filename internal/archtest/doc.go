// Package archtest holds the rules of docs/ARCHITECTURE.md as a test.
//
// # Purpose
//
// Its test reads the module's own sources and fails when a package imports
// upwards, reaches into a foreign world that another package owns, stops being
// pure, lacks its doc.go, grows a file too long, sleeps, makes a context of its
// own, or has an init function. It also draws the package diagram in
// docs/ARCHITECTURE.md from the real imports:
//
//	go test ./internal/archtest -update
//
// A new package is added to the table in layers.go, at the lowest row from
// which it can see what it needs.
//
// # Main types
//
// [Tree] is the parsed module; a [Rule] looks at it and returns each
// [Violation]; [Allowance] is an exception with its reason; [Diagram] draws.
//
// # Invariants
//
// A rule never runs anything and never needs more than the sources. No rule is
// without a self-test in testdata that shows it fail. An exception that is not
// needed any more is never left standing.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// What linters do better: unused code, error handling, formatting.
package archtest
