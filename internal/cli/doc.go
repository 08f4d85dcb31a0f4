// Package cli is the command line.
//
// # Purpose
//
// Every command of the program: the roles, whose flags become the configuration of manager and host, and the client, which
// talks to the API and to nothing else. New builds the tree, Main runs it and turns errors into a line, a hint and an exit
// code. The package is larger than most because it has a file for each noun; what is not a command is below it: unit, table,
// manifest, client.
//
// # Main types
//
// App is what all commands share: streams, environment, clock, the way to the manager. kind is one kind of resource: its calls
// and its columns; lists, tables, completion, get, apply and delete are made from it.
//
// # Invariants
//
// A terminal is never left in raw mode. A secret never stands in an argument, a log or an error. What a server or a guest says
// never reaches the terminal as a control sequence, but for the console and the output of exec, which are the guest's. Colours
// and moving lines are never written to what is not a terminal. An exit code never means two things; exit.go has all of them.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// The lab's commands: they are handed in as App.More, since the lab stands above this package.
package cli
