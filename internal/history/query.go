package history

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	droverv1 "drover/api/drover/v1"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// Filter says which records. Zero fields don't restrict.
type Filter struct {
	Kind, Name   string
	Principal    string            // audit only
	MinSeverity  droverv1.Severity // events only
	Since, Until time.Time         // Since is included, Until is not
	Before       int64             // only ids below: the last id of the page before
	Limit        int               // at most 1000; 0 means 100
}

func limit(n int) int {
	if n <= 0 {
		return 100
	}
	return min(n, 1000)
}

func (f *Filter) where() (string, []any) {
	var conds []string
	var args []any
	add := func(cond string, arg any) {
		conds = append(conds, cond)
		args = append(args, arg)
	}
	if f.Kind != "" {
		add("kind = ?", f.Kind)
	}
	if f.Name != "" {
		add("name = ?", f.Name)
	}
	if f.Principal != "" {
		add("principal = ?", f.Principal)
	}
	if f.MinSeverity != 0 {
		add("severity >= ?", int32(f.MinSeverity))
	}
	if !f.Since.IsZero() {
		add("t >= ?", f.Since.UnixMilli())
	}
	if !f.Until.IsZero() {
		add("t < ?", f.Until.UnixMilli())
	}
	if f.Before != 0 {
		add("id < ?", f.Before)
	}
	where := ""
	if conds != nil {
		where = " WHERE " + strings.Join(conds, " AND ")
	}
	return where + " ORDER BY id DESC LIMIT ?", append(args, limit(f.Limit))
}

// Events gives events, newest first.
func (db *DB) Events(ctx context.Context, f Filter) (out []*droverv1.Event, err error) {
	f.Principal = ""
	where, args := f.where()
	err = db.each(ctx, `SELECT id, t, severity, kind, name, host, reason, message FROM event`+where, args, func(rows *sql.Rows) error {
		e, t := &droverv1.Event{}, int64(0)
		if err := rows.Scan(&e.Id, &t, (*int32)(&e.Severity), &e.Kind, &e.Name, &e.Host, &e.Reason, &e.Message); err != nil {
			return err
		}
		e.Time = stamp(t)
		out = append(out, e)
		return nil
	})
	return out, err
}

// Audit gives audit records, newest first.
func (db *DB) Audit(ctx context.Context, f Filter) (out []*droverv1.AuditRecord, err error) {
	f.MinSeverity = 0
	where, args := f.where()
	err = db.each(ctx, `SELECT id, t, principal, source, method, kind, name, code, message, before, after FROM audit`+where, args, func(rows *sql.Rows) error {
		a, t := &droverv1.AuditRecord{}, int64(0)
		if err := rows.Scan(&a.Id, &t, &a.Principal, &a.Source, &a.Method, &a.Kind, &a.Name, &a.Code, &a.Message, &a.Before, &a.After); err != nil {
			return err
		}
		a.Time = stamp(t)
		out = append(out, a)
		return nil
	})
	return out, err
}

// TaskLog gives up to n (at most 1000, 0 means 100) lines of a task after the line with id after, oldest first.
func (db *DB) TaskLog(ctx context.Context, task string, after int64, n int) (out []TaskLine, err error) {
	err = db.each(ctx, `SELECT id, t, line FROM task_log WHERE task = ? AND id > ? ORDER BY id LIMIT ?`, []any{task, after, limit(n)}, func(rows *sql.Rows) error {
		l, t := TaskLine{Task: task}, int64(0)
		if err := rows.Scan(&l.ID, &t, &l.Line); err != nil {
			return err
		}
		l.Time = time.UnixMilli(t)
		out = append(out, l)
		return nil
	})
	return out, err
}

func (db *DB) each(ctx context.Context, query string, args []any, scan func(*sql.Rows) error) error {
	err := db.reader(func(r *sql.DB) error {
		rows, err := r.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := scan(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	})
	if err != nil {
		return fmt.Errorf("read history: %w", err)
	}
	return nil
}

func stamp(ms int64) *timestamppb.Timestamp { return timestamppb.New(time.UnixMilli(ms)) }

// MetricFilter says which series, from when to when, how fine.
type MetricFilter struct {
	Kind    string   // required
	Name    string   // empty: all of the kind
	Metrics []string // empty: all
	// Since defaults to an hour before Until, Until to now.
	Since, Until time.Time
	// Step is the distance of points; 0: as fine as is kept. It is widened so that no series has more than maxPoints.
	Step time.Duration
}

// maxPoints bounds one series of an answer.
const maxPoints = 2000

// Series gives measurements, each series in time order, from the finest table that still has all of the time asked for and
// is no finer than Step. Rolled-up tables are at most a minute behind.
func (db *DB) Series(ctx context.Context, f MetricFilter) (out []*droverv1.Series, err error) {
	now := db.opt.Clock.Now()
	if f.Until.IsZero() {
		f.Until = now
	}
	if f.Since.IsZero() {
		f.Since = f.Until.Add(-time.Hour)
	}
	if !f.Since.Before(f.Until) {
		return nil, fmt.Errorf("read history: from %v to %v is no time", f.Since, f.Until)
	}
	table, step := db.resolution(now, f.Since, max(f.Step, f.Until.Sub(f.Since)/maxPoints))
	cols := "sum(r.sum) / sum(r.n), min(r.min), max(r.max)"
	if table == "sample_raw" {
		cols = "avg(r.v), min(r.v), max(r.v)"
	}
	conds, args := `s.kind = ?`, []any{f.Kind}
	if f.Name != "" {
		conds, args = conds+` AND s.name = ?`, append(args, f.Name)
	}
	if len(f.Metrics) > 0 {
		conds += ` AND s.metric IN (?` + strings.Repeat(", ?", len(f.Metrics)-1) + `)`
		for _, m := range f.Metrics {
			args = append(args, m)
		}
	}
	args = append([]any{f.Since.UnixMilli(), f.Until.UnixMilli()}, args...)
	var last int64
	err = db.each(ctx, fmt.Sprintf(`SELECT s.id, s.kind, s.name, s.metric, s.unit, r.t - r.t %% %d AS b, %s
		FROM series s CROSS JOIN %s r ON r.series = s.id AND r.t >= ? AND r.t < ? WHERE %s GROUP BY s.kind, s.name, s.metric, b`,
		step, cols, table, conds), args, func(rows *sql.Rows) error {
		s, p := &droverv1.Series{}, &droverv1.Point{}
		var id, t int64
		if err := rows.Scan(&id, &s.Kind, &s.Name, &s.Metric, &s.Unit, &t, &p.Mean, &p.Min, &p.Max); err != nil {
			return err
		}
		if id != last || len(out) == 0 {
			out, last = append(out, s), id
		}
		p.Time = stamp(t)
		s = out[len(out)-1]
		s.Points = append(s.Points, p)
		return nil
	})
	return out, err
}

// resolution picks a table that is kept long enough and a step in milliseconds that its rows can make up.
func (db *DB) resolution(now, since time.Time, step time.Duration) (table string, ms int64) {
	age, ms := now.Sub(since), max(step.Milliseconds(), 1)
	l := &db.opt.Limits
	switch {
	case age <= l.Raw && ms < fiveMinutes:
		return "sample_raw", ms
	case age <= l.FiveMinute && ms < oneHour:
		return "sample_5m", roundUp(ms, fiveMinutes)
	}
	return "sample_1h", roundUp(ms, oneHour)
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
