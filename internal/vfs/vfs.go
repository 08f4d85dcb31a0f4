package vfs

import (
	"errors"
	"io"
	"io/fs"
	"path"
)

// ErrLocked: another holds the lock.
var ErrLocked = errors.New("locked by another")

// FS opens directories by their path on the machine.
type FS interface {
	// OpenRoot opens the directory at path. With create it makes it first, with its parents, durably.
	OpenRoot(path string, create bool) (Root, error)
}

// Root is an open directory. Paths are slash-separated, relative to it, clean, and may be "." where a directory is meant.
// Errors wrap those of package syscall and io/fs. All methods are for concurrent use.
type Root interface {
	// Create makes a file that is not there, for reading and writing.
	Create(name string) (File, error)
	// Open opens a regular file for reading.
	Open(name string) (File, error)
	// Lock makes the file if it is not there and takes its lock, which lasts until Close or the end of the process. It
	// fails with ErrLocked if another has it. Whoever has the lock may remove the file.
	Lock(name string) (io.Closer, error)
	// Link gives the file old the name new too. It fails with fs.ErrExist if the name is taken.
	Link(old, new string) error
	// Remove removes a file, not a directory.
	Remove(name string) error
	// Mkdir makes one directory.
	Mkdir(name string) error
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	// ReadDir returns the names in a directory, in no order.
	ReadDir(name string) ([]Entry, error)
	// Stat describes a name, itself and not what a symbolic link points to.
	Stat(name string) (Info, error)
	// Space is the size of the file system and what an ordinary user may still write, in bytes.
	Space() (total, free int64, err error)
	// Close lets go of the directory. Open files stay open.
	Close() error
}

// File is an open file. Its methods are for concurrent use.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes the file's bytes and length durable, not its name.
	Sync() error
	// Flush begins to write a range to the disk and does not wait, so that Sync has less to do. It is a hint.
	Flush(off, n int64)
	Stat() (Info, error)
}

// Entry is a name in a directory.
type Entry struct {
	Name string
	// Type has the bits of fs.ModeType alone.
	Type fs.FileMode
}

// Info describes a file.
type Info struct {
	Size int64
	Type fs.FileMode
	// Links counts its names.
	Links uint64
	// Dev and Ino tell whether two names are one file.
	Dev, Ino uint64
}

// Same reports whether two names were the same file.
func (i Info) Same(o Info) bool { return i.Dev == o.Dev && i.Ino == o.Ino }

// MkdirAll makes a directory and its parents durably: each name is synced in the directory above it, also if another
// made it, who may not have come to that yet.
func MkdirAll(r Root, name string) error {
	if name == "." {
		return nil
	}
	parent := path.Dir(name)
	if err := MkdirAll(r, parent); err != nil {
		return err
	}
	if err := r.Mkdir(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return r.SyncDir(parent)
}
