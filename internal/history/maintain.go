package history

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Maintain rolls up and forgets now. The writer does it by itself every minute.
func (db *DB) Maintain(ctx context.Context) error {
	r := &request{work: db.maintain, done: make(chan error, 1)}
	if err := db.do(ctx, r); err != nil {
		return fmt.Errorf("maintain history: %w", err)
	}
	return nil
}

func (db *DB) maintain(ctx context.Context) error {
	if db.write == nil {
		return ErrClosed
	}
	now := db.opt.Clock.Now()
	if err := db.rollUp(ctx, now); err != nil {
		return fmt.Errorf("roll up: %w", err)
	}
	if err := db.forget(ctx, now, 1, true); err != nil {
		return fmt.Errorf("forget what is old: %w", err)
	}
	if err := db.fit(ctx, now); err != nil {
		return fmt.Errorf("keep to the size: %w", err)
	}
	return nil
}

// level is one step of the roll-up: bucket milliseconds of from become one row of to.
type level struct {
	to, from string
	bucket   int64
	rows     string // what a row of from gives: n, sum, min, max
}

const (
	fiveMinutes = int64(5 * time.Minute / time.Millisecond)
	oneHour     = int64(time.Hour / time.Millisecond)
)

var levels = [...]level{
	{"sample_5m", "sample_raw", fiveMinutes, "count(*), sum(r.v), min(r.v), max(r.v)"},
	{"sample_1h", "sample_5m", oneHour, "sum(r.n), sum(r.sum), min(r.min), max(r.max)"},
}

// rollUp computes again every bucket since the last time, the two before it (for samples that came late) and the open
// one. The series come first in the join, so that each is one seek, not a scan of all samples.
func (db *DB) rollUp(ctx context.Context, now time.Time) error {
	for _, l := range levels {
		var last int64
		row := db.write.QueryRowContext(ctx, `SELECT coalesce(max(t), 0) FROM rolled WHERE level = ?`, l.to)
		if err := row.Scan(&last); err != nil {
			return err
		}
		tx, err := db.write.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, fmt.Sprintf(`INSERT OR REPLACE INTO %s
			SELECT s.id, r.t - r.t %% %d, %s FROM series s CROSS JOIN %s r ON r.series = s.id AND r.t >= ?
			GROUP BY s.id, r.t - r.t %% %d`, l.to, l.bucket, l.rows, l.from, l.bucket), last-last%l.bucket-2*l.bucket)
		if err == nil {
			_, err = tx.ExecContext(ctx, `INSERT OR REPLACE INTO rolled VALUES (?, ?)`, l.to, now.UnixMilli())
		}
		if err != nil {
			_ = tx.Rollback() // err says why
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
	}
	return nil
}

// chunk is how many rows one transaction deletes: the writer is never gone for long.
const chunk = 5000

// forget deletes what is older than factor times its limit; audit records only if audit.
func (db *DB) forget(ctx context.Context, now time.Time, factor float64, audit bool) error {
	l := &db.opt.Limits
	for _, t := range []struct {
		table string
		age   time.Duration
	}{
		{"sample_raw", l.Raw}, {"sample_5m", l.FiveMinute}, {"sample_1h", l.Hour},
		{"task_log", l.TaskLogs}, {"event", l.Events}, {"audit", l.Audit},
	} {
		if t.table == "audit" && !audit {
			continue
		}
		cutoff := now.Add(-time.Duration(float64(t.age) * factor)).UnixMilli()
		q := fmt.Sprintf(`DELETE FROM %s WHERE id IN (SELECT id FROM %s WHERE t < ? ORDER BY t LIMIT %d)`, t.table, t.table, chunk)
		if strings.HasPrefix(t.table, "sample") {
			q = fmt.Sprintf(`DELETE FROM %s WHERE (series, t) IN
				(SELECT r.series, r.t FROM series s CROSS JOIN %s r ON r.series = s.id AND r.t < ? LIMIT %d)`, t.table, t.table, chunk)
		}
		for {
			res, err := db.write.ExecContext(ctx, q, cutoff)
			if err != nil {
				return err
			}
			n, err := res.RowsAffected()
			if err != nil {
				return err
			}
			if n < chunk {
				break
			}
		}
	}
	res, err := db.write.ExecContext(ctx, `DELETE FROM series WHERE NOT EXISTS (SELECT 1 FROM sample_raw r WHERE r.series = series.id)
		AND NOT EXISTS (SELECT 1 FROM sample_5m r WHERE r.series = series.id) AND NOT EXISTS (SELECT 1 FROM sample_1h r WHERE r.series = series.id)`)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n > 0 {
		clear(db.series)
	}
	return nil
}

// fit shortens all ages together until the content is within its size. Audit records go only when nothing else is left to
// give.
func (db *DB) fit(ctx context.Context, now time.Time) error {
	for factor := 0.8; ; factor *= 0.8 {
		used, free, err := db.size(ctx)
		if err != nil {
			return err
		}
		if used <= db.opt.Limits.Bytes || factor < 1e-6 {
			if free > 0 {
				// Step through the statement to its end: each row it yields is one page given back.
				rows, err := db.write.QueryContext(ctx, `PRAGMA incremental_vacuum`)
				if err != nil {
					return err
				}
				for rows.Next() {
				}
				if err := rows.Close(); err != nil {
					return err
				}
			}
			return nil
		}
		if err := db.forget(ctx, now, factor, factor < 0.05); err != nil {
			return err
		}
	}
}

// size is how many bytes of the file hold something, and how many are free.
func (db *DB) size(ctx context.Context) (used, free int64, err error) {
	var pages, unused, size int64
	for _, p := range []struct {
		name string
		to   *int64
	}{{"page_count", &pages}, {"freelist_count", &unused}, {"page_size", &size}} {
		if err := db.write.QueryRowContext(ctx, "PRAGMA "+p.name).Scan(p.to); err != nil {
			return 0, 0, err
		}
	}
	return (pages - unused) * size, unused * size, nil
}
