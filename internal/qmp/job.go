package qmp

import (
	"context"
	"fmt"
)

// Job is a background job, of any kind.
type Job struct {
	ID   string `json:"id"`
	Type string `json:"type"` // "commit", "mirror", "stream", "create", …
	// Status: "created", "running", "paused", "ready", "standby", "waiting",
	// "pending", "aborting", "concluded", "null".
	Status   string `json:"status"`
	Progress int64  `json:"current-progress"`
	Total    int64  `json:"total-progress"`
	Error    string `json:"error"`
}

// Job states that callers wait for.
const (
	JobReady     = "ready"
	JobPending   = "pending"
	JobConcluded = "concluded"
)

// BlockJob is a block job as query-block-jobs shows it.
type BlockJob struct {
	ID       string `json:"device"`
	Type     string `json:"type"`
	Status   string `json:"status"`
	Offset   int64  `json:"offset"` // bytes done
	Len      int64  `json:"len"`    // bytes to do, may grow
	Speed    int64  `json:"speed"`  // bytes per second, 0: no limit
	Ready    bool   `json:"ready"`
	Busy     bool   `json:"busy"`
	Paused   bool   `json:"paused"`
	IOStatus string `json:"io-status"`
	Error    string `json:"error"`
}

// Commit are the arguments of BlockCommit. Nodes are node names.
type Commit struct {
	JobID string `json:"job-id"`
	// Device is the top of the whole chain: the node that the guest's device uses.
	Device string `json:"device"`
	Top    string `json:"top-node,omitempty"`  // default: Device
	Base   string `json:"base-node,omitempty"` // default: the lowest layer
	// BackingFile is the name written in the header of the layer above Top; nil lets QEMU write the name it has, which
	// may be a /dev/fdset one. Not for a Top that is the active layer.
	BackingFile *string `json:"backing-file,omitempty"`
	Speed       int64   `json:"speed,omitempty"`
	FilterNode  string  `json:"filter-node-name,omitempty"`
	AutoDismiss *bool   `json:"auto-dismiss,omitempty"`
	// AutoFinalize false keeps the job in "pending" until JobFinalize.
	AutoFinalize *bool  `json:"auto-finalize,omitempty"`
	OnError      string `json:"on-error,omitempty"`
}

// BlockCommit merges layers down into Base. If Top is the active layer the job
// becomes ready and waits for BlockJobComplete.
func (c *Client) BlockCommit(ctx context.Context, a Commit) error {
	return c.Execute(ctx, "block-commit", a, nil)
}

// Mirror are the arguments of BlockdevMirror. Nodes are node names.
type Mirror struct {
	JobID         string `json:"job-id"`
	Device        string `json:"device"`
	Target        string `json:"target"`
	Sync          string `json:"sync"` // "full", "top", "none"
	Replaces      string `json:"replaces,omitempty"`
	Speed         int64  `json:"speed,omitempty"`
	Granularity   int64  `json:"granularity,omitempty"`
	BufSize       int64  `json:"buf-size,omitempty"`
	CopyMode      string `json:"copy-mode,omitempty"` // "background", "write-blocking"
	OnSourceError string `json:"on-source-error,omitempty"`
	OnTargetError string `json:"on-target-error,omitempty"`
	FilterNode    string `json:"filter-node-name,omitempty"`
	AutoDismiss   *bool  `json:"auto-dismiss,omitempty"`
	AutoFinalize  *bool  `json:"auto-finalize,omitempty"`
}

// BlockdevMirror copies a node, and then every write to it, to another.
func (c *Client) BlockdevMirror(ctx context.Context, a Mirror) error {
	return c.Execute(ctx, "blockdev-mirror", a, nil)
}

// BlockJobCancel cancels a job. A mirror that is ready ends successfully, with
// the copy at this moment, unless force is set.
func (c *Client) BlockJobCancel(ctx context.Context, id string, force bool) error {
	return c.Execute(ctx, "block-job-cancel", obj{"device": id, "force": force}, nil)
}

// BlockJobComplete lets a ready job switch over.
func (c *Client) BlockJobComplete(ctx context.Context, id string) error {
	return c.Execute(ctx, "block-job-complete", obj{"device": id}, nil)
}

// BlockJobSetSpeed bounds a job in bytes per second, 0: no limit.
func (c *Client) BlockJobSetSpeed(ctx context.Context, id string, speed int64) error {
	return c.Execute(ctx, "block-job-set-speed", obj{"device": id, "speed": speed}, nil)
}

// QueryBlockJobs lists the block jobs that run.
func (c *Client) QueryBlockJobs(ctx context.Context) ([]BlockJob, error) {
	var out []BlockJob
	err := c.Execute(ctx, "query-block-jobs", nil, &out)
	return out, err
}

// QueryJobs lists all jobs.
func (c *Client) QueryJobs(ctx context.Context) ([]Job, error) {
	var out []Job
	err := c.Execute(ctx, "query-jobs", nil, &out)
	return out, err
}

// JobDismiss forgets a concluded job. Jobs started with auto-dismiss false need
// it; their result can be read until then.
func (c *Client) JobDismiss(ctx context.Context, id string) error {
	return c.Execute(ctx, "job-dismiss", obj{"id": id}, nil)
}

// JobCancel cancels a job of any kind.
func (c *Client) JobCancel(ctx context.Context, id string) error {
	return c.Execute(ctx, "job-cancel", obj{"id": id}, nil)
}

// JobComplete lets a ready job of any kind switch over.
func (c *Client) JobComplete(ctx context.Context, id string) error {
	return c.Execute(ctx, "job-complete", obj{"id": id}, nil)
}

// JobFinalize lets a pending job end.
func (c *Client) JobFinalize(ctx context.Context, id string) error {
	return c.Execute(ctx, "job-finalize", obj{"id": id}, nil)
}

// WaitJob waits until the job has one of the given states, or has concluded. It
// must have been started with auto-dismiss false, or its end could be missed.
// A job that concluded with an error is returned with that error.
func (c *Client) WaitJob(ctx context.Context, id string, states ...string) (Job, error) {
	sub := c.Subscribe(0, EventJobStatusChange)
	defer sub.Close()
	for {
		jobs, err := c.QueryJobs(ctx)
		if err != nil {
			return Job{}, err
		}
		var job *Job
		for i := range jobs {
			if jobs[i].ID == id {
				job = &jobs[i]
			}
		}
		if job == nil {
			return Job{}, fmt.Errorf("qmp: job %s does not exist (any more)", id)
		}
		if job.Status == JobConcluded {
			if job.Error != "" {
				return *job, fmt.Errorf("qmp: job %s (%s) failed: %s", id, job.Type, job.Error)
			}
			return *job, nil
		}
		for _, s := range states {
			if job.Status == s {
				return *job, nil
			}
		}
		// Any event wakes us: what counts is what query-jobs then says.
		if err := sub.nextJob(ctx, id); err != nil {
			return *job, fmt.Errorf("qmp: job %s is %s: %w", id, job.Status, err)
		}
	}
}

// nextJob waits until something may have happened to the job.
func (s *Subscription) nextJob(ctx context.Context, id string) error {
	for {
		e, err := s.Next(ctx)
		if err != nil || e.Name == Lagged {
			return err
		}
		var d JobStatusData
		if err := e.Decode(&d); err != nil || d.ID == id {
			return err
		}
	}
}
