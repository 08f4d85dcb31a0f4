// Package task runs long operations that outlive the manager.
//
// # Purpose
//
// A task is stored before it is begun. Its handler does it in named steps; a step that is done is noted, so that a
// manager that was killed goes on behind it. A task that fails or is cancelled is undone by the same handler; that it is being
// undone is noted first, so that it is never begun again instead. While the state store is away, a task waits for it.
//
// # Main types
//
// Engine runs tasks. Handler does and undoes one kind. Run is a task being done: steps, progress, notes, log.
//
// # Invariants
//
// No task runs twice at the same time in one engine. A step that was noted as done is never done again; one that
// was not may have been, so steps are idempotent. A task that ended never changes again. What a cancelled or failed task
// had begun is undone before it is said to have ended.
//
// # Lock order
//
// Engine.mu and Run.mu are never held together, nor during I/O.
//
// # Not here
//
// What tasks do (manager), where they are stored (store), their log lines (history).
package task
