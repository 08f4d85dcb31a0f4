package blob

import (
	"context"
	"errors"
	"io"
	"iter"
)

// Errors that callers branch on. Others are of the world (a full disk, a server that is down): the operation may or may not have happened.
var (
	ErrExists   = errors.New("object exists already")
	ErrNotFound = errors.New("object does not exist")
	// ErrReadOnly: the store may not be written to, or not deleted from (a key without that right, a lock in force).
	ErrReadOnly = errors.New("not permitted")
	// ErrFull: no room, or over a quota.
	ErrFull = errors.New("no space left")
)

// Info is an object as a listing shows it.
type Info struct {
	Name string
	Size int64 // bytes
}

// Writer takes an object's bytes in order. It is not for concurrent use.
type Writer interface {
	io.Writer
	// Commit makes the object appear, whole and durable, under its name. It fails with ErrExists if there is one; the
	// bytes are then dropped. After an error of another kind the object may be there or not.
	Commit() error
	// Abort drops what was written. It does nothing after Commit.
	Abort()
}

// Store holds objects. Names are slash-separated paths of [a-z0-9._-]. All methods are for concurrent use.
type Store interface {
	// Put stores a small object if its name is free, else ErrExists.
	Put(ctx context.Context, name string, data []byte) error
	// Create begins a large object. Whether the name is free is known at Commit. ctx covers the whole writing.
	Create(ctx context.Context, name string) (Writer, error)
	// ReadAt fills p from offset off. It fails with io.ErrUnexpectedEOF if the object is shorter.
	ReadAt(ctx context.Context, name string, p []byte, off int64) error
	// Get reads a whole object of at most limit bytes.
	Get(ctx context.Context, name string, limit int64) ([]byte, error)
	// Size is an object's length in bytes.
	Size(ctx context.Context, name string) (int64, error)
	// List yields objects whose names begin with prefix and are greater than after, in order of their names.
	List(ctx context.Context, prefix, after string) iter.Seq2[Info, error]
	// Delete removes an object. One that is not there is no error.
	Delete(ctx context.Context, name string) error
	// Space is how much is free, in bytes; ok is false if nobody knows (S3).
	Space(ctx context.Context) (total, free int64, ok bool, err error)
	// String names the store for people, without secrets.
	String() string
}
