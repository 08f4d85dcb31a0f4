package task

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/clock"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/proto"
)

// memory is a Store in memory. It can be away, and counts what it is asked.
type memory struct {
	mu    sync.Mutex
	tasks map[string]*v1.Task
	rev   int64
	away  bool
	// crash, if set, is asked before every write; true loses that write and all after it, as a kill does.
	crash func(name string) bool
	dead  bool
}

func newMemory() *memory { return &memory{tasks: map[string]*v1.Task{}} }

func (m *memory) fails() error {
	if m.away || m.dead {
		return fmt.Errorf("memory: %w", store.ErrUnavailable)
	}
	return nil
}

func (m *memory) List(context.Context) ([]*v1.Task, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*v1.Task
	for _, t := range m.tasks {
		all = append(all, proto.CloneOf(t))
	}
	return all, m.rev, m.fails()
}

func (m *memory) Create(_ context.Context, t *v1.Task) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev++
	t.Meta.Revision = m.rev
	m.tasks[t.Meta.Name] = proto.CloneOf(t)
	return m.fails()
}

func (m *memory) Mutate(ctx context.Context, name string, change func(*v1.Task) error) (*v1.Task, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if m.crash != nil && m.crash(name) {
		m.dead = true
	}
	if err := m.fails(); err != nil {
		return nil, err
	}
	t, ok := m.tasks[name]
	if !ok {
		return nil, store.ErrNotFound
	}
	t = proto.CloneOf(t)
	if err := change(t); err != nil {
		return nil, err
	}
	if Ended(m.tasks[name]) {
		panic("a task that ended was changed")
	}
	m.rev++
	t.Meta.Revision = m.rev
	m.tasks[name] = t
	return proto.CloneOf(t), nil
}

func (m *memory) Delete(_ context.Context, name string, _ int64) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tasks, name)
	return m.rev, m.fails()
}

func (m *memory) get(name string) *v1.Task {
	m.mu.Lock()
	defer m.mu.Unlock()
	return proto.CloneOf(m.tasks[name])
}

func (m *memory) set(away bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away = away
}

type world struct {
	t     *testing.T
	store *memory
	mu    sync.Mutex
	lines []string
}

func (w *world) engine(h Handler) *Engine {
	return New(Config{
		Store: w.store, Handlers: map[string]Handler{"x": h}, Clock: clock.Real(), Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Log: func(_ string, _ time.Time, line string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.lines = append(w.lines, line)
		},
	})
}

// run serves an engine and returns what stops it.
func run(t *testing.T, e *Engine) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func submit(t *testing.T, e *Engine) string {
	t.Helper()
	task, err := e.Submit(t.Context(), &v1.TaskSpec{Kind: "x", Target: "it"})
	if err != nil {
		t.Fatal(err)
	}
	return task.Meta.Name
}

func (w *world) want(name string, state v1.TaskState, message string) {
	w.t.Helper()
	got := w.store.get(name)
	if got.Status.State != state || !strings.Contains(got.Status.Message, message) {
		w.t.Errorf("task is %v, %q; want %v, %q", got.Status.State, got.Status.Message, state, message)
	}
	if ended := Ended(got); ended != (got.Status.EndTime != nil) {
		w.t.Errorf("ended is %v, end time %v", ended, got.Status.EndTime)
	}
}

func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) { f(t, &world{t: t, store: newMemory()}) })
}

// A kill before any write of a task, at each in turn: the next engine finishes it, and no step that was noted is done twice.
func TestCrashAtEveryWrite(t *testing.T) {
	for _, fails := range []bool{false, true} {
		for at := 0; at < 20; at++ {
			t.Run(fmt.Sprint(fails, at), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) { crashAt(t, w, at, fails) })
			})
		}
	}
}

