package qmp

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
)

// Schema is what a QEMU says of its own protocol: which commands, arguments and
// events it has. Ask it, rather than the version, for optional features. It is
// immutable.
type Schema struct {
	types    map[string]*schemaEntity
	commands map[string]*schemaEntity
	events   map[string]*schemaEntity
}

type schemaEntity struct {
	Name     string            `json:"name"`
	Meta     string            `json:"meta-type"`
	Arg      string            `json:"arg-type"`
	Ret      string            `json:"ret-type"`
	Element  string            `json:"element-type"`
	Values   []string          `json:"values"`
	Features []json.RawMessage `json:"features"`
	Members  []struct {
		Name string `json:"name"`
		Type string `json:"type"`
	} `json:"members"`
	Variants []struct {
		Case string `json:"case"`
		Type string `json:"type"`
	} `json:"variants"`
}

// Schema asks QEMU for its schema. It is some 200 KB: keep the result.
func (c *Client) Schema(ctx context.Context) (*Schema, error) {
	var raw json.RawMessage
	if err := c.Execute(ctx, "query-qmp-schema", nil, &raw); err != nil {
		return nil, err
	}
	return ParseSchema(raw)
}

// ParseSchema parses the return value of query-qmp-schema.
func ParseSchema(b []byte) (*Schema, error) {
	var all []*schemaEntity
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("qmp: parse schema: %w", err)
	}
	s := &Schema{
		types:    map[string]*schemaEntity{},
		commands: map[string]*schemaEntity{},
		events:   map[string]*schemaEntity{},
	}
	for _, e := range all {
		switch {
		case e == nil || e.Name == "":
			return nil, fmt.Errorf("qmp: parse schema: entity without a name")
		case e.Meta == "command":
			s.commands[e.Name] = e
		case e.Meta == "event":
			s.events[e.Name] = e
		default:
			s.types[e.Name] = e
		}
	}
	return s, nil
}

// HasCommand reports whether the command exists.
func (s *Schema) HasCommand(name string) bool { return s.commands[name] != nil }

// HasEvent reports whether the event exists.
func (s *Schema) HasEvent(name string) bool { return s.events[name] != nil }

// HasArg reports whether a command has the argument at path, as in
// HasArg("blockdev-add", "cache", "direct"). Arrays are looked through; of a
// union, all variants count.
func (s *Schema) HasArg(command string, path ...string) bool {
	return len(s.resolve(command, path)) > 0
}

// HasValue reports whether the enumeration at a command's argument path knows
// the value, as in HasValue("migrate-set-capabilities", "zero-copy-send",
// "capabilities", "capability").
func (s *Schema) HasValue(command, value string, path ...string) bool {
	return slices.ContainsFunc(s.resolve(command, path), func(e *schemaEntity) bool {
		return e.Meta == "enum" && slices.Contains(e.Values, value)
	})
}

// resolve finds the types that the argument at path may have.
func (s *Schema) resolve(command string, path []string) []*schemaEntity {
	cmd := s.commands[command]
	if cmd == nil {
		return nil
	}
	at := s.expand(cmd.Arg)
	for _, name := range path {
		var next []*schemaEntity
		for _, e := range at {
			for _, m := range e.Members {
				if m.Name == name {
					next = append(next, s.expand(m.Type)...)
				}
			}
		}
		slices.SortFunc(next, func(a, b *schemaEntity) int {
			if a.Name < b.Name {
				return -1
			}
			if a.Name > b.Name {
				return 1
			}
			return 0
		})
		at = slices.Compact(next)
	}
	return at
}

// expand is the named type with the types that stand in its place: an array's
// element, an alternate's members, a union's variants. Types refer to each other
// in circles, hence the set.
func (s *Schema) expand(name string) []*schemaEntity {
	var out []*schemaEntity
	seen := map[string]bool{}
	todo := []string{name}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		e := s.types[n]
		if e == nil || seen[n] {
			continue
		}
		seen[n] = true
		out = append(out, e)
		if e.Element != "" {
			todo = append(todo, e.Element)
		}
		for _, v := range e.Variants {
			todo = append(todo, v.Type)
		}
		if e.Meta == "alternate" {
			for _, m := range e.Members {
				todo = append(todo, m.Type)
			}
		}
	}
	return out
}

// HasDeviceProperty reports whether a device model exists and has the property.
// These are not in the schema: each call is one command.
func (c *Client) HasDeviceProperty(ctx context.Context, driver, property string) (bool, error) {
	var props []struct {
		Name string `json:"name"`
	}
	err := c.Execute(ctx, "device-list-properties", obj{"typename": driver}, &props)
	if IsClass(err, ClassDeviceNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(props, func(p struct {
		Name string `json:"name"`
	}) bool {
		return p.Name == property
	}), nil
}
