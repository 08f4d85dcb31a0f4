package manifest

import (
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/cli/unit"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// ownedMeta are the fields of meta that only the manager sets. A document may have them, since "get" prints them.
var ownedMeta = []string{"uid", "generation", "revision", "create_time", "update_time", "delete_time", "project"}

type decoder struct {
	p      *parser
	values int
}

// message lays the mapping n over m.
func (d *decoder) message(path string, m protoreflect.Message, n *yaml.Node) {
	if n = d.resolve(n); n == nil {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.p.fault(n.Line, "%s: a mapping is needed here", orTop(path))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		if path == "" && key.Value == "kind" {
			continue
		}
		fd := field(m.Descriptor(), key.Value)
		if fd == nil {
			hint := ""
			if near := nearest(key.Value, m.Descriptor()); near != "" {
				hint = "; did you mean " + near + "?"
			}
			d.p.fault(key.Line, "%s: no such field%s", join(path, key.Value), hint)
			continue
		}
		name := string(fd.Name())
		if seen[name] {
			d.p.fault(key.Line, "%s: is given twice", join(path, name))
			continue
		}
		seen[name] = true
		if path == "" && name == "status" || path == "meta" && slices.Contains(ownedMeta, name) {
			continue
		}
		d.field(join(path, name), m, fd, val)
	}
}

func (d *decoder) field(path string, m protoreflect.Message, fd protoreflect.FieldDescriptor, n *yaml.Node) {
	if n = d.resolve(n); n == nil {
		return
	}
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		m.Clear(fd)
	case fd.IsMap():
		d.mapping(path, m, fd, n)
	case fd.IsList():
		d.list(path, m, fd, n)
	case fd.Message() != nil && !wellKnown(fd.Message()):
		d.message(path, m.Mutable(fd).Message(), n)
	default:
		if v, ok := d.scalar(path, fd, n); ok {
			m.Set(fd, v)
		}
	}
}

// mapping replaces a map, but for keys that begin with "drover/", which are the manager's own notes.
func (d *decoder) mapping(path string, m protoreflect.Message, fd protoreflect.FieldDescriptor, n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		d.p.fault(n.Line, "%s: a mapping is needed here", path)
		return
	}
	fresh := m.NewField(fd).Map()
	m.Get(fd).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if strings.HasPrefix(k.String(), "drover/") {
			fresh.Set(k, v)
		}
		return true
	})
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], d.resolve(n.Content[i+1])
		if val == nil {
			return
		}
		at := join(path, key.Value)
		k, ok := d.scalar(at, fd.MapKey(), key)
		if !ok {
			continue
		}
		if seen[key.Value] {
			d.p.fault(key.Line, "%s: is given twice", at)
			continue
		}
		seen[key.Value] = true
		if val.Kind == yaml.ScalarNode && val.Tag == "!!null" {
			continue
		}
		if fd.MapValue().Message() != nil {
			v := fresh.NewValue()
			d.message(at, v.Message(), val)
			fresh.Set(k.MapKey(), v)
		} else if v, ok := d.scalar(at, fd.MapValue(), val); ok {
			fresh.Set(k.MapKey(), v)
		}
	}
	m.Set(fd, protoreflect.ValueOfMap(fresh))
}

// list replaces a list; of messages with a name, those that are there already stay below what the document says.
func (d *decoder) list(path string, m protoreflect.Message, fd protoreflect.FieldDescriptor, n *yaml.Node) {
	if n.Kind != yaml.SequenceNode {
		d.p.fault(n.Line, "%s: a list is needed here", path)
		return
	}
	fresh := m.NewField(fd).List()
	old := m.Get(fd).List()
	for i, c := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		if c = d.resolve(c); c == nil {
			return
		}
		if fd.Message() == nil || wellKnown(fd.Message()) {
			if v, ok := d.scalar(at, fd, c); ok {
				fresh.Append(v)
			}
			continue
		}
		v := fresh.NewElement()
		if name := fd.Message().Fields().ByName("name"); name != nil && c.Kind == yaml.MappingNode {
			want := value(c, "name")
			for j := range old.Len() {
				if want != "" && old.Get(j).Message().Get(name).String() == want {
					v = old.Get(j)
				}
			}
		}
		d.message(at, v.Message(), c)
		fresh.Append(v)
	}
	m.Set(fd, protoreflect.ValueOfList(fresh))
}

