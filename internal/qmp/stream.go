package qmp

import "context"

// Stream are the arguments of BlockStream. Nodes are node names.
type Stream struct {
	JobID  string `json:"job-id"`
	Device string `json:"device"`              // the layer that is filled
	Base   string `json:"base-node,omitempty"` // stays below it; empty: nothing does
	Speed  int64  `json:"speed,omitempty"`     // bytes per second
	// OnError: "report" ends the job, "stop" pauses it.
	OnError     string `json:"on-error,omitempty"`
	AutoDismiss *bool  `json:"auto-dismiss,omitempty"`
}

// BlockStream copies what Device lacks from the layers below it, down to Base, which are then taken out of the chain.
func (c *Client) BlockStream(ctx context.Context, a Stream) error {
	return c.Execute(ctx, "block-stream", a, nil)
}