func crashAt(t *testing.T, w *world, at int, fails bool) {
	times, undone := map[string]int{}, 0
	h := Handler{
		Do: func(ctx context.Context, r *Run) error {
			if undone > 0 {
				t.Error("begun again after its undoing began")
			}
			for _, s := range []string{"a", "b", "c"} {
				noted := slices.Contains(w.store.get(r.Task.Meta.Name).Status.Done, s)
				if err := r.Step(ctx, s, func(ctx context.Context) error {
					if noted {
						t.Errorf("step %s is done again", s)
					}
					times[s]++
					return r.SetNote(ctx, s, "seen")
				}); err != nil {
					return err
				}
			}
			if fails {
				return errors.New("no luck")
			}
			return nil
		},
		Undo: func(context.Context, *Run) error { undone++; return nil },
	}
	n := 0
	w.store.crash = func(string) bool { n++; return n > at }
	e := w.engine(h)
	stop := run(t, e)
	name := submit(t, e)
	time.Sleep(time.Minute) // of the bubble: whatever it does, it has done
	stop()
	crashed := w.store.dead
	w.store.dead, w.store.crash = false, nil
	if !Ended(w.store.get(name)) != crashed {
		t.Fatalf("crashed %v, but the task is %v", crashed, w.store.get(name).Status.State)
	}
	stop = run(t, w.engine(h))
	time.Sleep(time.Minute)
	stop()
	if fails {
		w.want(name, v1.TaskState_TASK_STATE_FAILED, "no luck")
		if undone == 0 {
			t.Error("was not undone")
		}
	} else {
		w.want(name, v1.TaskState_TASK_STATE_SUCCEEDED, "")
		if undone != 0 {
			t.Error("was undone")
		}
	}
	for _, s := range []string{"a", "b", "c"} {
		if times[s] == 0 || w.store.get(name).Status.Notes[s] != "seen" {
			t.Errorf("step %s was done %d times, note %q", s, times[s], w.store.get(name).Status.Notes[s])
		}
	}
	if !crashed && at < 6 {
		t.Error("the crash never came")
	}
}

func TestCancel(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		undone := false
		e := w.engine(Handler{
			Do: func(ctx context.Context, _ *Run) error { <-ctx.Done(); return fmt.Errorf("cut: %w", ctx.Err()) },
			Undo: func(ctx context.Context, r *Run) error {
				undone = true
				if !errors.Is(r.Failure(), ErrCancelled) {
					t.Errorf("failure is %v", r.Failure())
				}
				return ctx.Err()
			},
		})
		stop := run(t, e)
		defer stop()
		name := submit(t, e)
		synctest.Wait()
		if _, err := e.Cancel(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.want(name, v1.TaskState_TASK_STATE_CANCELLED, "cancelled")
		if !undone {
			t.Error("was not undone")
		}
		if _, err := e.Cancel(t.Context(), name); resource.CodeOf(err) != resource.Precondition {
			t.Errorf("cancel again: %v", err)
		}
	})
}

// A task that is cancelled before it begins, or while the manager is down, never does anything.
func TestCancelBeforeItBegins(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		undone := 0
		h := Handler{
			Do:   func(context.Context, *Run) error { t.Error("was done"); return nil },
			Undo: func(context.Context, *Run) error { undone++; return nil },
		}
		e := w.engine(h)
		name := submit(t, e)
		if _, err := e.Cancel(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		defer run(t, w.engine(h))()
		synctest.Wait()
		w.want(name, v1.TaskState_TASK_STATE_CANCELLED, "cancelled")
		if undone != 1 {
			t.Errorf("undone %d times", undone)
		}
	})
}

// When the engine stops in the middle of undoing, it stops at once, and the next engine undoes; it does not begin anew.
func TestStopWhileUndoing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		did, undone := 0, 0
		h := Handler{
			Do: func(context.Context, *Run) error {
				did++
				return &resource.Error{Code: resource.Invalid, Reason: "BROKEN", Message: "is broken"}
			},
			Undo: func(ctx context.Context, r *Run) error {
				undone++
				if undone == 1 {
					<-ctx.Done()
					return ctx.Err()
				}
				if r.Failure().Error() != "is broken" {
					t.Errorf("failure is %v", r.Failure())
				}
				return nil
			},
		}
		e := w.engine(h)
		stop := run(t, e)
		name := submit(t, e)
		synctest.Wait()
		begin := time.Now()
		stop()
		if d := time.Since(begin); d > time.Second {
			t.Errorf("stopping took %v", d)
		}
		w.want(name, v1.TaskState_TASK_STATE_RUNNING, "is broken")
		defer run(t, w.engine(h))()
		synctest.Wait()
		w.want(name, v1.TaskState_TASK_STATE_FAILED, "is broken")
		if got := w.store.get(name); got.Status.Error.GetReason() != "BROKEN" || did != 1 || undone != 2 {
			t.Errorf("reason %q, done %d times, undone %d", got.Status.Error.GetReason(), did, undone)
		}
	})
}

