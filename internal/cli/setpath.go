package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"drover/internal/cli/unit"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// assignment is one "--set PATH=VALUE": a field below spec, by the names that files and the API use.
type assignment struct{ path, value string }

func parseAssignment(s string) (assignment, error) {
	path, value, ok := strings.Cut(s, "=")
	if path = strings.TrimSpace(path); !ok || path == "" {
		return assignment{}, usage("--set %q: write FIELD=VALUE, such as guards.arp=off", s)
	}
	return assignment{path, strings.TrimSpace(value)}, nil
}

// assign sets one field of m.
func (s assignment) assign(m proto.Message) error {
	at, fd, err := descend(m.ProtoReflect(), s.path)
	if err != nil {
		return usage("--set %s=%s: %v", s.path, s.value, err)
	}
	if fd.IsList() {
		list := at.NewField(fd).List()
		for part := range strings.SplitSeq(s.value, ",") {
			v, err := scalarOf(fd, strings.TrimSpace(part))
			if err != nil {
				return usage("--set %s=%s: %v", s.path, s.value, err)
			}
			list.Append(v)
		}
		at.Set(fd, protoreflect.ValueOfList(list))
		return nil
	}
	if isDuration(fd) {
		d, err := unit.ParseSpan(s.value)
		if err != nil {
			return usage("--set %s=%s: %v", s.path, s.value, err)
		}
		at.Set(fd, protoreflect.ValueOfMessage(durationpb.New(d).ProtoReflect()))
		return nil
	}
	v, err := scalarOf(fd, s.value)
	if err != nil {
		return usage("--set %s=%s: %v", s.path, s.value, err)
	}
	at.Set(fd, v)
	return nil
}

// isDuration reports whether a field is a time span, which is written as one word.
func isDuration(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Duration"
}

// descend finds a field by its path and makes the messages on the way.
func descend(m protoreflect.Message, path string) (protoreflect.Message, protoreflect.FieldDescriptor, error) {
	parts := strings.Split(path, ".")
	for i, part := range parts {
		fd := m.Descriptor().Fields().ByName(protoreflect.Name(part))
		if fd == nil {
			return nil, nil, fmt.Errorf("there is no field %q; there are %s", part, strings.Join(fieldNames(m.Descriptor()), ", "))
		}
		last := i == len(parts)-1
		switch group := fd.Message() != nil && !fd.IsList() && !fd.IsMap() && !isDuration(fd); {
		case last && group:
			return nil, nil, fmt.Errorf("%s is a group of fields: %s", path, strings.Join(fieldNames(fd.Message()), ", "))
		case last && (fd.IsMap() || fd.Message() != nil && !isDuration(fd)):
			return nil, nil, fmt.Errorf("%s is set in a file (drover apply)", path)
		case last:
			return m, fd, nil
		case !group:
			return nil, nil, fmt.Errorf("%s has no fields below it", strings.Join(parts[:i+1], "."))
		}
		m = m.Mutable(fd).Message()
	}
	return nil, nil, errors.New("no field is named")
}

func fieldNames(d protoreflect.MessageDescriptor) []string {
	var out []string
	for i := range d.Fields().Len() {
		out = append(out, string(d.Fields().Get(i).Name()))
	}
	return out
}

func scalarOf(fd protoreflect.FieldDescriptor, s string) (protoreflect.Value, error) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(s), nil
	case protoreflect.BoolKind:
		on, err := parseYes(s)
		return protoreflect.ValueOfBool(on), err
	case protoreflect.EnumKind:
		n, err := unit.ParseEnum(fd.Enum(), s)
		return protoreflect.ValueOfEnum(n), err
	case protoreflect.DoubleKind:
		n, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return protoreflect.Value{}, fmt.Errorf("%q is no number", s)
		}
		return protoreflect.ValueOfFloat64(n), nil
	case protoreflect.Int32Kind:
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil {
			return protoreflect.Value{}, fmt.Errorf("%q is no number", s)
		}
		return protoreflect.ValueOfInt32(int32(n)), nil
	case protoreflect.Int64Kind:
		n, err := amount(string(fd.Name()), s)
		return protoreflect.ValueOfInt64(n), err
	}
	return protoreflect.Value{}, fmt.Errorf("fields of this kind are set in a file (drover apply)")
}

// amount reads a number, a size ("64K") for fields of bytes, or a rate ("100M", decimal) for fields of bits a second.
func amount(field, s string) (int64, error) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, nil
	}
	switch {
	case strings.HasSuffix(field, "_bytes"), field == "bandwidth_limit":
		return unit.ParseSize(s)
	case strings.HasSuffix(field, "_bps"):
		for suffix, size := range map[string]float64{"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} {
			number, ok := strings.CutSuffix(s, suffix)
			if n, err := strconv.ParseFloat(number, 64); ok && err == nil && n >= 0 && n*size <= 1e15 {
				return int64(n * size), nil
			}
		}
	}
	return 0, fmt.Errorf("%q is no amount; write a number, or 64K, 100M, 1G", s)
}

// paths lists all fields below a message that --set takes, in order.
func paths(d protoreflect.MessageDescriptor, prefix string) []string {
	var out []string
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		name := prefix + string(fd.Name())
		switch {
		case fd.IsMap(), fd.IsList() && fd.Message() != nil:
		case fd.Message() != nil && !isDuration(fd):
			out = append(out, paths(fd.Message(), name+".")...)
		default:
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
