// Package table sets rows of text in columns.
//
// # Purpose
//
// Tables that people read, aligned whatever characters are in them, coloured only where the caller knows a terminal.
//
// # Main types
//
// Table is headers and rows of Cells.
//
// # Invariants
//
// What a cell holds never reaches the terminal as a control sequence: Clean takes them out. Lines never end in blanks.
//
// # Lock order
//
// No locks.
//
// # Not here
//
// What the columns are (cli), sizes and ages (unit).
package table
