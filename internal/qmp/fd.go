package qmp

import (
	"context"
	"os"
)

// GetFD passes f to QEMU under a name, for one use ("fd:NAME"). A name that is
// in use is replaced. f stays the caller's.
func (c *Client) GetFD(ctx context.Context, name string, f *os.File) error {
	return c.Execute(ctx, "getfd", obj{"fdname": name}, nil, f)
}

// CloseFD closes what GetFD passed and nothing has used.
func (c *Client) CloseFD(ctx context.Context, name string) error {
	return c.Execute(ctx, "closefd", obj{"fdname": name}, nil)
}

// PassedFD says where QEMU keeps a descriptor: the file name is /dev/fdset/Set.
type PassedFD struct {
	Set int `json:"fdset-id"`
	FD  int `json:"fd"`
}

// AddFD passes f to QEMU as a member of the fd set; opaque comes back from
// QueryFDSets. Add one descriptor for each access mode that QEMU will open with:
// it takes the one whose mode is the same. A set with two descriptors of one
// image needs "locking": "off" in its file node, because QEMU's locks stay on
// a descriptor that it has left while the set holds it, and then exclude QEMU.
func (c *Client) AddFD(ctx context.Context, set int, opaque string, f *os.File) (PassedFD, error) {
	var out PassedFD
	err := c.Execute(ctx, "add-fd", obj{"fdset-id": set, "opaque": opaque}, &out, f)
	return out, err
}

// RemoveFD removes a whole set; QEMU closes it when nothing uses it any more.
func (c *Client) RemoveFD(ctx context.Context, set int) error {
	return c.Execute(ctx, "remove-fd", obj{"fdset-id": set}, nil)
}

// FDSet is a set of descriptors that QEMU holds.
type FDSet struct {
	ID  int     `json:"fdset-id"`
	FDs []SetFD `json:"fds"`
}

// SetFD is a descriptor in a set.
type SetFD struct {
	FD     int    `json:"fd"`
	Opaque string `json:"opaque"`
}

// QueryFDSets lists the sets.
func (c *Client) QueryFDSets(ctx context.Context) ([]FDSet, error) {
	var out []FDSet
	err := c.Execute(ctx, "query-fdsets", nil, &out)
	return out, err
}
