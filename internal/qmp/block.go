package qmp

import (
	"context"
	"encoding/json"
)

// BlockDevice is a guest's block device as query-block shows it.
type BlockDevice struct {
	// Device is the drive's name; empty for devices made from -blockdev.
	Device string `json:"device"`
	// QDev is the device's id or its path in the object tree.
	QDev      string     `json:"qdev"`
	Removable bool       `json:"removable"`
	Locked    bool       `json:"locked"`
	TrayOpen  bool       `json:"tray_open"`
	IOStatus  string     `json:"io-status"` // "ok", "failed" or "nospace"
	Inserted  *BlockNode `json:"inserted"`  // nil: no medium
}

// BlockNode is one node of the block graph.
type BlockNode struct {
	NodeName         string `json:"node-name"`
	Driver           string `json:"drv"`
	File             string `json:"file"`
	ReadOnly         bool   `json:"ro"`
	Encrypted        bool   `json:"encrypted"`
	BackingFile      string `json:"backing_file"`
	BackingFileDepth int    `json:"backing_file_depth"`
	Cache            struct {
		Writeback bool `json:"writeback"`
		Direct    bool `json:"direct"`
		NoFlush   bool `json:"no-flush"`
	} `json:"cache"`
	Image   ImageInfo `json:"image"`
	Bitmaps []Bitmap  `json:"dirty-bitmaps"`
}

// ImageInfo is what QEMU knows of an image file.
type ImageInfo struct {
	Filename    string `json:"filename"`
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual-size"` // bytes
	ActualSize  int64  `json:"actual-size"`  // bytes on disk
	ClusterSize int64  `json:"cluster-size"`
	Dirty       bool   `json:"dirty-flag"`
	// FormatSpecific depends on Format.
	FormatSpecific json.RawMessage `json:"format-specific"`
}

// QueryBlock lists the guest's block devices.
func (c *Client) QueryBlock(ctx context.Context) ([]BlockDevice, error) {
	var out []BlockDevice
	err := c.Execute(ctx, "query-block", nil, &out)
	return out, err
}

// BlockStats are the counters of one device or node, since QEMU's start.
type BlockStats struct {
	Device   string `json:"device"`
	QDev     string `json:"qdev"`
	NodeName string `json:"node-name"`
	Stats    struct {
		ReadBytes       uint64 `json:"rd_bytes"`
		WriteBytes      uint64 `json:"wr_bytes"`
		ReadOps         uint64 `json:"rd_operations"`
		WriteOps        uint64 `json:"wr_operations"`
		FlushOps        uint64 `json:"flush_operations"`
		UnmapOps        uint64 `json:"unmap_operations"`
		ReadTime        uint64 `json:"rd_total_time_ns"`
		WriteTime       uint64 `json:"wr_total_time_ns"`
		FlushTime       uint64 `json:"flush_total_time_ns"`
		FailedReads     uint64 `json:"failed_rd_operations"`
		FailedWrites    uint64 `json:"failed_wr_operations"`
		WrHighestOffset uint64 `json:"wr_highest_offset"`
	} `json:"stats"`
}

// QueryBlockStats reads the counters: of guest devices, or, with nodes, of every
// node of the graph by its name.
func (c *Client) QueryBlockStats(ctx context.Context, nodes bool) ([]BlockStats, error) {
	var out []BlockStats
	err := c.Execute(ctx, "query-blockstats", obj{"query-nodes": nodes}, &out)
	return out, err
}

// QueryNamedBlockNodes lists the nodes of the block graph, each without the
// whole chain below it.
func (c *Client) QueryNamedBlockNodes(ctx context.Context) ([]BlockNode, error) {
	var out []BlockNode
	err := c.Execute(ctx, "query-named-block-nodes", obj{"flat": true}, &out)
	return out, err
}

// BlockdevAdd adds a node (BlockdevOptions). Give "backing" always, null for
// none: QEMU must never follow a name found in an image.
func (c *Client) BlockdevAdd(ctx context.Context, options any) error {
	return c.Execute(ctx, "blockdev-add", options, nil)
}

// BlockdevReopen changes options of nodes; every option not given returns to its
// default.
func (c *Client) BlockdevReopen(ctx context.Context, options ...any) error {
	return c.Execute(ctx, "blockdev-reopen", obj{"options": options}, nil)
}

