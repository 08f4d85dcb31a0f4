package history

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	droverv1 "drover/api/drover/v1"
)

// Sample is one measurement of one object.
type Sample struct {
	Kind, Name   string // "vm", "web-1"
	Metric, Unit string // "cpu", "ratio"
	Time         time.Time
	Value        float64
}

// TaskLine is one line of a task's log. ID grows.
type TaskLine struct {
	ID   int64
	Task string
	Time time.Time
	Line string
}

// Batch is appended as a whole or not at all. The ids of its records are given by Append.
type Batch struct {
	Samples []Sample
	Events  []*droverv1.Event
	Audit   []*droverv1.AuditRecord
	Lines   []TaskLine
}

// Longer texts are cut: no caller, and no guest behind it, fills the file with one record.
const (
	maxLine = 8 << 10
	maxText = 256 << 10
)

// request is something for the writer to do: append a batch, or run work.
type request struct {
	batch *Batch
	work  func(context.Context) error
	// ids of events, audit records and lines, in that order; read by the caller after done.
	ids  []int64
	done chan error // buffered
}

// Append writes b durably, and sets the ids of its events, audit records and lines. Batches that wait at the same time share one
// commit. If ctx ends first, the batch may still be written, and
// must not be changed any more. Callers that must not wait call it from a goroutine of their own.
func (db *DB) Append(ctx context.Context, b *Batch) error {
	batch := *b
	r := &request{batch: &batch, done: make(chan error, 1)}
	if err := db.do(ctx, r); err != nil {
		return fmt.Errorf("append to history: %w", err)
	}
	ids := r.ids
	for i := range b.Events {
		b.Events[i].Id, ids = ids[0], ids[1:]
	}
	for i := range b.Audit {
		b.Audit[i].Id, ids = ids[0], ids[1:]
	}
	for i := range b.Lines {
		b.Lines[i].ID, ids = ids[0], ids[1:]
	}
	return nil
}

func (db *DB) do(ctx context.Context, r *request) error {
	select {
	case <-db.stop:
		return ErrClosed
	default:
	}
	select {
	case db.requests <- r:
	case <-db.stop:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-db.done:
		// The writer takes all that was queued before it ends; a request that came after it did is lost.
		select {
		case err := <-r.done:
			return err
		default:
			return ErrClosed
		}
	}
}

// maintainEvery is how often the writer rolls up and forgets.
const maintainEvery = time.Minute

// run is the writer.
func (db *DB) run(ctx context.Context) {
	defer close(db.done)
	timer := db.opt.Clock.NewTimer(maintainEvery)
	defer timer.Stop()
	for {
		select {
		case r := <-db.requests:
			db.serve(ctx, r)
		case <-timer.C:
			if err := db.maintain(ctx); err != nil {
				db.opt.Log.Error("history maintenance failed; it is tried again in a minute", "path", db.opt.Path, "err", err)
				db.renew(ctx, err)
			}
			timer.Reset(maintainEvery)
		case <-db.stop:
			for {
				select {
				case r := <-db.requests:
					db.serve(ctx, r)
				default:
					return
				}
			}
		}
	}
}

// maxGroup bounds how many requests share one commit.
const maxGroup = 64

// serve does r and whatever else waits.
func (db *DB) serve(ctx context.Context, r *request) {
	group := []*request{}
	for r != nil && len(group) < maxGroup {
		if r.work != nil {
			break
		}
		group = append(group, r)
		select {
		case r = <-db.requests:
		default:
			r = nil
		}
	}
	if len(group) > 0 {
		db.writeGroup(ctx, group)
	}
	switch {
	case r == nil:
	case r.work != nil:
		err := r.work(ctx)
		db.renew(ctx, err)
		r.done <- err
	default: // the group was full
		db.writeGroup(ctx, []*request{r})
	}
}

func (db *DB) writeGroup(ctx context.Context, group []*request) {
	err := db.commit(ctx, group)
	if db.renew(ctx, err) {
		err = db.commit(ctx, group)
	}
	if err != nil && len(group) > 1 {
		// One bad batch must not fail the others.
		for _, r := range group {
			r.done <- db.commit(ctx, []*request{r})
		}
		return
	}
	for _, r := range group {
		r.done <- err
	}
}

