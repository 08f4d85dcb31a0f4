package store

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

var (
	// ErrNotFound: there is no object of that name.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken.
	ErrExists = errors.New("already exists")
	// ErrConflict: the object is not at the revision that the write was based on. Read it again and retry.
	ErrConflict = errors.New("changed by someone else")
	// ErrCompacted: the revision asked for is gone from history. List, then watch from there.
	ErrCompacted = errors.New("revision is compacted")
	// ErrNewerSchema: the value was written by a newer Drover than this one.
	ErrNewerSchema = errors.New("written by a newer version of Drover; upgrade this one")
	// ErrCorrupt: the stored bytes are not a valid value.
	ErrCorrupt = errors.New("stored value is corrupt")
	// ErrInvalid: the request can never succeed as it is.
	ErrInvalid = errors.New("invalid request")
	// ErrUnavailable: the state store did not answer in time, has no leader or is full. A write that failed
	// this way may have been applied: read before writing again.
	ErrUnavailable = errors.New("state store is unavailable")
)

// Error is a failure on one object. It unwraps to a sentinel and to the cause.
type Error struct {
	Op   string // get, list, create, update, delete, check, watch, migrate, decode
	Kind string
	Name string // empty for a whole collection
	Err  error
}

func (e *Error) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("%s %s: %v", e.Op, e.Kind, e.Err)
	}
	return fmt.Sprintf("%s %s %q: %v", e.Op, e.Kind, e.Name, e.Err)
}

// Unwrap gives the sentinel and the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

func fail(op, kind, name string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Kind: kind, Name: name, Err: err}
}

// translate maps what etcd or its client returned to a sentinel. A cancelled caller gets its own error.
func translate(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case is(err, rpctypes.ErrGRPCCompacted, rpctypes.ErrCompacted):
		return ErrCompacted
	case is(err, rpctypes.ErrGRPCNoSpace, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: its space quota is used up; delete what is not needed, then compact and defragment it: %w", ErrUnavailable, err)
	case is(err, rpctypes.ErrGRPCRequestTooLarge, rpctypes.ErrRequestTooLarge):
		return fmt.Errorf("%w: the object is too large: %w", ErrInvalid, err)
	case is(err, rpctypes.ErrGRPCTooManyOps, rpctypes.ErrTooManyOps):
		return fmt.Errorf("%w: too many changes in one transaction: %w", ErrInvalid, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// is compares by identity and by message: the same failure is a gRPC status from the server in this
// process and a client error over the wire.
func is(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) || err.Error() == t.Error() || rpctypes.ErrorDesc(err) == rpctypes.ErrorDesc(t) {
			return true
		}
	}
	return false
}
