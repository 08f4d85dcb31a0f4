package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	droverv1 "drover/api/drover/v1"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// fakeClock stands still until it is set; its timers never fire, so that only Maintain maintains.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func (c *fakeClock) NewTimer(time.Duration) *time.Timer   { return time.NewTimer(math.MaxInt64) }
func (c *fakeClock) After(time.Duration) <-chan time.Time { return nil }

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newClock() *fakeClock { return &fakeClock{now: start} }

func openTest(t testing.TB, path string, c *fakeClock, l Limits, log *bytes.Buffer) *DB {
	t.Helper()
	if log == nil {
		log = &bytes.Buffer{}
	}
	db, err := Open(t.Context(), Options{Path: path, Clock: c, Limits: l, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() }) //nolint:errcheck // tests that care close it themselves
	return db
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func event(at time.Time, name string, sev droverv1.Severity) *droverv1.Event {
	return &droverv1.Event{Time: timestamppb.New(at), Kind: "vm", Name: name, Severity: sev, Host: "h1", Reason: "VM_STARTED", Message: "started " + name}
}

func TestRecordsComeBackAndSurviveRestart(t *testing.T) {
	ctx, path, c := t.Context(), filepath.Join(t.TempDir(), "sub", "h.db"), newClock()
	db := openTest(t, path, c, Limits{}, nil)
	b := &Batch{}
	for i := range 10 {
		b.Events = append(b.Events, event(start.Add(time.Duration(i)*time.Minute), fmt.Sprint("vm-", i%2), droverv1.Severity(1+i%3)))
	}
	b.Audit = []*droverv1.AuditRecord{
		{Time: timestamppb.New(start), Principal: "ann", Source: "unix", Method: "drover.v1.VMService/Start", Kind: "vm", Name: "vm-1", Code: "ok", Message: "m", Before: "{}", After: `{"a":1}`},
		{Time: timestamppb.New(start), Principal: "bob", Kind: "vm", Name: "vm-1"},
	}
	for i := range 5 {
		b.Lines = append(b.Lines, TaskLine{Task: fmt.Sprint("task-", i%2), Time: start, Line: fmt.Sprint("line ", i)})
	}
	must(t, db.Append(ctx, b))
	if b.Events[9].Id <= b.Events[0].Id || b.Audit[0].Id == 0 || b.Lines[4].ID == 0 {
		t.Fatal("append gave no growing ids")
	}
	must(t, db.Close())
	if err := db.Append(ctx, b); !errors.Is(err, ErrClosed) {
		t.Errorf("append to a closed history: %v", err)
	}
	if _, err := db.Events(ctx, Filter{}); !errors.Is(err, ErrClosed) {
		t.Errorf("read of a closed history: %v", err)
	}
	db = openTest(t, path, c, Limits{}, nil)

	for _, q := range []struct {
		name string
		f    Filter
		want int
	}{
		{"all", Filter{}, 10},
		{"object", Filter{Kind: "vm", Name: "vm-1"}, 5},
		{"severity", Filter{MinSeverity: droverv1.Severity_SEVERITY_ERROR}, 3},
		{"time", Filter{Since: start.Add(2 * time.Minute), Until: start.Add(5 * time.Minute)}, 3},
		{"page", Filter{Before: b.Events[9].Id, Limit: 4}, 4},
		{"none", Filter{Kind: "host"}, 0},
	} {
		got, err := db.Events(ctx, q.f)
		if err != nil || len(got) != q.want {
			t.Errorf("%s: %d events, %v; want %d", q.name, len(got), err, q.want)
		}
		for i := 1; i < len(got); i++ {
			if got[i].Id >= got[i-1].Id {
				t.Errorf("%s: not newest first", q.name)
			}
		}
	}
	got, err := db.Events(ctx, Filter{Limit: 1})
	if err != nil || got[0].String() != b.Events[9].String() {
		t.Errorf("newest is %v, want %v", got, b.Events[9])
	}
	audit, err := db.Audit(ctx, Filter{Principal: "ann"})
	if err != nil || len(audit) != 1 || audit[0].String() != b.Audit[0].String() {
		t.Errorf("audit: %v, %v; want %v", audit, err, b.Audit[0])
	}
	lines, err := db.TaskLog(ctx, "task-0", b.Lines[0].ID, 0)
	if err != nil || len(lines) != 2 || lines[0].Line != "line 2" || lines[1].Line != "line 4" || !lines[0].Time.Equal(start) {
		t.Errorf("task log: %v, %v", lines, err)
	}
}

func cpu(name string, at time.Time, v float64) Sample {
	return Sample{Kind: "vm", Name: name, Metric: "cpu", Unit: "ratio", Time: at, Value: v}
}

func TestSamplesRollUp(t *testing.T) {
	ctx, c := t.Context(), newClock()
	db := openTest(t, filepath.Join(t.TempDir(), "h.db"), c, Limits{Raw: time.Hour, FiveMinute: 24 * time.Hour, Hour: 30 * day}, nil)
	// Three hours, a sample every minute whose value is the minute; maintained now and then.
	for i := range 180 {
		at := start.Add(time.Duration(i) * time.Minute)
		must(t, db.Append(ctx, &Batch{Samples: []Sample{cpu("a", at, float64(i)), cpu("b", at, 1), {Kind: "vm", Name: "a", Metric: "mem", Unit: "bytes", Time: at, Value: math.NaN()}}}))
		if i%7 == 0 {
			c.now = at
			must(t, db.Maintain(ctx))
		}
	}
	c.now = start.Add(3 * time.Hour)
	must(t, db.Maintain(ctx))

	raw, err := db.Series(ctx, MetricFilter{Kind: "vm", Name: "a", Metrics: []string{"cpu"}})
	if err != nil || len(raw) != 1 || len(raw[0].Points) != 60 || raw[0].Unit != "ratio" || raw[0].Points[0].Mean != 120 {
		t.Fatalf("raw: %v, %v", raw, err)
	}
	five, err := db.Series(ctx, MetricFilter{Kind: "vm", Since: start})
	if err != nil || len(five) != 2 || len(five[0].Points) != 36 || five[0].Name != "a" || five[1].Name != "b" {
		t.Fatalf("5 minutes: %v, %v", five, err)
	}
	for i, p := range five[0].Points {
		lo := float64(i * 5)
		if p.Min != lo || p.Max != lo+4 || p.Mean != lo+2 || !p.Time.AsTime().Equal(start.Add(time.Duration(i)*5*time.Minute)) {
			t.Fatalf("bucket %d: %v", i, p)
		}
	}
	hour, err := db.Series(ctx, MetricFilter{Kind: "vm", Name: "a", Since: start, Step: time.Hour})
	if err != nil || len(hour) != 1 || len(hour[0].Points) != 3 || hour[0].Points[1].Mean != 89.5 || hour[0].Points[2].Max != 179 {
		t.Fatalf("hours: %v, %v", hour, err)
	}
	if one, err := db.Series(ctx, MetricFilter{Kind: "vm", Name: "a", Since: start, Step: 10 * time.Minute}); err != nil || len(one[0].Points) != 18 {
		t.Fatalf("10 minutes: %v, %v", one, err)
	}
	if _, err := db.Series(ctx, MetricFilter{Kind: "vm", Since: c.now.Add(time.Hour)}); err == nil {
		t.Error("a time that ends before it begins was taken")
	}

	// Each level outlives the one below it, and at the end the series itself goes.
	c.forward(2 * day)
	must(t, db.Maintain(ctx))
	if old, err := db.Series(ctx, MetricFilter{Kind: "vm", Name: "a", Since: start}); err != nil || len(old) != 1 || len(old[0].Points) != 3 {
		t.Fatalf("after two days: %v, %v", old, err)
	}
	var raws, fives int
	must(t, db.reader(rowCounts(ctx, &raws, &fives)))
	if raws != 0 || fives != 0 {
		t.Errorf("after two days %d raw and %d rolled-up rows are left", raws, fives)
	}
	c.forward(40 * day)
	must(t, db.Maintain(ctx))
	must(t, db.Append(ctx, &Batch{Samples: []Sample{cpu("a", c.now, 5)}}))
	if again, err := db.Series(ctx, MetricFilter{Kind: "vm"}); err != nil || len(again) != 0 {
		t.Fatalf("Until is not included: %v, %v", again, err)
	}
	c.forward(time.Second)
	if again, err := db.Series(ctx, MetricFilter{Kind: "vm"}); err != nil || len(again) != 1 || again[0].Points[0].Mean != 5 {
		t.Fatalf("a series that was forgotten begins anew: %v, %v", again, err)
	}
}

func TestOldRecordsGoByAge(t *testing.T) {
	ctx, c := t.Context(), newClock()
	db := openTest(t, filepath.Join(t.TempDir(), "h.db"), c, Limits{Events: 2 * day, TaskLogs: day, Audit: 3 * day}, nil)
	b := &Batch{}
	for i := range chunk + 10 { // more than one chunk
		b.Events = append(b.Events, event(start, "a", 1))
		_ = i
	}
	b.Audit = []*droverv1.AuditRecord{{Time: timestamppb.New(start)}}
	b.Lines = []TaskLine{{Task: "t", Time: start}}
	must(t, db.Append(ctx, b))
	for _, want := range []struct{ events, audit, lines int }{{100, 1, 1}, {100, 1, 0}, {0, 1, 0}, {0, 0, 0}} {
		must(t, db.Maintain(ctx))
		e, err1 := db.Events(ctx, Filter{})
		a, err2 := db.Audit(ctx, Filter{})
		l, err3 := db.TaskLog(ctx, "t", 0, 0)
		must(t, errors.Join(err1, err2, err3))
		if len(e) != want.events || len(a) != want.audit || len(l) != want.lines {
			t.Errorf("at %v: %d events, %d audit records, %d lines; want %+v", c.now, len(e), len(a), len(l), want)
		}
		c.forward(day + time.Hour)
	}
}

func TestSizeIsBoundedAndAuditGoesLast(t *testing.T) {
	ctx, c, path := t.Context(), newClock(), filepath.Join(t.TempDir(), "h.db")
	db := openTest(t, path, c, Limits{Bytes: 1 << 20}, nil)
	must(t, db.Append(ctx, &Batch{Audit: []*droverv1.AuditRecord{{Time: timestamppb.New(start), Principal: "ann"}}}))
	line := strings.Repeat("x", 1000)
	for i := range 50 {
		b := &Batch{}
		for range 100 {
			b.Lines = append(b.Lines, TaskLine{Task: "noisy", Time: c.Now(), Line: fmt.Sprint(i, line)})
		}
		must(t, db.Append(ctx, b))
		c.forward(time.Minute)
	}
	must(t, db.Maintain(ctx))
	must(t, db.Close())
	info, err := os.Stat(path)
	must(t, err)
	if info.Size() > 5<<18 {
		t.Errorf("the file has %d bytes, its limit is 1 MiB", info.Size())
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v", info.Mode())
	}
	db = openTest(t, path, c, Limits{Bytes: 1 << 20}, nil)
	if a, err := db.Audit(ctx, Filter{}); err != nil || len(a) != 1 {
		t.Errorf("audit: %v, %v", a, err)
	}
	lines, err := db.TaskLog(ctx, "noisy", 0, 1000)
	if err != nil || len(lines) == 0 || !strings.HasPrefix(lines[len(lines)-1].Line, "49x") {
		t.Errorf("the newest lines are not there: %d, %v", len(lines), err)
	}
}

func TestLongTextIsCut(t *testing.T) {
	ctx, c := t.Context(), newClock()
	db := openTest(t, filepath.Join(t.TempDir(), "h.db"), c, Limits{}, nil)
	must(t, db.Append(ctx, &Batch{Lines: []TaskLine{{Task: "t", Time: start, Line: strings.Repeat("é", maxLine)}}}))
	l, err := db.TaskLog(ctx, "t", 0, 0)
	if err != nil || len(l) != 1 || len(l[0].Line) > maxLine+3 || !strings.HasSuffix(l[0].Line, "é…") {
		t.Fatalf("%d lines, %v", len(l), err)
	}
}

func TestWritersShareCommits(t *testing.T) {
	ctx, c := t.Context(), newClock()
	db := openTest(t, filepath.Join(t.TempDir(), "h.db"), c, Limits{}, nil)
	const writers, each = 20, 20
	errs := make(chan error, writers)
	for w := range writers {
		go func() {
			for i := range each {
				b := &Batch{Lines: []TaskLine{{Task: fmt.Sprint("t", w), Time: start, Line: fmt.Sprint(i)}}}
				if err := db.Append(ctx, b); err != nil {
					errs <- err
					return
				}
				if l, err := db.TaskLog(ctx, fmt.Sprint("t", w), b.Lines[0].ID-1, 1); err != nil || len(l) != 1 || l[0].Line != fmt.Sprint(i) {
					errs <- fmt.Errorf("writer %d reads %v, %w after it wrote %d", w, l, err, i)
					return
				}
			}
			errs <- nil
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestCorruptFileIsMovedAside(t *testing.T) {
	for name, hurt := range map[string]func(t *testing.T, path string){
		"garbage": func(t *testing.T, path string) {
			must(t, os.WriteFile(path, bytes.Repeat([]byte("junk"), 4096), 0o600))
		},
		"truncated": func(t *testing.T, path string) { must(t, os.Truncate(path, 8192)) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, c, path, log := t.Context(), newClock(), filepath.Join(t.TempDir(), "h[1].db"), &bytes.Buffer{}
			db := openTest(t, path, c, Limits{}, nil)
			b := &Batch{}
			for range 500 {
				b.Events = append(b.Events, event(start, "old", 1))
			}
			must(t, db.Append(ctx, b))
			must(t, db.Close())
			hurt(t, path)
			must(t, os.WriteFile(path+".corrupt-1", nil, 0o600)) // an older wreck
			db = openTest(t, path, c, Limits{}, log)
			must(t, db.Append(ctx, &Batch{Events: []*droverv1.Event{event(start, "new", 1)}}))
			got, err := db.Events(ctx, Filter{})
			if err != nil || len(got) != 1 || got[0].Name != "new" {
				t.Errorf("events: %v, %v", got, err)
			}
			wrecks, err := filepath.Glob(globQuote(path) + ".corrupt-*")
			if err != nil || len(wrecks) != 1 || strings.HasSuffix(wrecks[0], "-1") {
				t.Errorf("wrecks: %v, %v", wrecks, err)
			}
			if !strings.Contains(log.String(), "moved aside") || !strings.Contains(log.String(), "level=ERROR") {
				t.Errorf("the log says: %s", log)
			}
		})
	}
}

func TestCorruptionWhileOpenBeginsANewFile(t *testing.T) {
	ctx, c, path, log := t.Context(), newClock(), filepath.Join(t.TempDir(), "h.db"), &bytes.Buffer{}
	db := openTest(t, path, c, Limits{}, log)
	must(t, db.Append(ctx, &Batch{Events: []*droverv1.Event{event(start, "old", 1)}}))
	r := &request{work: func(context.Context) error { return fmt.Errorf("read: %w", errDamaged) }, done: make(chan error, 1)}
	if err := db.do(ctx, r); !errors.Is(err, errDamaged) {
		t.Fatalf("got %v", err)
	}
	must(t, db.Append(ctx, &Batch{Events: []*droverv1.Event{event(start, "new", 1)}}))
	got, err := db.Events(ctx, Filter{})
	if err != nil || len(got) != 1 || got[0].Name != "new" {
		t.Errorf("events: %v, %v", got, err)
	}
}

func TestNewerSchemaIsLeftAlone(t *testing.T) {
	c, path := newClock(), filepath.Join(t.TempDir(), "h.db")
	db := openTest(t, path, c, Limits{}, nil)
	must(t, db.do(t.Context(), &request{done: make(chan error, 1), work: func(ctx context.Context) error {
		_, err := db.write.ExecContext(ctx, `PRAGMA user_version = 99`)
		return err
	}}))
	must(t, db.Close())
	_, err := Open(t.Context(), Options{Path: path, Clock: c, Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, ErrNewerSchema) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the newer file is gone: %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	ok := Options{Path: "x", Clock: newClock(), Log: slog.New(slog.DiscardHandler)}
	for _, change := range []func(*Options){
		func(o *Options) { o.Path = "" },
		func(o *Options) { o.Clock = nil },
		func(o *Options) { o.Log = nil },
		func(o *Options) { o.Limits.Raw = time.Minute },
		func(o *Options) { o.Limits.Bytes = 5 },
	} {
		o := ok
		change(&o)
		if o.Validate() == nil {
			t.Errorf("%+v was taken", o)
		}
	}
	if err := ok.Validate(); err != nil || ok.Limits.Hour != 400*day {
		t.Errorf("%v, %+v", err, ok.Limits)
	}
}

func BenchmarkAppendThousandSamples(b *testing.B) {
	c := newClock()
	db := openTest(b, filepath.Join(b.TempDir(), "h.db"), c, Limits{}, nil)
	batch := &Batch{Samples: make([]Sample, 1000)}
	for b.Loop() {
		c.forward(10 * time.Second)
		for i := range batch.Samples {
			batch.Samples[i] = cpu(fmt.Sprint("vm-", i), c.now, 1)
		}
		must(b, db.Append(b.Context(), batch))
	}
}
