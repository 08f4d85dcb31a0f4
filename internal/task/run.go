package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// progressEvery is how often progress is stored at most.
const progressEvery = 400 * time.Millisecond

// Run is a task being done. Its methods may be called by several goroutines of the handler.
type Run struct {
	engine *Engine
	log    *slog.Logger
	life   context.Context // the engine's
	// Task as it was when this run began; read only.
	Task *v1.Task

	mu       sync.Mutex
	progress float64
	step     string
	stored   time.Time         // when progress was last stored
	notes    map[string]string // set in this run
	done     []string          // finished in this run
	failure  error             // why it is being undone
}

// Step does f unless an earlier run has already done it, and notes that it is done.
func (r *Run) Step(ctx context.Context, name string, f func(ctx context.Context) error) error {
	if r.did(name) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	r.mu.Lock()
	r.step = name
	r.mu.Unlock()
	r.Log("%s", name)
	r.flush(ctx)
	if err := f(ctx); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.mu.Lock()
	r.done = append(r.done, name)
	r.mu.Unlock()
	return r.store(ctx)
}

// did reports whether a step was finished, in this run or an earlier one.
func (r *Run) did(step string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.Task.Status.Done, step) || slices.Contains(r.done, step)
}

// Failure is why the task is being undone; nil while it is done.
func (r *Run) Failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failure
}

// Progress says how far the task is: part, from 0 to 1, of the whole.
func (r *Run) Progress(ctx context.Context, part float64) {
	now := r.engine.cfg.Clock.Now()
	r.mu.Lock()
	r.progress = min(max(part, 0), 1)
	due := now.Sub(r.stored) >= progressEvery
	if due {
		r.stored = now // also if it fails: a store that is away must not hold up the work
	}
	r.mu.Unlock()
	if due {
		r.flush(ctx)
	}
}

// Note is what this task wrote down for itself, in this run or an earlier one.
func (r *Run) Note(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v, ok := r.notes[key]; ok {
		return v
	}
	return r.Task.Status.Notes[key]
}

// SetNote writes something down that a later run needs. It is stored when it returns.
func (r *Run) SetNote(ctx context.Context, key, value string) error {
	r.mu.Lock()
	if r.notes == nil {
		r.notes = map[string]string{}
	}
	r.notes[key] = value
	r.mu.Unlock()
	return r.store(ctx)
}

// Log adds a line to the task's log.
func (r *Run) Log(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	r.log.Debug("task: log", "line", line)
	if r.engine.cfg.Log != nil {
		r.engine.cfg.Log(r.Task.Meta.Name, r.engine.cfg.Clock.Now(), line)
	}
}

// flush stores what has changed, with one try; that it failed is only worth a line in the log.
func (r *Run) flush(ctx context.Context) {
	if _, err := r.engine.writeOnce(ctx, ctx.Err() != nil, r.Task.Meta.Name, r.change); err != nil && ctx.Err() == nil {
		r.log.Warn("task: store progress", "err", err)
	}
}

// store stores what has changed, and waits while the store is away.
func (r *Run) store(ctx context.Context) error {
	_, err := r.engine.write(ctx, r.Task.Meta.Name, r.change)
	return err
}

func (r *Run) change(t *v1.Task) error {
	r.apply(t)
	return nil
}

func (r *Run) apply(t *v1.Task) {
	now := r.engine.cfg.Clock.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stored = now
	t.Meta.UpdateTime = timestamppb.New(now)
	t.Status.Progress, t.Status.Step = r.progress, r.step
	for _, d := range r.done {
		if !slices.Contains(t.Status.Done, d) {
			t.Status.Done = append(t.Status.Done, d)
		}
	}
	for k, v := range r.notes {
		if t.Status.Notes == nil {
			t.Status.Notes = map[string]string{}
		}
		t.Status.Notes[k] = v
	}
}

// failed is why a task that an earlier engine began to undo had failed, or the same with something to add.
type failed struct {
	message string
	detail  *v1.ErrorDetail
}

func (f *failed) Error() string { return f.message }

// end stores how the task ended. The store may be away for a moment: it is tried until the engine stops.
func (r *Run) end(err error) {
	state, message, d := v1.TaskState_TASK_STATE_SUCCEEDED, "", (*v1.ErrorDetail)(nil)
	switch {
	case err == nil:
		r.Log("done")
	case detail(err).Reason == reasonCancelled:
		state, message = v1.TaskState_TASK_STATE_CANCELLED, err.Error()
		r.Log("%s", message)
	default:
		state, message, d = v1.TaskState_TASK_STATE_FAILED, err.Error(), detail(err)
		r.Log("failed: %s", message)
	}
	_, serr := r.engine.write(r.life, r.Task.Meta.Name, func(t *v1.Task) error {
		r.apply(t)
		t.Status.EndTime = t.Meta.UpdateTime
		t.Status.State, t.Status.Message, t.Status.Error = state, message, d
		if err == nil {
			t.Status.Progress = 1
		}
		return nil
	})
	if serr != nil {
		r.log.Error("task: store the end; it runs again after a restart", "err", serr)
	}
}

const reasonCancelled = "CANCELLED"

func detail(err error) *v1.ErrorDetail {
	var f *failed
	var e *resource.Error
	switch {
	case errors.As(err, &f):
		return f.detail
	case errors.Is(err, ErrCancelled):
		return &v1.ErrorDetail{Reason: reasonCancelled}
	case errors.As(err, &e):
		return &v1.ErrorDetail{Kind: e.Kind, Name: e.Name, Field: e.Field, Reason: e.Reason, Remedy: e.Remedy}
	}
	return &v1.ErrorDetail{Reason: "TASK_FAILED"}
}
