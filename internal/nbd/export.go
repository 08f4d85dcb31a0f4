package nbd

import "context"

// Export is what a server serves. Its methods are called concurrently, always within [0, Size). If it is Writable
// besides, peers may write; if it is a Contexter, they may ask for block status. Errors that wrap an Errno reach the peer
// as that, others as EIO; texts reach it too, cut to 200 bytes, so they must hold no secret.
type Export interface {
	Size() int64
	// ReadAt fills p from off, or fails.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Contexter is an export with block status.
type Contexter interface {
	// Contexts are the meta contexts that there are.
	Contexts() []string
	// Extents tells what the export is made of from off on, in order and without gaps, neighbours with other flags. It may
	// end before off+n, but not at off.
	Extents(ctx context.Context, context string, off, n int64) ([]Extent, error)
}

// Writable is an export that takes writes. What is written is durable only after Flush.
type Writable interface {
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Zero makes a range zeros; with punch its space may be given free.
	Zero(ctx context.Context, off, n int64, punch bool) error
	// Trim says that nobody needs the bytes of a range any more. It may do nothing.
	Trim(ctx context.Context, off, n int64) error
	Flush(ctx context.Context) error
}

// ReadOnly hides that an export is writable.
func ReadOnly(x Export) Export {
	if c, ok := x.(Contexter); ok {
		return struct {
			plain
			Contexter
		}{plain{x}, c}
	}
	return plain{x}
}

type plain struct{ x Export }

func (p plain) Size() int64 { return p.x.Size() }
func (p plain) ReadAt(ctx context.Context, b []byte, off int64) error {
	return p.x.ReadAt(ctx, b, off)
}
