package qga

import (
	"context"
	"errors"
	"fmt"
)

// Modes of Shutdown.
const (
	PowerDown = "powerdown"
	Halt      = "halt"
	Reboot    = "reboot"
)

// Shutdown asks the guest to shut down. nil means that the agent took the
// command, not that the guest will obey: watch for QEMU's SHUTDOWN event. An
// agent that goes away with the guest before it answers counts as success.
func (c *Client) Shutdown(ctx context.Context, mode string) error {
	const command = "guest-shutdown"
	sent := false
	err := c.turn(ctx, command, func() error {
		sent = true
		// Success has no reply. So ask for a sync along with it: an error comes before
		// its answer, or none does. Not flushed, or the flush might be answered too.
		id := syncID()
		if err := c.say(false, request{command, obj{"mode": mode}}, request{"guest-sync-delimited", obj{"id": id}}); err != nil {
			return err
		}
		first, err := c.in.Peek(1)
		if err != nil {
			return err
		}
		if first[0] == 0xff {
			return c.awaitSync(id)
		}
		line, err := c.line(maxReply)
		if err != nil {
			return err
		}
		refusal := parseReply(command, line, nil)
		if err := c.awaitSync(id); err != nil && refusal == nil {
			return err
		}
		return refusal
	})
	if sent && errors.Is(err, ErrGone) {
		return nil
	}
	return err
}

// Frozen states of FreezeStatus.
const (
	Thawed = "thawed"
	Frozen = "frozen"
)

// FreezeStatus says whether the guest's file systems are frozen.
func (c *Client) FreezeStatus(ctx context.Context) (string, error) {
	var s string
	if err := c.Execute(ctx, "guest-fsfreeze-status", nil, &s); err != nil {
		return "", err
	}
	if s != Thawed && s != Frozen {
		return "", fmt.Errorf("qga: guest-fsfreeze-status: %w: status %q", ErrProtocol, clean(s, 40))
	}
	return s, nil
}

// Freeze stops writes to the guest's file systems, of all or only those mounted
// at the paths given, and says how many there are. Whatever it returns, Thaw
// must follow: also when it failed, the guest may be frozen.
func (c *Client) Freeze(ctx context.Context, mountpoints ...string) (int, error) {
	var n int
	var err error
	if len(mountpoints) == 0 {
		err = c.Execute(ctx, "guest-fsfreeze-freeze", nil, &n)
	} else {
		err = c.Execute(ctx, "guest-fsfreeze-freeze-list", obj{"mountpoints": mountpoints}, &n)
	}
	return n, err
}

// Thaw ends a Freeze and says how many file systems were thawed. Thawing what is
// not frozen is no error. Give it a context that outlives a cancelled backup.
func (c *Client) Thaw(ctx context.Context) (int, error) {
	var n int
	err := c.Execute(ctx, "guest-fsfreeze-thaw", nil, &n)
	return n, err
}
