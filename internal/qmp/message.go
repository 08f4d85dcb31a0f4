package qmp

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Greeting is QEMU's first message.
type Greeting struct {
	Version      Version  `json:"version"`
	Capabilities []string `json:"capabilities"`
}

// Version of a QEMU.
type Version struct {
	QEMU struct {
		Major int `json:"major"`
		Minor int `json:"minor"`
		Micro int `json:"micro"`
	} `json:"qemu"`
	// Package is the distribution's own version, such as "Debian 1:7.2+dfsg-7".
	Package string `json:"package"`
}

// String is the version in QEMU's usual form: "7.2.22".
func (v Version) String() string {
	return fmt.Sprintf("%d.%d.%d", v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro)
}

// AtLeast reports whether v is major.minor or newer. Prefer Schema for features:
// distributions backport.
func (v Version) AtLeast(major, minor int) bool {
	return v.QEMU.Major > major || v.QEMU.Major == major && v.QEMU.Minor >= minor
}

// Error classes that QEMU uses (qapi/error.json).
const (
	ClassGeneric         = "GenericError"
	ClassCommandNotFound = "CommandNotFound"
	ClassDeviceNotActive = "DeviceNotActive"
	ClassDeviceNotFound  = "DeviceNotFound"
	ClassKVMMissingCap   = "KVMMissingCap"
)

// Error is QEMU's refusal of a command. Desc is for people and is QEMU's text.
type Error struct {
	Class   string `json:"class"`
	Desc    string `json:"desc"`
	Command string `json:"-"`
}

func (e *Error) Error() string {
	return fmt.Sprintf("qmp: %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// IsClass reports whether err is, or wraps, a refusal of the class.
func IsClass(err error, class string) bool {
	var e *Error
	return errors.As(err, &e) && e.Class == class
}

// message is anything that QEMU may send; which fields are set says what it is.
type message struct {
	QMP       *Greeting       `json:"QMP"`
	Return    json.RawMessage `json:"return"`
	Error     *Error          `json:"error"`
	ID        json.RawMessage `json:"id"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

func (m *message) event() Event {
	return Event{
		Name: m.Event,
		Data: m.Data,
		Time: time.Unix(m.Timestamp.Seconds, 0).Add(time.Duration(m.Timestamp.Microseconds%1e6) * time.Microsecond),
	}
}

// encode makes the line of one command.
func encode(command string, args any, id uint64) ([]byte, error) {
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return nil, fmt.Errorf("qmp: %s: encode arguments: %w", command, err)
	}
	return append(b, '\n'), nil
}
