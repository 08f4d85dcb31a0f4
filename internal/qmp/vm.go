package qmp

import (
	"context"
	"encoding/json"
	"errors"
)

// obj is a JSON object of arguments.
type obj = map[string]any

// Status is the state of the machine as a whole.
type Status struct {
	Running bool `json:"running"`
	// Status is a RunState: "running", "paused", "prelaunch", "inmigrate",
	// "postmigrate", "io-error", "internal-error", "guest-panicked", "shutdown", …
	Status string `json:"status"`
}

// QueryStatus says whether the virtual CPUs run, and if not, why.
func (c *Client) QueryStatus(ctx context.Context) (Status, error) {
	var s Status
	err := c.Execute(ctx, "query-status", nil, &s)
	return s, err
}

// QueryVersion asks for the version again; Greeting has it without asking.
func (c *Client) QueryVersion(ctx context.Context) (Version, error) {
	var v Version
	err := c.Execute(ctx, "query-version", nil, &v)
	return v, err
}

// Cont lets the virtual CPUs run.
func (c *Client) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// Stop pauses the virtual CPUs.
func (c *Client) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// SystemPowerdown presses the power button (ACPI). The guest may ignore it.
func (c *Client) SystemPowerdown(ctx context.Context) error {
	return c.Execute(ctx, "system_powerdown", nil, nil)
}

// SystemReset presses the reset button.
func (c *Client) SystemReset(ctx context.Context) error {
	return c.Execute(ctx, "system_reset", nil, nil)
}

// InjectNMI sends a non-maskable interrupt, which makes most guests dump.
func (c *Client) InjectNMI(ctx context.Context) error {
	return c.Execute(ctx, "inject-nmi", nil, nil)
}

// Quit ends the QEMU process. That the connection ends before the reply is
// success too.
func (c *Client) Quit(ctx context.Context) error {
	err := c.Execute(ctx, "quit", nil, nil)
	if errors.Is(err, ErrGone) {
		return nil
	}
	return err
}

// Machine is one machine type that QEMU has.
type Machine struct {
	Name       string `json:"name"`
	Alias      string `json:"alias"`
	Default    bool   `json:"is-default"`
	CPUMax     int    `json:"cpu-max"`
	Deprecated bool   `json:"deprecated"`
}

// QueryMachines lists the machine types.
func (c *Client) QueryMachines(ctx context.Context) ([]Machine, error) {
	var m []Machine
	err := c.Execute(ctx, "query-machines", nil, &m)
	return m, err
}

// HumanMonitorCommand runs a command of the human monitor, for what QMP lacks.
// Its output and errors are prose, and change between versions.
func (c *Client) HumanMonitorCommand(ctx context.Context, line string) (string, error) {
	var out string
	err := c.Execute(ctx, "human-monitor-command", obj{"command-line": line}, &out)
	return out, err
}

// Action is one part of a Transaction: the name of a command and its arguments.
type Action struct {
	Type string `json:"type"`
	Data any    `json:"data"`
}

// Transaction carries out all actions or none, at one moment of the guest's
// time: the way to snapshot several disks consistently.
func (c *Client) Transaction(ctx context.Context, actions ...Action) error {
	return c.Execute(ctx, "transaction", obj{"actions": actions}, nil)
}

// QOMGet reads a property of QEMU's object tree.
func (c *Client) QOMGet(ctx context.Context, path, property string, out any) error {
	return c.Execute(ctx, "qom-get", obj{"path": path, "property": property}, out)
}

// QOMSet writes a property of QEMU's object tree.
func (c *Client) QOMSet(ctx context.Context, path, property string, value any) error {
	return c.Execute(ctx, "qom-set", obj{"path": path, "property": property, "value": value}, nil)
}

// QOMProperty is an entry in QEMU's object tree.
type QOMProperty struct {
	Name string `json:"name"`
	// Type is a type's name, or "child<TYPE>" or "link<TYPE>".
	Type string `json:"type"`
}

// QOMList lists a node of QEMU's object tree, such as "/machine/peripheral",
// where the devices with ids are.
func (c *Client) QOMList(ctx context.Context, path string) ([]QOMProperty, error) {
	var p []QOMProperty
	err := c.Execute(ctx, "qom-list", obj{"path": path}, &p)
	return p, err
}

// ObjectAdd makes a QOM object (a secret, a memory backend, a throttle group).
// props holds qom-type, id and the rest.
func (c *Client) ObjectAdd(ctx context.Context, props any) error {
	return c.Execute(ctx, "object-add", props, nil)
}

// ObjectDel removes a QOM object.
func (c *Client) ObjectDel(ctx context.Context, id string) error {
	return c.Execute(ctx, "object-del", obj{"id": id}, nil)
}

// CPUModel is the result of QueryCPUModelExpansion.
type CPUModel struct {
	Name  string                     `json:"name"`
	Props map[string]json.RawMessage `json:"props"`
}

// QueryCPUModelExpansion says what a CPU model consists of under this QEMU's
// accelerator. kind is "static" or "full".
func (c *Client) QueryCPUModelExpansion(ctx context.Context, kind, model string) (CPUModel, error) {
	var out struct {
		Model CPUModel `json:"model"`
	}
	err := c.Execute(ctx, "query-cpu-model-expansion", obj{"type": kind, "model": obj{"name": model}}, &out)
	return out.Model, err
}
