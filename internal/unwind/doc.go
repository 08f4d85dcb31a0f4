// Package unwind is an undo stack for changes to the host.
//
// # Purpose
//
// A sequence of host changes (a link, an address, a file, a process) either
// happens whole or leaves nothing behind. Each step that changed something pushes
// how to take it back; when the sequence fails, or panics, the steps are taken
// back in reverse.
//
//	func up(ctx context.Context) (err error) {
//		var u unwind.Stack
//		defer u.Undo(ctx, &err)
//		…
//		u.Push("delete bridge br0", func(ctx context.Context) error { … })
//		…
//		u.Commit()
//		return nil
//	}
//
// # Main types
//
// Stack.
//
// # Invariants
//
//   - A pushed step never runs twice, and never after Commit.
//   - A failing or panicking step never keeps the steps below it from running.
//   - The end of the caller's context never keeps a step from running.
//   - An undo error never hides the error that caused the undo.
//
// # Lock order
//
// Stack.mu is a leaf: no step runs under it.
//
// # Not here
//
// Persistence: what must survive the process is written down by its owner and
// found again by observation.
package unwind
