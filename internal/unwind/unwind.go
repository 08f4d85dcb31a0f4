package unwind

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Grace is how long all steps of one Undo may take together once the caller's
// own context has ended.
const Grace = 30 * time.Second

// Stack collects undo steps. The zero value is ready. A nil *Stack takes
// steps and forgets them, for callers that don't want to undo.
type Stack struct {
	mu    sync.Mutex
	steps []step
}

type step struct {
	what string
	undo func(context.Context) error
}

// Push adds a step that takes back something just done. what completes the
// sentence "cannot …" in an error: "delete bridge br0".
func (s *Stack) Push(what string, undo func(context.Context) error) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{what, undo})
}

// Len is the number of steps that an Undo would run now.
func (s *Stack) Len() int {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.steps)
}

// Commit keeps what was done: it forgets the steps.
func (s *Stack) Commit() { s.take() }

// Undo runs the steps, last first, unless they were committed, and joins what
// failed to *err. It is meant to be deferred; err may be nil.
func (s *Stack) Undo(ctx context.Context, err *error) {
	steps := s.take()
	if len(steps) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Grace)
	defer cancel()
	var failed []error
	for i := len(steps) - 1; i >= 0; i-- {
		if e := steps[i].run(ctx); e != nil {
			failed = append(failed, fmt.Errorf("undo: cannot %s: %w", steps[i].what, e))
		}
	}
	if err != nil && len(failed) > 0 {
		*err = errors.Join(append([]error{*err}, failed...)...)
	}
}

func (s *Stack) take() []step {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	steps := s.steps
	s.steps = nil
	return steps
}

// run turns a panic of one step into its error, so that the rest still run.
func (st step) run(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return st.undo(ctx)
}