// renew begins a new file if err says that this one is corrupt; then it returns true.
func (db *DB) renew(ctx context.Context, err error) bool {
	if !isCorrupt(err) {
		return false
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if cerr := db.closeFiles(false); cerr != nil {
		db.opt.Log.Warn("closing a corrupt history failed", "path", db.opt.Path, "err", cerr)
	}
	if err = db.moveAside(err); err == nil {
		err = db.open(ctx)
	}
	if err != nil {
		db.opt.Log.Error("a new history could not be begun; nothing is recorded until a restart", "path", db.opt.Path, "err", err)
		return false
	}
	return true
}

func (db *DB) commit(ctx context.Context, group []*request) error {
	if db.write == nil {
		return ErrClosed
	}
	tx, err := db.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	for _, r := range group {
		r.ids = r.ids[:0]
		if err = db.insert(ctx, tx, r); err != nil {
			break
		}
	}
	if err != nil {
		clear(db.series) // ids made in this transaction are gone
		return errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		clear(db.series)
		return err
	}
	return nil
}

func (db *DB) insert(ctx context.Context, tx *sql.Tx, r *request) error {
	sample := tx.StmtContext(ctx, db.stmts.sample)
	for i := range r.batch.Samples {
		s := &r.batch.Samples[i]
		id, err := db.seriesID(ctx, tx, s)
		if err != nil {
			return err
		}
		if s.Value != s.Value { // SQLite keeps NaN as NULL
			continue
		}
		if _, err := sample.ExecContext(ctx, id, s.Time.UnixMilli(), s.Value); err != nil {
			return err
		}
	}
	add := func(stmt *sql.Stmt, args ...any) error {
		res, err := tx.StmtContext(ctx, stmt).ExecContext(ctx, args...)
		if err != nil {
			return err
		}
		id, err := res.LastInsertId()
		r.ids = append(r.ids, id)
		return err
	}
	for _, e := range r.batch.Events {
		if err := add(db.stmts.event, e.Time.AsTime().UnixMilli(), int32(e.Severity), e.Kind, e.Name, e.Host, e.Reason, cut(e.Message, maxLine)); err != nil {
			return err
		}
	}
	for _, a := range r.batch.Audit {
		if err := add(db.stmts.audit, a.Time.AsTime().UnixMilli(), a.Principal, a.Source, a.Method, a.Kind, a.Name, a.Code,
			cut(a.Message, maxLine), cut(a.Before, maxText), cut(a.After, maxText)); err != nil {
			return err
		}
	}
	for i := range r.batch.Lines {
		l := &r.batch.Lines[i]
		if err := add(db.stmts.taskLine, l.Task, l.Time.UnixMilli(), cut(l.Line, maxLine)); err != nil {
			return err
		}
	}
	return nil
}

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 { // not inside a character
		n--
	}
	return s[:n] + "…"
}

type seriesKey struct{ kind, name, metric string }

// maxSeries bounds the writer's memory of ids; past it, it looks them up again.
const maxSeries = 50_000

func (db *DB) seriesID(ctx context.Context, tx *sql.Tx, s *Sample) (int64, error) {
	key := seriesKey{s.Kind, s.Name, s.Metric}
	if id, ok := db.series[key]; ok {
		return id, nil
	}
	var id int64
	err := tx.StmtContext(ctx, db.stmts.seriesID).QueryRowContext(ctx, s.Kind, s.Name, s.Metric).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		var res sql.Result
		if res, err = tx.StmtContext(ctx, db.stmts.newSeries).ExecContext(ctx, s.Kind, s.Name, s.Metric, s.Unit); err == nil {
			id, err = res.LastInsertId()
		}
	}
	if err != nil {
		return 0, err
	}
	if len(db.series) >= maxSeries {
		clear(db.series)
	}
	db.series[key] = id
	return id, nil
}
