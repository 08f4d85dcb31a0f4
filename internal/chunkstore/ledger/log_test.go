package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"drover/internal/blob"
)

var key = make([]byte, 32)

func openLog(t *testing.T, st blob.Store) *Log {
	t.Helper()
	l, err := OpenLog(t.Context(), st, Options{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func do(t *testing.T, l *Log, tx *Transaction) int64 {
	t.Helper()
	seq, err := l.Do(t.Context(), func(*State) (*Transaction, error) { return tx, nil })
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func state(t *testing.T, l *Log) []byte {
	t.Helper()
	if err := l.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	var b []byte
	l.View(func(s *State) { b, _ = s.encode() })
	return b
}

func TestWritersAgree(t *testing.T) {
	st := blob.NewMemory()
	logs := []*Log{openLog(t, st), openLog(t, st), openLog(t, st)}
	var wg sync.WaitGroup
	errs := make([]error, len(logs))
	const each = 60
	for i, l := range logs {
		wg.Go(func() {
			for k := range byte(each) {
				id := append([]byte{byte(i), k}, b16(0)[2:]...)
				_, err := l.Do(context.WithoutCancel(t.Context()), func(*State) (*Transaction, error) {
					return &Transaction{Kind: &Transaction_Begin{Begin: &Begin{Session: id}}}, nil
				})
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	want := string(state(t, logs[0]))
	for _, l := range append(logs[1:], openLog(t, st)) {
		if string(state(t, l)) != want {
			t.Fatal("two who read the same log have different states")
		}
	}
	if seq := logs[0].Seq(); seq != 3*each {
		t.Errorf("%d transactions, want %d", seq, 3*each)
	}
	checkpoints := 0
	for range st.List(t.Context(), "checkpoint/", "") {
		checkpoints++
	}
	if checkpoints == 0 {
		t.Error("no checkpoint after so many transactions")
	}
}

func TestOldCheckpointServes(t *testing.T) {
	st := blob.NewMemory()
	l := openLog(t, st)
	for k := range byte(140) {
		do(t, l, begin(k))
	}
	var last string
	for info := range st.List(t.Context(), "checkpoint/", "") {
		last = info.Name
	}
	st.Tamper(last, func(b []byte) []byte { b[40]++; return b })
	if string(state(t, openLog(t, st))) != string(state(t, l)) {
		t.Error("another state")
	}
}

func TestLogIsAChain(t *testing.T) {
	st := blob.NewMemory()
	l := openLog(t, st)
	for k := range byte(5) {
		do(t, l, begin(k))
	}
	get := func(seq int64) []byte {
		b, err := st.Get(t.Context(), logName(seq), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	two, three := get(2), get(3)
	for name, tamper := range map[string]func(*blob.Memory){
		"a bit": func(m *blob.Memory) { m.Tamper(logName(3), func(b []byte) []byte { b[50] ^= 1; return b }) },
		"cut":   func(m *blob.Memory) { m.Tamper(logName(3), func(b []byte) []byte { return b[:20] }) },
		"reordered": func(m *blob.Memory) {
			m.Tamper(logName(2), func([]byte) []byte { return three })
			m.Tamper(logName(3), func([]byte) []byte { return two })
		},
		"repeated": func(m *blob.Memory) { m.Tamper(logName(3), func([]byte) []byte { return two }) },
	} {
		t.Run(name, func(t *testing.T) {
			m := st.Clone()
			tamper(m)
			if _, err := OpenLog(t.Context(), m, Options{Key: key}); !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v, want that it is damaged", err)
			}
		})
	}
	if _, err := OpenLog(t.Context(), st, Options{Key: append([]byte{1}, key[1:]...)}); !errors.Is(err, ErrDamaged) {
		t.Errorf("with another key: %v", err)
	}
}

// unclear stores what is put and says that it failed, or stores nothing and says so.
type unclear struct {
	blob.Store
	stored bool
	left   int
}

func (u *unclear) Put(ctx context.Context, name string, b []byte) error {
	if u.left--; u.left >= 0 {
		if u.stored {
			if err := u.Store.Put(ctx, name, b); err != nil {
				return err
			}
		}
		return errors.New("connection reset")
	}
	return u.Store.Put(ctx, name, b)
}

func TestUnclearPut(t *testing.T) {
	for _, stored := range []bool{true, false} {
		t.Run(fmt.Sprint(stored), func(t *testing.T) {
			st := blob.NewMemory()
			l := openLog(t, &unclear{Store: st, stored: stored, left: 1})
			seq, err := l.Do(t.Context(), func(*State) (*Transaction, error) { return begin(1), nil })
			if stored && (err != nil || seq != 1) {
				t.Errorf("it is there, but: %d, %v", seq, err)
			}
			if !stored && err == nil {
				t.Error("nothing was stored, and no error")
			}
			do(t, l, begin(2))
			want := 2
			if !stored {
				want = 1
			}
			n := 0
			openLog(t, st).View(func(s *State) { n = len(s.Sessions) })
			if n != want {
				t.Errorf("%d sessions, want %d", n, want)
			}
		})
	}
}

func TestRefusedIsNotWritten(t *testing.T) {
	st := blob.NewMemory()
	l := openLog(t, st)
	if _, err := l.Do(t.Context(), func(*State) (*Transaction, error) { return add(1, 2), nil }); !errors.Is(err, ErrEnded) {
		t.Errorf("got %v", err)
	}
	if _, err := st.Size(t.Context(), logName(1)); !errors.Is(err, blob.ErrNotFound) {
		t.Error("it was written")
	}
	ro, err := OpenLog(t.Context(), st, Options{Key: key, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ro.Do(t.Context(), func(*State) (*Transaction, error) { return begin(1), nil }); !errors.Is(err, blob.ErrReadOnly) {
		t.Errorf("read only: %v", err)
	}
}

// stale remembers for a while that an object was not there, as NFS does.
type stale struct {
	blob.Store
	left int
}

func (s *stale) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	if name == logName(1) && s.left > 0 {
		s.left--
		return nil, blob.ErrNotFound
	}
	return s.Store.Get(ctx, name, limit)
}

func TestStaleNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := blob.NewMemory()
		late := openLog(t, &stale{Store: st, left: 9})
		do(t, openLog(t, st), begin(1))
		if seq := do(t, late, begin(2)); seq != 2 {
			t.Errorf("number %d, want 2", seq)
		}
		n := 0
		openLog(t, st).View(func(s *State) { n = len(s.Sessions) })
		if n != 2 {
			t.Errorf("%d sessions, want 2", n)
		}
	})
}

// TestLostEntry: a log that lacks an entry is no shorter log.
func TestLostEntry(t *testing.T) {
	st := blob.NewMemory()
	l := openLog(t, st)
	for k := range byte(6) {
		do(t, l, &Transaction{Kind: &Transaction_Begin{Begin: &Begin{Session: b16(k)}}})
	}
	// One who has read as far as the third alone.
	other := &Log{store: st, o: l.o, turn: make(chan struct{}, 1), state: NewState()}
	for _, seq := range []int64{4, 6} {
		if err := st.Delete(t.Context(), logName(seq)); err != nil {
			t.Fatal(err)
		}
	}
	if err := other.Refresh(t.Context()); err != nil || other.Seq() != 3 {
		t.Fatalf("read up to %d, %v", other.Seq(), err)
	}
	if err := other.Whole(t.Context()); !errors.Is(err, ErrDamaged) {
		t.Errorf("a log without its fourth entry is whole: %v", err)
	}
	if _, err := OpenLog(t.Context(), st, Options{Key: key}); !errors.Is(err, ErrDamaged) {
		t.Errorf("a log without its fourth entry was opened for writing: %v", err)
	}
	if r, err := OpenLog(t.Context(), st, Options{Key: key, ReadOnly: true}); err != nil || r.Seq() != 3 {
		t.Errorf("a log without its fourth entry, to read only: %v", err)
	}
	// Who has read all of it is not in the way of anybody.
	if err := l.Whole(t.Context()); err != nil {
		t.Error(err)
	}
}
