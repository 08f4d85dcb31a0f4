package history

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"drover/internal/clock"

	_ "modernc.org/sqlite" // the database/sql driver named sqlite
)

var (
	// ErrClosed: the DB is closed or being closed.
	ErrClosed = errors.New("history is closed")
	// ErrNewerSchema: the file was written by a newer Drover.
	ErrNewerSchema = errors.New("history was written by a newer version of Drover; upgrade this one, or move the file away to start a new history")
)

// Limits bound the file. Zero means the default.
type Limits struct {
	Raw        time.Duration // samples as measured; 6 h
	FiveMinute time.Duration // 14 days
	Hour       time.Duration // 400 days
	Events     time.Duration // 90 days
	Audit      time.Duration // 400 days
	TaskLogs   time.Duration // 30 days
	Bytes      int64         // 1 GiB
}

// Options say where the history is. Path, Clock and Log are required.
type Options struct {
	Path   string
	Limits Limits
	Clock  clock.Clock
	Log    *slog.Logger
}

// Validate checks and fills in defaults.
func (o *Options) Validate() error {
	if o.Path == "" || o.Clock == nil || o.Log == nil {
		return errors.New("history options need a path, a clock and a logger")
	}
	l := &o.Limits
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&l.Raw, 6 * time.Hour}, {&l.FiveMinute, 14 * day}, {&l.Hour, 400 * day},
		{&l.Events, 90 * day}, {&l.Audit, 400 * day}, {&l.TaskLogs, 30 * day},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < time.Hour {
			return fmt.Errorf("history limit of %v is below an hour", *d.v)
		}
	}
	if l.Bytes == 0 {
		l.Bytes = 1 << 30
	}
	if l.Bytes < 1<<20 {
		return fmt.Errorf("history limit of %d bytes is below 1 MiB", l.Bytes)
	}
	return nil
}

const day = 24 * time.Hour

// DB is an open history. Its methods are safe for concurrent use.
type DB struct {
	opt Options

	requests chan *request
	// life is the writer's context: it outlives the one of Open, and Close ends the writer by stop.
	life context.Context
	// stop is closed by Close; done when the writer has ended.
	stop, done chan struct{}
	stopOnce   sync.Once

	// mu guards read, which is replaced together with a corrupt file.
	mu   sync.RWMutex
	read *sql.DB

	// write, its prepared statements and the series' ids belong to the writer goroutine.
	write  *sql.DB
	stmts  *statements
	series map[seriesKey]int64
}

// Open opens or makes the file and starts the writer. ctx bounds the opening alone; the caller closes the DB.
func Open(ctx context.Context, o Options) (*DB, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	db := &DB{
		opt:      o,
		requests: make(chan *request, 64),
		stop:     make(chan struct{}),
		done:     make(chan struct{}),
	}
	err := db.open(ctx)
	if isCorrupt(err) {
		if err = db.moveAside(err); err == nil {
			err = db.open(ctx)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open history %s: %w", o.Path, err)
	}
	db.life = context.WithoutCancel(ctx)
	go db.run(db.life)
	return db, nil
}

// Close writes what is queued and ends the writer.
func (db *DB) Close() error {
	db.stopOnce.Do(func() { close(db.stop) })
	<-db.done
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.closeFiles(true)
}

// closeFiles closes both handles; a clean file need not be checked when it is opened again.
func (db *DB) closeFiles(clean bool) error {
	var errs []error
	// The reader first: the last connection empties and removes the log, and a reader cannot.
	if db.read != nil {
		errs = append(errs, db.read.Close())
	}
	if db.stmts != nil {
		errs = append(errs, db.stmts.close())
	}
	if db.write != nil {
		if clean {
			_, err := db.write.ExecContext(db.life, `UPDATE meta SET clean = 1`)
			errs = append(errs, err)
		}
		errs = append(errs, db.write.Close())
	}
	db.stmts, db.write, db.read, db.series = nil, nil, nil, nil
	return errors.Join(errs...)
}

// open opens the file for writing and reading, checks it after a crash and brings its schema up to date.
func (db *DB) open(ctx context.Context) (err error) {
	if err := os.MkdirAll(filepath.Dir(db.opt.Path), 0o700); err != nil {
		return err
	}
	// SQLite makes its files world-readable as far as the umask lets it; the log beside it gets the file's mode.
	f, err := os.OpenFile(db.opt.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.closeFiles(false))
		}
	}()
	db.series = map[seriesKey]int64{}
	if db.write, err = sql.Open("sqlite", dsn(db.opt.Path, false)); err != nil {
		return err
	}
	db.write.SetMaxOpenConns(1)
	if err := migrate(ctx, db.write); err != nil {
		return err
	}
	if db.stmts, err = prepare(ctx, db.write); err != nil {
		return err
	}
	if db.read, err = sql.Open("sqlite", dsn(db.opt.Path, true)); err != nil {
		return err
	}
	db.read.SetMaxOpenConns(2)
	return db.read.PingContext(ctx)
}

func dsn(path string, readOnly bool) string {
	q := url.Values{}
	pragmas := []string{"busy_timeout(10000)", "cache_size(-2048)", "temp_store(memory)"}
	if readOnly {
		q.Set("mode", "ro")
		pragmas = append(pragmas, "query_only(1)")
	} else {
		q.Set("_txlock", "immediate")
		pragmas = append(pragmas, "auto_vacuum(incremental)", "journal_mode(wal)", "synchronous(full)", "journal_size_limit(8388608)")
	}
	q["_pragma"] = pragmas
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// reader runs f on the handle for reading, which stays open for that long.
func (db *DB) reader(f func(*sql.DB) error) error {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if db.read == nil {
		return ErrClosed
	}
	return f(db.read)
}