func (d *decoder) scalar(path string, fd protoreflect.FieldDescriptor, n *yaml.Node) (v protoreflect.Value, ok bool) {
	if n.Kind != yaml.ScalarNode {
		d.p.fault(n.Line, "%s: one value is needed here", path)
		return v, false
	}
	v, err := parse(fd, n)
	if err != nil {
		d.p.fault(n.Line, "%s: %v", path, err)
	}
	return v, err == nil
}

func parse(fd protoreflect.FieldDescriptor, n *yaml.Node) (v protoreflect.Value, err error) {
	s := n.Value
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(s), nil
	case protoreflect.BoolKind:
		if n.Tag != "!!bool" {
			return v, fmt.Errorf("%q is not true or false", s)
		}
		return protoreflect.ValueOfBool(strings.EqualFold(s, "true")), nil
	case protoreflect.Int32Kind:
		i, err := strconv.ParseInt(s, 10, 32)
		if err != nil {
			return v, fmt.Errorf("%q is not a whole number of 32 bits", s)
		}
		return protoreflect.ValueOfInt32(int32(i)), nil
	case protoreflect.Int64Kind:
		if strings.HasSuffix(string(fd.Name()), "_bytes") {
			i, err := unit.ParseSize(s)
			return protoreflect.ValueOfInt64(i), err
		}
		i, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return v, fmt.Errorf("%q is not a whole number of 64 bits", s)
		}
		return protoreflect.ValueOfInt64(i), nil
	case protoreflect.DoubleKind:
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return v, fmt.Errorf("%q is not a number", s)
		}
		return protoreflect.ValueOfFloat64(f), nil
	case protoreflect.BytesKind:
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return v, fmt.Errorf("not base64: %w", err)
		}
		return protoreflect.ValueOfBytes(b), nil
	case protoreflect.EnumKind:
		e, err := unit.ParseEnum(fd.Enum(), s)
		return protoreflect.ValueOfEnum(e), err
	case protoreflect.MessageKind:
		return parseKnown(fd.Message(), s)
	}
	return v, fmt.Errorf("a field of kind %s can't be given here", fd.Kind())
}

func wellKnown(d protoreflect.MessageDescriptor) bool {
	return d.FullName() == "google.protobuf.Duration" || d.FullName() == "google.protobuf.Timestamp"
}

func parseKnown(d protoreflect.MessageDescriptor, s string) (v protoreflect.Value, err error) {
	if d.FullName() == "google.protobuf.Duration" {
		l, err := time.ParseDuration(s)
		if err != nil {
			return v, fmt.Errorf("%q is not a length of time, such as 90s or 1h30m", s)
		}
		return protoreflect.ValueOfMessage(durationpb.New(l).ProtoReflect()), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return v, fmt.Errorf("%q is not a time, such as 2006-01-02T15:04:05Z", s)
	}
	return protoreflect.ValueOfMessage(timestamppb.New(t).ProtoReflect()), nil
}

// resolve follows aliases and counts values, so that a few lines can't become millions.
func (d *decoder) resolve(n *yaml.Node) *yaml.Node {
	for hops := 0; n.Kind == yaml.AliasNode; hops++ {
		if n = n.Alias; n == nil || hops > 10 {
			return nil
		}
	}
	d.values++
	if d.values > maxValues {
		if d.values == maxValues+1 {
			d.p.fault(n.Line, "the document has more than %d values", maxValues)
		}
		return nil
	}
	return n
}

func field(d protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	if fd := d.Fields().ByName(protoreflect.Name(name)); fd != nil {
		return fd
	}
	return d.Fields().ByJSONName(name)
}

func value(n *yaml.Node, key string) string {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key && n.Content[i+1].Kind == yaml.ScalarNode {
			return n.Content[i+1].Value
		}
	}
	return ""
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func orTop(path string) string {
	if path == "" {
		return "document"
	}
	return path
}
