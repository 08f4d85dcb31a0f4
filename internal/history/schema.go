package history

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// schema has one entry for each version; a file at version n gets schema[n:]. Times are milliseconds since 1970.
var schema = []string{`
CREATE TABLE meta (clean INTEGER NOT NULL);
INSERT INTO meta VALUES (1);

CREATE TABLE series (
	id INTEGER PRIMARY KEY,
	kind TEXT NOT NULL, name TEXT NOT NULL, metric TEXT NOT NULL, unit TEXT NOT NULL,
	UNIQUE (kind, name, metric)
);
CREATE TABLE sample_raw (series INTEGER NOT NULL, t INTEGER NOT NULL, v REAL NOT NULL, PRIMARY KEY (series, t)) WITHOUT ROWID;
CREATE TABLE sample_5m (
	series INTEGER NOT NULL, t INTEGER NOT NULL,
	n INTEGER NOT NULL, sum REAL NOT NULL, min REAL NOT NULL, max REAL NOT NULL,
	PRIMARY KEY (series, t)
) WITHOUT ROWID;
CREATE TABLE sample_1h (
	series INTEGER NOT NULL, t INTEGER NOT NULL,
	n INTEGER NOT NULL, sum REAL NOT NULL, min REAL NOT NULL, max REAL NOT NULL,
	PRIMARY KEY (series, t)
) WITHOUT ROWID;
-- Everything before t has been rolled up into the level.
CREATE TABLE rolled (level TEXT PRIMARY KEY, t INTEGER NOT NULL);

CREATE TABLE event (
	id INTEGER PRIMARY KEY AUTOINCREMENT, t INTEGER NOT NULL, severity INTEGER NOT NULL,
	kind TEXT NOT NULL, name TEXT NOT NULL, host TEXT NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL
);
CREATE INDEX event_object ON event (kind, name, id);
CREATE INDEX event_time ON event (t);

CREATE TABLE audit (
	id INTEGER PRIMARY KEY AUTOINCREMENT, t INTEGER NOT NULL, principal TEXT NOT NULL, source TEXT NOT NULL,
	method TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL,
	before TEXT NOT NULL, after TEXT NOT NULL
);
CREATE INDEX audit_object ON audit (kind, name, id);
CREATE INDEX audit_principal ON audit (principal, id);
CREATE INDEX audit_time ON audit (t);

CREATE TABLE task_log (id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, t INTEGER NOT NULL, line TEXT NOT NULL);
CREATE INDEX task_log_task ON task_log (task, id);
CREATE INDEX task_log_time ON task_log (t);
`}

// migrate checks a file that was not closed cleanly and brings it to the newest schema.
func migrate(ctx context.Context, w *sql.DB) error {
	var version int
	if err := w.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	if version > len(schema) {
		return fmt.Errorf("%w (schema %d, this one knows %d)", ErrNewerSchema, version, len(schema))
	}
	if version > 0 {
		if err := check(ctx, w); err != nil {
			return err
		}
	}
	for ; version < len(schema); version++ {
		tx, err := w.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, schema[version]+fmt.Sprintf("PRAGMA user_version = %d;", version+1))
		if err != nil {
			return errors.Join(fmt.Errorf("make schema %d: %w", version+1, err), tx.Rollback())
		}
		if err := tx.Commit(); err != nil {
			return err
		}
	}
	_, err := w.ExecContext(ctx, `UPDATE meta SET clean = 0`)
	return err
}

// check reads all of a file that may have been hurt; one that was closed cleanly is taken as it is.
func check(ctx context.Context, w *sql.DB) error {
	var clean bool
	if err := w.QueryRowContext(ctx, `SELECT clean FROM meta`).Scan(&clean); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	if clean {
		return nil
	}
	var verdict string
	if err := w.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return fmt.Errorf("%w: %s", errDamaged, verdict)
	}
	return nil
}

// statements are the writer's, prepared once.
type statements struct {
	seriesID, newSeries, sample, event, audit, taskLine *sql.Stmt
	all                                                 []*sql.Stmt
}

func prepare(ctx context.Context, w *sql.DB) (*statements, error) {
	s := &statements{}
	for _, p := range []struct {
		to  **sql.Stmt
		sql string
	}{
		{&s.seriesID, `SELECT id FROM series WHERE kind = ? AND name = ? AND metric = ?`},
		{&s.newSeries, `INSERT INTO series (kind, name, metric, unit) VALUES (?, ?, ?, ?)`},
		{&s.sample, `INSERT OR REPLACE INTO sample_raw (series, t, v) VALUES (?, ?, ?)`},
		{&s.event, `INSERT INTO event (t, severity, kind, name, host, reason, message) VALUES (?, ?, ?, ?, ?, ?, ?)`},
		{&s.audit, `INSERT INTO audit (t, principal, source, method, kind, name, code, message, before, after) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`},
		{&s.taskLine, `INSERT INTO task_log (task, t, line) VALUES (?, ?, ?)`},
	} {
		stmt, err := w.PrepareContext(ctx, p.sql)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		*p.to = stmt
		s.all = append(s.all, stmt)
	}
	return s, nil
}

func (s *statements) close() error {
	var errs []error
	for _, stmt := range s.all {
		errs = append(errs, stmt.Close())
	}
	return errors.Join(errs...)
}
