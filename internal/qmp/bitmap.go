package qmp

import "context"

// Bitmap is a dirty bitmap of a node: which parts were written since it began to record.
type Bitmap struct {
	Name        string `json:"name"` // empty: QEMU's own
	Recording   bool   `json:"recording"`
	Busy        bool   `json:"busy"` // an export or a job uses it
	Persistent  bool   `json:"persistent"`
	Granularity int64  `json:"granularity"`
	Count       int64  `json:"count"` // bytes that are dirty
	// Inconsistent: QEMU did not end in order while it recorded. It can only be removed.
	Inconsistent bool `json:"inconsistent"`
}

// BitmapName names a bitmap of a node.
type BitmapName struct {
	Node string `json:"node"`
	Name string `json:"name"`
}

// BitmapAdd are the arguments of AddBitmapAction.
type BitmapAdd struct {
	BitmapName
	Granularity int64 `json:"granularity,omitempty"` // bytes, a power of two
	// Persistent: QEMU keeps it in the image when it ends in order (qcow2 alone).
	Persistent bool `json:"persistent,omitempty"`
	Disabled   bool `json:"disabled,omitempty"` // it does not record yet
}

// AddBitmapAction makes a bitmap, which is empty, as a part of a Transaction.
func AddBitmapAction(b BitmapAdd) Action { return Action{Type: "block-dirty-bitmap-add", Data: b} }

// RemoveBitmapAction removes a bitmap, from the image too.
func RemoveBitmapAction(b BitmapName) Action {
	return Action{Type: "block-dirty-bitmap-remove", Data: b}
}

// EnableBitmapAction has a bitmap record again; DisableBitmapAction ends that.
func EnableBitmapAction(b BitmapName) Action {
	return Action{Type: "block-dirty-bitmap-enable", Data: b}
}

// DisableBitmapAction has a bitmap stay as it is.
func DisableBitmapAction(b BitmapName) Action {
	return Action{Type: "block-dirty-bitmap-disable", Data: b}
}

// MergeBitmapAction adds to target what is dirty in from, which may belong to another node.
func MergeBitmapAction(target, from BitmapName) Action {
	return Action{Type: "block-dirty-bitmap-merge", Data: obj{"node": target.Node, "target": target.Name, "bitmaps": []BitmapName{from}}}
}

// RemoveBitmap is RemoveBitmapAction by itself. One that is inconsistent can be removed only this way.
func (c *Client) RemoveBitmap(ctx context.Context, b BitmapName) error {
	return c.Execute(ctx, "block-dirty-bitmap-remove", b, nil)
}

// SetWriteThreshold has QEMU tell by EventBlockWriteThreshold, once, when a write to a node goes beyond an offset; 0 takes it back.
func (c *Client) SetWriteThreshold(ctx context.Context, node string, offset int64) error {
	return c.Execute(ctx, "block-set-write-threshold", obj{"node-name": node, "write-threshold": offset}, nil)
}

// SetDrive has a device use another node of its graph, such as a filter over its disk, from one request to the next.
func (c *Client) SetDrive(ctx context.Context, device, node string) error {
	return c.QOMSet(ctx, "/machine/peripheral/"+device, "drive", node)
}

// Export is something that QEMU exports.
type Export struct {
	ID           string `json:"id"`
	Type         string `json:"type"`
	Node         string `json:"node-name"`
	ShuttingDown bool   `json:"shutting-down"`
}

// QueryBlockExports lists the exports.
func (c *Client) QueryBlockExports(ctx context.Context) ([]Export, error) {
	var out []Export
	err := c.Execute(ctx, "query-block-exports", nil, &out)
	return out, err
}

// RemoveExports removes exports, drops their clients, and waits until they are gone.
func (c *Client) RemoveExports(ctx context.Context, mine func(Export) bool) error {
	sub := c.Subscribe(0, EventBlockExportDeleted)
	defer sub.Close()
	for {
		all, err := c.QueryBlockExports(ctx)
		if err != nil {
			return err
		}
		left := 0
		for _, e := range all {
			if !mine(e) {
				continue
			}
			left++
			if e.ShuttingDown {
				continue
			}
			if err := c.ExportDel(ctx, e.ID, true); err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
		if _, err := sub.Next(ctx); err != nil {
			return err
		}
	}
}
