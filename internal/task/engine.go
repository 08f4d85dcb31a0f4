package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/clock"
	"drover/internal/resource"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// Store keeps tasks. Mutate retries when someone else changed the task meanwhile.
type Store interface {
	List(ctx context.Context) ([]*v1.Task, int64, error)
	Create(ctx context.Context, t *v1.Task) error
	Mutate(ctx context.Context, name string, change func(*v1.Task) error) (*v1.Task, error)
	Delete(ctx context.Context, name string, revision int64) (int64, error)
}

// Handler does one kind of task.
type Handler struct {
	// Do does it. It returns ctx.Err() soon after the context ends.
	Do func(ctx context.Context, r *Run) error
	// Undo takes back what Do had begun, after a failure or a cancel. May be nil.
	Undo func(ctx context.Context, r *Run) error
}

// Config is what an Engine needs.
type Config struct {
	Store    Store
	Handlers map[string]Handler
	Clock    clock.Clock
	Logger   *slog.Logger
	// Log takes what tasks say, a line at a time; may be nil.
	Log func(task string, at time.Time, line string)
	// Keep is how many ended tasks are kept; 0 means 1000.
	Keep int
}

// ErrCancelled is the cause of a task's context when somebody cancelled the task.
var ErrCancelled = errors.New("cancelled")

// undoTime bounds how long a task may take to be undone.
const undoTime = 2 * time.Minute

// Engine runs tasks. Run must be called before tasks are begun.
type Engine struct {
	cfg Config

	mu      sync.Mutex
	running map[string]context.CancelCauseFunc // by task name
	ctx     context.Context                    // Run's own: the lifetime of all tasks; nil before and after
	wg      sync.WaitGroup
}

// New makes an engine; it does nothing until Run.
func New(cfg Config) *Engine {
	if cfg.Keep == 0 {
		cfg.Keep = 1000
	}
	return &Engine{cfg: cfg, running: map[string]context.CancelCauseFunc{}}
}

// Submit stores a task and begins it.
func (e *Engine) Submit(ctx context.Context, spec *v1.TaskSpec) (*v1.Task, error) {
	if _, ok := e.cfg.Handlers[spec.Kind]; !ok {
		return nil, fmt.Errorf("task: submit %s: no such kind", spec.Kind)
	}
	uid, now := resource.NewUID(), timestamppb.New(e.cfg.Clock.Now())
	t := &v1.Task{
		Meta:   &v1.Meta{Name: uid, Uid: uid, Generation: 1, CreateTime: now, UpdateTime: now},
		Spec:   spec,
		Status: &v1.TaskStatus{State: v1.TaskState_TASK_STATE_PENDING},
	}
	if err := e.cfg.Store.Create(ctx, t); err != nil {
		return nil, fmt.Errorf("task: submit %s of %s %s: %w", spec.Kind, spec.TargetKind, spec.Target, err)
	}
	e.begin(uid)
	return t, nil
}

// Cancel asks a task to stop. It is an error if it has ended.
func (e *Engine) Cancel(ctx context.Context, name string) (*v1.Task, error) {
	t, err := e.cfg.Store.Mutate(ctx, name, func(t *v1.Task) error {
		if Ended(t) {
			return &resource.Error{Code: resource.Precondition, Kind: resource.KindTask, Name: name, Reason: "TASK_ENDED", Message: "has ended already"}
		}
		t.Spec.Cancel = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	stop := e.running[name]
	e.mu.Unlock()
	if stop != nil {
		stop(ErrCancelled)
	}
	return t, nil
}

// Ended reports whether a task is over, one way or another.
func Ended(t *v1.Task) bool { return t.GetStatus().GetState() >= v1.TaskState_TASK_STATE_SUCCEEDED }

// Run goes on with the tasks that an earlier engine left, and serves until ctx ends; then it waits for the
// handlers to return. Tasks cut short that way go on in the next engine.
func (e *Engine) Run(ctx context.Context) error {
	left, _, err := e.cfg.Store.List(ctx)
	if err != nil {
		return fmt.Errorf("task: read what was left: %w", err)
	}
	e.mu.Lock()
	e.ctx = ctx
	e.mu.Unlock()
	for _, t := range left {
		if !Ended(t) {
			e.begin(t.Meta.Name)
		}
	}
	e.prune(ctx, left)
	<-ctx.Done()
	e.mu.Lock()
	e.ctx = nil
	e.mu.Unlock()
	e.wg.Wait()
	return nil
}

// prune drops the oldest of the ended tasks beyond what is kept.
func (e *Engine) prune(ctx context.Context, all []*v1.Task) {
	ended := slices.DeleteFunc(slices.Clone(all), func(t *v1.Task) bool { return !Ended(t) })
	slices.SortFunc(ended, func(a, b *v1.Task) int {
		return b.Meta.CreateTime.AsTime().Compare(a.Meta.CreateTime.AsTime())
	})
	for _, t := range ended[min(len(ended), e.cfg.Keep):] {
		if _, err := e.cfg.Store.Delete(ctx, t.Meta.Name, t.Meta.Revision); err != nil {
			e.cfg.Logger.Warn("task: prune", "task", t.Meta.Name, "err", err)
		}
	}
}

func (e *Engine) begin(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx == nil || e.running[name] != nil {
		return // Run picks it up when it starts, or it runs already
	}
	ctx, stop := context.WithCancelCause(e.ctx)
	e.running[name] = stop
	e.wg.Go(func() {
		e.do(ctx, name)
		stop(nil)
		e.mu.Lock()
		delete(e.running, name)
		e.mu.Unlock()
	})
}

// do runs one task to its end, or until the engine stops.
func (e *Engine) do(ctx context.Context, name string) {
	log := e.cfg.Logger.With("task", name)
	t, err := e.cfg.Store.Mutate(ctx, name, func(t *v1.Task) error {
		if t.Status.StartTime == nil {
			t.Status.StartTime = timestamppb.New(e.cfg.Clock.Now())
		}
		t.Status.State = v1.TaskState_TASK_STATE_RUNNING
		t.Status.Attempts++
		return nil
	})
	if err != nil {
		log.Error("task: begin", "err", err)
		return
	}
	r := &Run{engine: e, Task: t, log: log}
	h, ok := e.cfg.Handlers[t.Spec.Kind]
	switch {
	case !ok:
		err = fmt.Errorf("this manager does not know tasks of kind %q", t.Spec.Kind)
	case t.Spec.Cancel:
		err = ErrCancelled
	default:
		if t.Status.Attempts > 1 {
			r.Log("the manager was restarted; going on after %d finished steps", len(t.Status.Done))
		}
		err = guard(ctx, r, h.Do)
	}
	cancelled := errors.Is(context.Cause(ctx), ErrCancelled) || errors.Is(err, ErrCancelled)
	if err != nil && ctx.Err() != nil && !cancelled {
		r.flush(context.WithoutCancel(ctx))
		return // the engine stops; the next one goes on
	}
	ctx = context.WithoutCancel(ctx)
	if err != nil && h.Undo != nil {
		uctx, stop := context.WithTimeout(ctx, undoTime)
		if uerr := guard(uctx, r, h.Undo); uerr != nil {
			r.Log("undo: %v", uerr)
			err = fmt.Errorf("%w (and what it had begun could not be undone: %v)", err, uerr)
		}
		stop()
	}
	r.end(ctx, err, cancelled)
}

// guard turns a panic of a handler into an error, so that one broken task doesn't take the manager down.
func guard(ctx context.Context, r *Run, f func(context.Context, *Run) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("broke down: %v", p)
			r.log.Error("task: panic", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	return f(ctx, r)
}
