package resource

import (
	"errors"
	"fmt"
	"strings"
)

// Code is the class of an Error. The surfaces map it to their own codes in one place each.
type Code int

// The classes.
const (
	Internal Code = iota
	Invalid
	NotFound
	Exists
	Conflict      // changed by someone else meanwhile
	Precondition  // not in a state in which this can be done
	Denied        // may not
	Anonymous     // not known who asks
	Exhausted     // a limit, a quota, no room
	Unavailable   // try again
	Unimplemented // this installation can't
)

// Error is a failure told to people: what, where, and what to do.
type Error struct {
	Code Code
	// Kind and Name of the object; Field is the path of the fault in it.
	Kind, Name, Field string
	// Reason is stable and for programs: NAME_TAKEN.
	Reason string
	// Message is what is wrong; Remedy what to do about it, if that isn't plain.
	Message, Remedy string
	// Err is the cause, for logs.
	Err error
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Kind != "" {
		b.WriteString(e.Kind)
		if e.Name != "" {
			fmt.Fprintf(&b, " %q", e.Name)
		}
		b.WriteString(": ")
	}
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.Message)
	if e.Remedy != "" {
		b.WriteString("; " + e.Remedy)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, &Error{Code: c}) true for any error of that code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && *t == Error{Code: t.Code} && t.Code == e.Code
}

// CodeOf is the code of the first Error in the chain; Internal if there is none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

// Faults collects what is wrong with one object.
type Faults struct {
	kind, name string
	list       []*Error
}

// FaultsOf begins a collection for one object.
func FaultsOf(kind Kind, name string) *Faults { return &Faults{kind: kind, name: name} }

// Add notes a fault of a field.
func (f *Faults) Add(field, reason, format string, args ...any) {
	f.list = append(f.list, &Error{Code: Invalid, Kind: f.kind, Name: f.name, Field: field, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

// Err is nil, the only fault, or one Error that names them all.
func (f *Faults) Err() error {
	switch len(f.list) {
	case 0:
		return nil
	case 1:
		return f.list[0]
	}
	first := *f.list[0]
	parts := make([]string, len(f.list))
	for i, e := range f.list {
		parts[i] = e.Field + ": " + e.Message
	}
	first.Field, first.Message = "", strings.Join(parts, "; ")
	return &first
}
