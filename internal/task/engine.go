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
	"drover/internal/store"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// Store keeps tasks. Mutate retries when someone else changed the task meanwhile. An error that is store.ErrUnavailable
// passes: what failed with it is tried again.
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
	// Undo takes back what Do had begun, after a failure or a cancel; Run.Failure says why. May be nil.
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
	return e.SubmitAs(ctx, resource.NewUID(), spec)
}

// SubmitAs is Submit with a UID that the caller wrote down before, so that it can say after a crash whether there is such a task.
// It fails with store.ErrExists if there is.
func (e *Engine) SubmitAs(ctx context.Context, uid string, spec *v1.TaskSpec) (*v1.Task, error) {
	if _, ok := e.cfg.Handlers[spec.Kind]; !ok {
		return nil, fmt.Errorf("task: submit %s: no such kind", spec.Kind)
	}
	now := timestamppb.New(e.cfg.Clock.Now())
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
	e.mu.Lock()
	e.ctx = ctx
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.ctx = nil
		e.mu.Unlock()
		e.wg.Wait()
	}()
	for first := true; ; first = false {
		all, _, err := e.cfg.Store.List(ctx)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case first && !errors.Is(err, store.ErrUnavailable):
			return fmt.Errorf("task: read what was left: %w", err)
		default:
			e.cfg.Logger.Warn("task: read tasks", "err", err)
		}
		for _, t := range all {
			if !Ended(t) {
				e.begin(t.Meta.Name)
			}
		}
		e.prune(ctx, all)
		select {
		case <-e.cfg.Clock.After(lookAgain):
		case <-ctx.Done():
			return nil
		}
	}
}

// lookAgain is how often the engine looks for tasks that it lost sight of, and drops old ones.
const lookAgain = 10 * time.Minute

// prune drops the oldest of the ended tasks beyond what is kept.
func (e *Engine) prune(ctx context.Context, all []*v1.Task) {
	ended := slices.DeleteFunc(slices.Clone(all), func(t *v1.Task) bool { return !Ended(t) })
	slices.SortFunc(ended, func(a, b *v1.Task) int {
		return b.Meta.CreateTime.AsTime().Compare(a.Meta.CreateTime.AsTime())
	})
	for _, t := range ended[min(len(ended), e.cfg.Keep):] {
		if _, err := e.cfg.Store.Delete(ctx, t.Meta.Name, t.Meta.Revision); err != nil && ctx.Err() == nil {
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
	life := e.ctx
	ctx, stop := context.WithCancelCause(life)
	e.running[name] = stop
	e.wg.Go(func() {
		e.do(life, ctx, name)
		stop(nil)
		e.mu.Lock()
		delete(e.running, name)
		e.mu.Unlock()
	})
}

// errEnded keeps a task that ended from being begun again.
var errEnded = errors.New("has ended")

// do runs one task to its end, or until the engine's life ends. ctx ends before that when the task is cancelled.
func (e *Engine) do(life, ctx context.Context, name string) {
	log := e.cfg.Logger.With("task", name)
	t, err := e.write(life, name, func(t *v1.Task) error {
		if Ended(t) {
			return errEnded
		}
		if t.Status.StartTime == nil {
			t.Status.StartTime = timestamppb.New(e.cfg.Clock.Now())
		}
		t.Status.State = v1.TaskState_TASK_STATE_RUNNING
		t.Status.Attempts++
		return nil
	})
	if err != nil {
		if life.Err() == nil && !errors.Is(err, errEnded) {
			log.Error("task: begin", "err", err)
		}
		return
	}
	r := &Run{engine: e, life: life, Task: t, log: log, progress: t.Status.Progress, step: t.Status.Step}
	h, ok := e.cfg.Handlers[t.Spec.Kind]
	switch {
	case !ok:
		err = fmt.Errorf("this manager does not know tasks of kind %q", t.Spec.Kind)
	case t.Status.Error != nil:
		err = &failed{message: t.Status.Message, detail: t.Status.Error}
		r.Log("the manager was restarted; going on to undo")
	case t.Spec.Cancel:
		err = ErrCancelled
	default:
		if t.Status.Attempts > 1 {
			r.Log("the manager was restarted; going on after %d finished steps", len(t.Status.Done))
		}
		if err = e.persist(ctx, r, h.Do); err != nil && errors.Is(context.Cause(ctx), ErrCancelled) {
			err = ErrCancelled
		}
	}
	if err != nil && h.Undo != nil && life.Err() == nil {
		err = e.undo(life, r, h, err)
	}
	if err != nil && life.Err() != nil {
		r.flush(life)
		return // the engine stops; the next one goes on
	}
	r.end(err)
}

// undo notes why, so that an engine that comes after this one does not begin to do the task again, and undoes it.
func (e *Engine) undo(life context.Context, r *Run, h Handler, why error) error {
	if _, err := e.write(life, r.Task.Meta.Name, func(t *v1.Task) error {
		r.apply(t)
		t.Status.Step, t.Status.Message, t.Status.Error = "undo", why.Error(), detail(why)
		return nil
	}); err != nil {
		r.log.Error("task: note that it is undone", "err", err)
		return why
	}
	r.mu.Lock()
	r.failure, r.step = why, "undo"
	r.mu.Unlock()
	ctx, stop := context.WithTimeout(life, undoTime)
	defer stop()
	if err := e.persist(ctx, r, h.Undo); err != nil && life.Err() == nil {
		r.Log("undo: %v", err)
		return &failed{message: fmt.Sprintf("%v (and what it had begun could not be undone: %v)", why, err), detail: detail(why)}
	}
	return why
}

// Waits between tries while the state store is away.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 3 * time.Second
)

// persist calls f, and again for as long as it fails because the state store is away: steps that were done are
// passed over.
func (e *Engine) persist(ctx context.Context, r *Run, f func(context.Context, *Run) error) error {
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		err := guard(ctx, r, f)
		if err == nil || ctx.Err() != nil || !errors.Is(err, store.ErrUnavailable) {
			return err
		}
		r.Log("the state store is away; going on when it is back")
		select {
		case <-e.cfg.Clock.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

// lastTry bounds the one try that a write gets when its context has ended already.
const lastTry = time.Second

// write changes a task, and tries again while the store is away. When ctx has ended, there is one more short try.
func (e *Engine) write(ctx context.Context, name string, change func(*v1.Task) error) (*v1.Task, error) {
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		last := ctx.Err() != nil
		t, err := e.writeOnce(ctx, last, name, change)
		if err == nil || last || ctx.Err() == nil && !errors.Is(err, store.ErrUnavailable) {
			return t, err
		}
		select {
		case <-e.cfg.Clock.After(wait):
		case <-ctx.Done():
		}
	}
}

func (e *Engine) writeOnce(ctx context.Context, last bool, name string, change func(*v1.Task) error) (*v1.Task, error) {
	if last {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(context.WithoutCancel(ctx), lastTry)
		defer stop()
	}
	return e.cfg.Store.Mutate(ctx, name, change)
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