// BlockdevDel removes a node that nothing uses.
func (c *Client) BlockdevDel(ctx context.Context, node string) error {
	return c.Execute(ctx, "blockdev-del", obj{"node-name": node}, nil)
}

// BlockdevSnapshot puts overlay, a node that was added with backing null, on
// top of node: from here on the guest writes to overlay.
func (c *Client) BlockdevSnapshot(ctx context.Context, node, overlay string) error {
	return c.Execute(ctx, "blockdev-snapshot", obj{"node": node, "overlay": overlay}, nil)
}

// SnapshotAction is BlockdevSnapshot as a part of a Transaction.
func SnapshotAction(node, overlay string) Action {
	return Action{Type: "blockdev-snapshot", Data: obj{"node": node, "overlay": overlay}}
}

// BlockResize sets the size of a node in bytes; the guest sees it at once.
func (c *Client) BlockResize(ctx context.Context, node string, size int64) error {
	return c.Execute(ctx, "block_resize", obj{"node-name": node, "size": size}, nil)
}

// IOThrottle bounds a device; 0 is no bound.
type IOThrottle struct {
	ID             string `json:"id"` // the device's id
	BPS            int64  `json:"bps"`
	BPSRead        int64  `json:"bps_rd"`
	BPSWrite       int64  `json:"bps_wr"`
	IOPS           int64  `json:"iops"`
	IOPSRead       int64  `json:"iops_rd"`
	IOPSWrite      int64  `json:"iops_wr"`
	BPSMax         int64  `json:"bps_max,omitempty"`
	BPSMaxLength   int64  `json:"bps_max_length,omitempty"`
	IOPSMax        int64  `json:"iops_max,omitempty"`
	IOPSMaxLength  int64  `json:"iops_max_length,omitempty"`
	ThrottleGroup  string `json:"group,omitempty"`
	IOSizeForCount int64  `json:"iops_size,omitempty"`
}

// BlockSetIOThrottle bounds what a device may do.
func (c *Client) BlockSetIOThrottle(ctx context.Context, t IOThrottle) error {
	return c.Execute(ctx, "block_set_io_throttle", t, nil)
}

// OpenTray opens the tray of a CD-ROM drive, given by its device id. Without
// force the guest is asked first if it has locked the tray.
func (c *Client) OpenTray(ctx context.Context, id string, force bool) error {
	return c.Execute(ctx, "blockdev-open-tray", obj{"id": id, "force": force}, nil)
}

// CloseTray closes the tray.
func (c *Client) CloseTray(ctx context.Context, id string) error {
	return c.Execute(ctx, "blockdev-close-tray", obj{"id": id}, nil)
}

// RemoveMedium takes the medium out of an open tray; its node stays.
func (c *Client) RemoveMedium(ctx context.Context, id string) error {
	return c.Execute(ctx, "blockdev-remove-medium", obj{"id": id}, nil)
}

// InsertMedium puts a node in an open, empty tray. With OpenTray, RemoveMedium
// and CloseTray it is the way to change media by node: see ChangeMediumNode.
func (c *Client) InsertMedium(ctx context.Context, id, node string) error {
	return c.Execute(ctx, "blockdev-insert-medium", obj{"id": id, "node-name": node}, nil)
}

// ChangeMediumNode replaces the medium of a removable device by a node, or by
// nothing when node is empty. The old node stays and is the caller's to delete.
func (c *Client) ChangeMediumNode(ctx context.Context, id, node string, force bool) error {
	if err := c.OpenTray(ctx, id, force); err != nil {
		return err
	}
	if err := c.RemoveMedium(ctx, id); err != nil {
		return err
	}
	if node != "" {
		if err := c.InsertMedium(ctx, id, node); err != nil {
			return err
		}
	}
	return c.CloseTray(ctx, id)
}

// Eject opens the tray and removes the medium.
func (c *Client) Eject(ctx context.Context, id string, force bool) error {
	return c.Execute(ctx, "eject", obj{"id": id, "force": force}, nil)
}

// ChangeMedium loads a file, which QEMU opens by itself: filename is normally a
// /dev/fdset/N, format always given.
func (c *Client) ChangeMedium(ctx context.Context, id, filename, format string) error {
	return c.Execute(ctx, "blockdev-change-medium", obj{
		"id": id, "filename": filename, "format": format, "read-only-mode": "read-only",
	}, nil)
}
