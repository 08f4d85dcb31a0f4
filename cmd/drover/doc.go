// Command drover is all of Drover in one binary.
//
// # Purpose
//
// The command tree of package cli, with the commands of packages above it, and the process's exit code.
//
// # Main types
//
// None.
//
// # Invariants
//
// Nothing is decided here: a command that is not of package cli comes whole from its own package.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// The commands (cli, lab) and the roles (manager, host).
package main