func TestUndoThatFails(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		e := w.engine(Handler{
			Do:   func(context.Context, *Run) error { return errors.New("no luck") },
			Undo: func(context.Context, *Run) error { panic("worse luck") },
		})
		defer run(t, e)()
		name := submit(t, e)
		synctest.Wait()
		w.want(name, v1.TaskState_TASK_STATE_FAILED, "no luck (and what it had begun could not be undone: broke down: worse luck)")
	})
}

func TestPanic(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		e := w.engine(Handler{Do: func(context.Context, *Run) error { panic("oh") }})
		defer run(t, e)()
		name := submit(t, e)
		synctest.Wait()
		w.want(name, v1.TaskState_TASK_STATE_FAILED, "broke down: oh")
	})
}

// While the store is away tasks wait: at their beginning, between steps, in what they do, and at their end.
func TestStoreAway(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		tries := 0
		e := w.engine(Handler{Do: func(ctx context.Context, r *Run) error {
			if err := r.Step(ctx, "one", func(context.Context) error { w.store.set(true); return nil }); err != nil {
				return err
			}
			if tries++; tries == 1 {
				return fmt.Errorf("read something: %w", store.ErrUnavailable)
			}
			w.store.set(true)
			return nil
		}})
		w.store.set(false)
		defer run(t, e)()
		name := submit(t, e)
		for range 3 {
			time.Sleep(30 * time.Second)
			w.store.set(false)
		}
		time.Sleep(30 * time.Second)
		w.want(name, v1.TaskState_TASK_STATE_SUCCEEDED, "")
		if got := w.store.get(name); tries != 2 || got.Status.Attempts != 1 {
			t.Errorf("%d tries, %d attempts", tries, got.Status.Attempts)
		}
	})
}

// A store that is away holds up neither a stop of the engine nor a task that only tells its progress.
func TestStopWithStoreAway(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		steps := 0
		e := w.engine(Handler{Do: func(ctx context.Context, r *Run) error {
			w.store.set(true)
			for ; steps < 1000; steps++ {
				r.Progress(ctx, float64(steps)/1000)
			}
			return nil
		}})
		stop := run(t, e)
		name := submit(t, e)
		time.Sleep(time.Minute)
		if steps != 1000 {
			t.Errorf("%d steps", steps)
		}
		begin := time.Now()
		stop()
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("stopping took %v", d)
		}
		w.want(name, v1.TaskState_TASK_STATE_RUNNING, "")
	})
}

// A task that is submitted while an engine starts is neither lost nor run twice.
func TestSubmitWhileStarting(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var mu sync.Mutex
		ran := map[string]int{}
		e := w.engine(Handler{Do: func(_ context.Context, r *Run) error {
			mu.Lock()
			defer mu.Unlock()
			ran[r.Task.Meta.Name]++
			return nil
		}})
		var wg sync.WaitGroup
		names := make([]string, 50)
		for i := range names {
			wg.Go(func() { names[i] = submit(t, e) })
		}
		stop := run(t, e)
		wg.Wait()
		synctest.Wait()
		stop()
		for _, n := range names {
			if ran[n] != 1 {
				t.Errorf("task ran %d times", ran[n])
			}
		}
	})
}

func TestPrune(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		e := w.engine(Handler{Do: func(context.Context, *Run) error { return nil }})
		e.cfg.Keep = 3
		defer run(t, e)()
		var names []string
		for range 6 {
			names = append(names, submit(t, e))
			time.Sleep(time.Second)
		}
		time.Sleep(2 * lookAgain)
		w.store.mu.Lock()
		defer w.store.mu.Unlock()
		for i, n := range names {
			if _, kept := w.store.tasks[n]; kept != (i >= 3) {
				t.Errorf("task %d of 6 kept: %v", i, kept)
			}
		}
	})
}

func TestUnknownKind(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		e := w.engine(Handler{})
		if _, err := e.Submit(t.Context(), &v1.TaskSpec{Kind: "y"}); err == nil {
			t.Error("a task of unknown kind was taken")
		}
		// One that a newer manager left.
		left := &v1.Task{Meta: &v1.Meta{Name: "left"}, Spec: &v1.TaskSpec{Kind: "y"}, Status: &v1.TaskStatus{}}
		if err := w.store.Create(t.Context(), left); err != nil {
			t.Fatal(err)
		}
		defer run(t, e)()
		synctest.Wait()
		w.want("left", v1.TaskState_TASK_STATE_FAILED, "does not know tasks of kind")
	})
}
