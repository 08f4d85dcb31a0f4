package backup

import (
	"context"
	"errors"
	"time"
)

// Errors that callers branch on.
var (
	ErrNotFound = errors.New("not found")
	// ErrEnded: the session was ended by another, or by a restart of the repository's service. Nothing acknowledged is lost; begin again.
	ErrEnded = errors.New("the session has ended")
	// ErrDamaged: bytes in the repository are not what was written, and could not be repaired.
	ErrDamaged = errors.New("damaged in the repository")
)

// Repository is where restore points are kept: on this machine (Local) or a service over the network (package remote).
type Repository interface {
	// Info tells what it is.
	Info(ctx context.Context) (Info, error)
	// Points lists restore points, of one VM if vmUID is not empty, oldest first.
	Points(ctx context.Context, vmUID string) ([]Point, error)
	// Begin starts to write points. The caller ends it by Close, also after Commit.
	Begin(ctx context.Context, o SessionOptions) (Session, error)
	// OpenPoint starts to read a point, which stays readable until Close.
	OpenPoint(ctx context.Context, id string) (PointReader, error)
}

// Info describes a repository.
type Info struct {
	ID        string // hexadecimal
	BlockSize int    // bytes
	Encrypted bool
}

// SessionOptions are for Begin.
type SessionOptions struct {
	Purpose string
	// VMUID and the points (ids) that disks are written against.
	VMUID string
	Pins  []string
}

// Session writes points. Methods are for concurrent use.
type Session interface {
	// Disk begins a disk of a new point.
	Disk(ctx context.Context, o DiskOptions) (DiskWriter, error)
	// Commit makes the point of disks that are finished. When it returns without error the point is durable.
	Commit(ctx context.Context, p Point) (Point, error)
	// Close ends the session. What was not committed is no point, but serves later sessions.
	Close() error
}

// DiskOptions are for Session.Disk.
type DiskOptions struct {
	Name string
	Size int64 // bytes
	// Point (id) and Disk to compare with; empty: none.
	ParentPoint, ParentDisk string
	// What is not written is as in the parent. Without it, it is zeros.
	Incremental bool
}

// DiskWriter takes a disk's blocks, in any order, from several goroutines at once.
type DiskWriter interface {
	// Put stores the block with this number: Info.BlockSize bytes, but for the disk's last, which may be shorter. The buffer is the caller's again on return.
	Put(ctx context.Context, block int64, data []byte) error
	// Zero makes count blocks zeros.
	Zero(ctx context.Context, block, count int64) error
	// Finish makes the disk ready for Commit. All other calls have returned before.
	Finish(ctx context.Context) (DiskResult, error)
}

// DiskResult tells of a disk that was written.
type DiskResult struct {
	Read   int64 // bytes given to Put
	Stored int64 // bytes that the repository lacked, before compression
	Packed int64 // the same, as stored
}

// PointReader reads a point. Methods are for concurrent use.
type PointReader interface {
	Point() Point
	// Disk opens a disk by name.
	Disk(ctx context.Context, name string) (DiskReader, error)
	Close() error
}

// DiskReader reads a disk. Methods are for concurrent use.
type DiskReader interface {
	Size() int64
	// ReadAt fills p from off; beyond the end are zeros. Bytes are checked; an error means that p holds nothing of worth.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Extents tells what [off, off+n) is made of, in order and without gaps.
	Extents(ctx context.Context, off, n int64) ([]Extent, error)
	// Changed tells what may differ from the disk of another point of the repository.
	Changed(ctx context.Context, point, disk string) ([]Extent, error)
	Close() error
}

// Extent is a part of a disk, in bytes.
type Extent struct {
	Offset, Length int64
	// Zero: it reads as zeros. In Changed: it is zeros now.
	Zero bool
}

// Point is a restore point. As JSON it is the description that the repository keeps with it: fields are only ever added.
type Point struct {
	// ID is given at Commit, if empty: 32 hexadecimal digits.
	ID    string    `json:"id"`
	VMUID string    `json:"vmUid"`
	VM    string    `json:"vm"`
	Time  time.Time `json:"time"` // when its disks were what they are in it
	Disks []Disk    `json:"disks"`
	// Definition is the VM's api message drover.v1.VM as JSON, without status.
	Definition []byte `json:"definition,omitempty"`
	// Files are small parts by name: "nvram", "tpm".
	Files map[string][]byte `json:"files,omitempty"`
	// Memory is the disk that holds the guest's memory; empty: none.
	Memory string `json:"memory,omitempty"`
	// Consistency: "crash", "quiesced", "off" or "memory".
	Consistency string `json:"consistency,omitempty"`
	// Parent is the point that this one was written against, and Full says why nothing was.
	Parent string            `json:"parent,omitempty"`
	Full   string            `json:"full,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Sizes in bytes: of the disks, read for this point, lacked before compression, stored for it.
	Logical int64 `json:"logical"`
	Read    int64 `json:"read"`
	Lacked  int64 `json:"lacked"`
	Added   int64 `json:"added"`
}

// Disk is a disk of a point.
type Disk struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	// Bitmap names the tracking of changes that began with this point; empty: none.
	Bitmap string `json:"bitmap,omitempty"`
}
