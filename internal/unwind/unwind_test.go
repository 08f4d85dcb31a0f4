package unwind

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

var errCause = errors.New("the cause")

func record(u *Stack, out *[]string, names ...string) {
	for _, n := range names {
		u.Push(n, func(context.Context) error { *out = append(*out, n); return nil })
	}
}

func TestUndoRunsInReverse(t *testing.T) {
	var got []string
	f := func() (err error) {
		var u Stack
		defer u.Undo(t.Context(), &err)
		record(&u, &got, "a", "b", "c")
		return errCause
	}
	if err := f(); !errors.Is(err, errCause) {
		t.Fatalf("err = %v, want the cause", err)
	}
	if !slices.Equal(got, []string{"c", "b", "a"}) {
		t.Fatalf("steps ran as %v, want c b a", got)
	}
}

func TestCommitKeeps(t *testing.T) {
	var got []string
	var u Stack
	record(&u, &got, "a", "b")
	if u.Len() != 2 {
		t.Fatalf("Len = %d, want 2", u.Len())
	}
	u.Commit()
	u.Undo(t.Context(), nil)
	if len(got) != 0 || u.Len() != 0 {
		t.Fatalf("after Commit %v ran and %d steps remain", got, u.Len())
	}
}

func TestUndoRunsEachStepOnce(t *testing.T) {
	var got []string
	var u Stack
	record(&u, &got, "a")
	u.Undo(t.Context(), nil)
	u.Undo(t.Context(), nil)
	if !slices.Equal(got, []string{"a"}) {
		t.Fatalf("steps ran as %v, want a once", got)
	}
}

func TestFailingStepsDoNotStopOthers(t *testing.T) {
	var got []string
	var u Stack
	errUndo := errors.New("busy")
	record(&u, &got, "a")
	u.Push("delete b", func(context.Context) error { return errUndo })
	u.Push("delete c", func(context.Context) error { panic("oh") })
	err := errCause
	u.Undo(t.Context(), &err)
	if !slices.Equal(got, []string{"a"}) {
		t.Fatalf("step below the failing ones: %v, want a", got)
	}
	if !errors.Is(err, errCause) || !errors.Is(err, errUndo) {
		t.Fatalf("err = %v, want the cause and the undo's failure", err)
	}
	for _, want := range []string{"cannot delete b: busy", "cannot delete c: panic: oh"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("err = %q, want it to contain %q", err, want)
		}
	}
}

func TestUndoOnPanic(t *testing.T) {
	var got []string
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic did not pass through")
			}
		}()
		var u Stack
		defer u.Undo(t.Context(), nil)
		record(&u, &got, "a")
		panic("boom")
	}()
	if !slices.Equal(got, []string{"a"}) {
		t.Fatalf("after a panic %v ran, want a", got)
	}
}

func TestUndoIgnoresEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var u Stack
	var seen error = errCause
	u.Push("look", func(ctx context.Context) error {
		seen = ctx.Err()
		if _, ok := ctx.Deadline(); !ok {
			t.Error("undo has no deadline")
		}
		return nil
	})
	u.Undo(ctx, nil)
	if seen != nil {
		t.Fatalf("step saw ctx.Err() = %v, want nil", seen)
	}
}

func TestNilStack(t *testing.T) {
	var u *Stack
	u.Push("x", func(context.Context) error { t.Error("ran"); return nil })
	u.Commit()
	u.Undo(t.Context(), nil)
	if u.Len() != 0 {
		t.Fatal("a nil stack kept a step")
	}
}
