package qga

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxOutput bounds each output of a command, as handed to the caller.
const maxOutput = 4 << 20

// Command to run in the guest.
type Command struct {
	Path  string // absolute, or found by the agent's PATH
	Args  []string
	Env   []string // KEY=value; nil: the agent's own
	Input []byte
	// Discard the output, for commands that outlive the caller's interest.
	Discard bool
}

// Exec starts a command and returns its process id in the guest.
func (c *Client) Exec(ctx context.Context, cmd Command) (int64, error) {
	args := obj{"path": cmd.Path, "capture-output": !cmd.Discard}
	if len(cmd.Args) > 0 {
		args["arg"] = cmd.Args
	}
	if cmd.Env != nil {
		args["env"] = cmd.Env
	}
	if cmd.Input != nil {
		args["input-data"] = base64.StdEncoding.EncodeToString(cmd.Input)
	}
	var r struct {
		PID int64 `json:"pid"`
	}
	err := c.Execute(ctx, "guest-exec", args, &r)
	return r.PID, err
}

// ExecStatus of a command. Output is only there when it has exited, and is the
// guest's: bytes of any kind.
type ExecStatus struct {
	Exited bool
	Code   int
	Signal int // 0: none
	Out    []byte
	Err    []byte
	// Truncated: there was more output than the agent or we keep.
	Truncated bool
}

// ExecStatus asks for a command's state. The agent forgets it when it has
// answered that it exited.
func (c *Client) ExecStatus(ctx context.Context, pid int64) (ExecStatus, error) {
	var r struct {
		Exited       bool   `json:"exited"`
		Code         int    `json:"exitcode"`
		Signal       int    `json:"signal"`
		Out          string `json:"out-data"`
		Err          string `json:"err-data"`
		OutTruncated bool   `json:"out-truncated"`
		ErrTruncated bool   `json:"err-truncated"`
	}
	if err := c.execute(ctx, "guest-exec-status", obj{"pid": pid}, &r, maxExecReply); err != nil {
		return ExecStatus{}, err
	}
	s := ExecStatus{Exited: r.Exited, Code: r.Code, Signal: r.Signal, Truncated: r.OutTruncated || r.ErrTruncated}
	for _, o := range []struct {
		to   *[]byte
		data string
	}{{&s.Out, r.Out}, {&s.Err, r.Err}} {
		b, err := base64.StdEncoding.DecodeString(o.data)
		if err != nil {
			return ExecStatus{}, fmt.Errorf("qga: guest-exec-status: %w: output is not base64", ErrProtocol)
		}
		if len(b) > maxOutput {
			b, s.Truncated = b[:maxOutput:maxOutput], true
		}
		*o.to = b
	}
	return s, nil
}

// Run starts a command and waits until it has exited or ctx ends; the command
// itself is not ended by that. Set a deadline. The agent tells nothing by itself,
// so this asks, ever less often.
func (c *Client) Run(ctx context.Context, cmd Command) (ExecStatus, error) {
	pid, err := c.Exec(ctx, cmd)
	if err != nil {
		return ExecStatus{}, err
	}
	wait := 10 * time.Millisecond
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		s, err := c.ExecStatus(ctx, pid)
		if err != nil || s.Exited {
			return s, err
		}
		select {
		case <-timer.C:
			wait = min(2*wait, time.Second)
			timer.Reset(wait)
		case <-ctx.Done():
			return s, fmt.Errorf("qga: %s (pid %d) is still running: %w", cmd.Path, pid, ctx.Err())
		}
	}
}

// File is an open file in the guest. It stays open in the agent until Close.
type File struct {
	c      *Client
	handle int64
	path   string
}

// chunk is how much one command reads or writes.
const chunk = 256 << 10

// Open opens a file in the guest; mode is as in fopen: "r", "w", "a", "r+", …
func (c *Client) Open(ctx context.Context, path, mode string) (*File, error) {
	f := &File{c: c, path: path}
	err := c.Execute(ctx, "guest-file-open", obj{"path": path, "mode": mode}, &f.handle)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Read reads up to len(b) bytes, at most 256 KiB in one call. io.EOF at the end.
func (f *File) Read(ctx context.Context, b []byte) (int, error) {
	n := min(len(b), chunk)
	if n == 0 {
		return 0, nil
	}
	var r struct {
		Data string `json:"buf-b64"`
		EOF  bool   `json:"eof"`
	}
	if err := f.c.Execute(ctx, "guest-file-read", obj{"handle": f.handle, "count": n}, &r); err != nil {
		return 0, err
	}
	data, err := base64.StdEncoding.DecodeString(r.Data)
	switch {
	case err != nil:
		return 0, fmt.Errorf("qga: read %s: %w: not base64", f.path, ErrProtocol)
	case len(data) > n:
		return 0, fmt.Errorf("qga: read %s: %w: %d bytes for %d", f.path, ErrProtocol, len(data), n)
	case len(data) == 0 && r.EOF:
		return 0, io.EOF
	case len(data) == 0:
		return 0, fmt.Errorf("qga: read %s: %w: nothing, but no end", f.path, ErrProtocol)
	}
	return copy(b, data), nil
}

// Write writes all of b.
func (f *File) Write(ctx context.Context, b []byte) (int, error) {
	done := 0
	for done < len(b) {
		part := b[done:min(len(b), done+chunk)]
		var r struct {
			Count int `json:"count"`
		}
		args := obj{"handle": f.handle, "buf-b64": base64.StdEncoding.EncodeToString(part)}
		if err := f.c.Execute(ctx, "guest-file-write", args, &r); err != nil {
			return done, err
		}
		if r.Count <= 0 || r.Count > len(part) {
			return done, fmt.Errorf("qga: write %s: %w: %d bytes of %d", f.path, ErrProtocol, r.Count, len(part))
		}
		done += r.Count
	}
	return done, nil
}

// Close flushes and closes the file in the guest.
func (f *File) Close(ctx context.Context) error {
	return f.c.Execute(ctx, "guest-file-close", obj{"handle": f.handle}, nil)
}

// ReadFile reads a whole file of at most max bytes; of a longer one it returns
// the first max bytes with ErrTooLong.
func (c *Client) ReadFile(ctx context.Context, path string, max int) (data []byte, err error) {
	f, err := c.Open(ctx, path, "r")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(ctx)) }()
	buf := make([]byte, chunk)
	for {
		n, err := f.Read(ctx, buf)
		if errors.Is(err, io.EOF) {
			return data, nil
		}
		if err != nil {
			return data, err
		}
		if len(data)+n > max {
			return append(data, buf[:max-len(data)]...), fmt.Errorf("qga: read %s: %w: over %d bytes", path, ErrTooLong, max)
		}
		data = append(data, buf[:n]...)
	}
}

// WriteFile replaces the content of a file.
func (c *Client) WriteFile(ctx context.Context, path string, data []byte) (err error) {
	f, err := c.Open(ctx, path, "w")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(ctx)) }()
	_, err = f.Write(ctx, data)
	return err
}
