package qmp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// DeviceAdd plugs a device. props holds driver, id, bus and the model's own
// properties.
func (c *Client) DeviceAdd(ctx context.Context, props any) error {
	return c.Execute(ctx, "device_add", props, nil)
}

// DeviceDel asks for a device to be unplugged. For PCI devices the guest has to
// agree: the device is gone only at EventDeviceDeleted. See RemoveDevice.
func (c *Client) DeviceDel(ctx context.Context, id string) error {
	return c.Execute(ctx, "device_del", obj{"id": id}, nil)
}

// ErrUnplugRefused is wrapped when the guest said no to an unplug.
var ErrUnplugRefused = errors.New("the guest refused to release the device")

// RemoveDevice unplugs a device and waits until it is gone. A device that does
// not exist counts as gone. If ctx ends first the request stays pending in
// QEMU: the guest may still release the device later.
func (c *Client) RemoveDevice(ctx context.Context, id string) error {
	sub := c.Subscribe(0, EventDeviceDeleted, EventDeviceUnplugGuestError)
	defer sub.Close()
	err := c.DeviceDel(ctx, id)
	if IsClass(err, ClassDeviceNotFound) {
		return nil
	}
	if err != nil && !unplugPending(err) {
		return err
	}
	for {
		e, err := sub.nextOrLagged(ctx, recheck)
		if err != nil {
			return fmt.Errorf("qmp: device %s is not released by the guest: %w", id, err)
		}
		if e.Name == Lagged {
			there, err := c.HasDevice(ctx, id)
			if err != nil || !there {
				return err
			}
			continue
		}
		var d DeviceData
		if err := e.Decode(&d); err != nil {
			return err
		}
		switch {
		case d.Device != id:
		case e.Name == EventDeviceDeleted:
			return nil
		default:
			return fmt.Errorf("qmp: device %s: %w", id, ErrUnplugRefused)
		}
	}
}

// recheck is how often RemoveDevice looks for itself. QEMU 7.2 sends
// DEVICE_DELETED only when the last reference is dropped: after a reset with an
// unplug pending the device is out of the tree, and the event sometimes never
// comes.
const recheck = time.Second

// nextOrLagged is Next, but says Lagged when nothing came for the time given.
func (s *Subscription) nextOrLagged(ctx context.Context, d time.Duration) (Event, error) {
	short, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	e, err := s.Next(short)
	if err != nil && short.Err() != nil && ctx.Err() == nil && s.c.Err() == nil {
		return Event{Name: Lagged}, nil
	}
	return e, err
}

// unplugPending reports whether device_del was refused only because an earlier
// request is pending, whose end is then what the caller waits for. QEMU has no
// class for it, just this text (qdev_unplug and its callers).
func unplugPending(err error) bool {
	var e *Error
	return errors.As(err, &e) && strings.Contains(e.Desc, "in the process of unplug")
}

// HasDevice reports whether a device with the id is plugged.
func (c *Client) HasDevice(ctx context.Context, id string) (bool, error) {
	list, err := c.QOMList(ctx, "/machine/peripheral")
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(list, func(p QOMProperty) bool { return p.Name == id }), nil
}

// NetdevAdd adds a network backend (Netdev: type, id and the rest).
func (c *Client) NetdevAdd(ctx context.Context, options any) error {
	return c.Execute(ctx, "netdev_add", options, nil)
}

// NetdevDel removes a network backend. A device that still uses it stays, with
// its link down.
func (c *Client) NetdevDel(ctx context.Context, id string) error {
	return c.Execute(ctx, "netdev_del", obj{"id": id}, nil)
}

// SetLink plugs or unplugs the cable of a network device or backend.
func (c *Client) SetLink(ctx context.Context, name string, up bool) error {
	return c.Execute(ctx, "set_link", obj{"name": name, "up": up}, nil)
}

// QueryBalloon is the memory that the guest has at present, in bytes.
func (c *Client) QueryBalloon(ctx context.Context) (int64, error) {
	var out struct {
		Actual int64 `json:"actual"`
	}
	err := c.Execute(ctx, "query-balloon", nil, &out)
	return out.Actual, err
}

// Balloon asks the guest to make do with size bytes. EventBalloonChange follows.
func (c *Client) Balloon(ctx context.Context, size int64) error {
	return c.Execute(ctx, "balloon", obj{"value": size}, nil)
}

// CPU is one virtual CPU.
type CPU struct {
	Index    int    `json:"cpu-index"`
	QOMPath  string `json:"qom-path"`
	ThreadID int    `json:"thread-id"` // in the host
	Props    CPUPos `json:"props"`
}

// CPUPos is the place of a CPU in the topology. Which fields are set depends on
// the machine; pass it back to device_add as it came.
type CPUPos struct {
	Node    *int `json:"node-id,omitempty"`
	Socket  *int `json:"socket-id,omitempty"`
	Die     *int `json:"die-id,omitempty"`
	Cluster *int `json:"cluster-id,omitempty"`
	Core    *int `json:"core-id,omitempty"`
	Thread  *int `json:"thread-id,omitempty"`
}

// QueryCPUsFast lists the virtual CPUs without stopping them.
func (c *Client) QueryCPUsFast(ctx context.Context) ([]CPU, error) {
	var out []CPU
	err := c.Execute(ctx, "query-cpus-fast", nil, &out)
	return out, err
}

// HotpluggableCPU is a place where a CPU is, or can be plugged.
type HotpluggableCPU struct {
	Type  string `json:"type"` // the driver for device_add
	Count int    `json:"vcpus-count"`
	Props CPUPos `json:"props"`
	// QOMPath is empty when nothing is plugged here.
	QOMPath string `json:"qom-path"`
}

// QueryHotpluggableCPUs lists the places for CPUs.
func (c *Client) QueryHotpluggableCPUs(ctx context.Context) ([]HotpluggableCPU, error) {
	var out []HotpluggableCPU
	err := c.Execute(ctx, "query-hotpluggable-cpus", nil, &out)
	return out, err
}
