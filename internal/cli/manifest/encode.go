package manifest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// SpecOnly is a copy of m without status and without what only the manager sets in meta.
func SpecOnly(m proto.Message) proto.Message {
	m = proto.CloneOf(m)
	r := m.ProtoReflect()
	if fd := r.Descriptor().Fields().ByName("status"); fd != nil {
		r.Clear(fd)
	}
	if fd := r.Descriptor().Fields().ByName("meta"); fd != nil && r.Has(fd) {
		meta := r.Mutable(fd).Message()
		for _, name := range ownedMeta {
			meta.Clear(meta.Descriptor().Fields().ByName(protoreflect.Name(name)))
		}
	}
	return m
}

// YAML writes messages as documents, fields in the order of the API's definition. An empty kind is left out.
func YAML(w io.Writer, kind string, ms ...proto.Message) error {
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	for _, m := range ms {
		n := messageNode(m.ProtoReflect())
		if kind != "" {
			n.Content = append([]*yaml.Node{str("kind"), str(kind)}, n.Content...)
		}
		if err := enc.Encode(n); err != nil {
			return fmt.Errorf("write YAML: %w", err)
		}
	}
	return enc.Close()
}

// JSON writes one message as an object in protobuf's JSON mapping with the fields' own names, and kind in front.
func JSON(w io.Writer, kind string, m proto.Message) error {
	b, err := object(kind, m)
	if err != nil {
		return err
	}
	return indent(w, b)
}

// JSONLine writes one message as one line.
func JSONLine(w io.Writer, m proto.Message) error {
	b, err := object("", m)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	out.WriteByte('\n')
	_, err = w.Write(out.Bytes())
	return err
}

// JSONList writes messages as an array of such objects.
func JSONList(w io.Writer, kind string, ms []proto.Message) error {
	parts := make([][]byte, len(ms))
	for i, m := range ms {
		b, err := object(kind, m)
		if err != nil {
			return err
		}
		parts[i] = b
	}
	return indent(w, slices.Concat([]byte("["), bytes.Join(parts, []byte(",")), []byte("]")))
}

func indent(w io.Writer, b []byte) error {
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	out.WriteByte('\n')
	_, err := w.Write(out.Bytes())
	return err
}

func object(kind string, m proto.Message) ([]byte, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write JSON: %w", err)
	}
	if kind == "" {
		return b, nil
	}
	head := `{"kind":` + strconv.Quote(kind)
	if rest := bytes.TrimSpace(b[1:]); len(rest) > 1 {
		head += ","
	}
	return append([]byte(head), b[1:]...), nil
}

func messageNode(m protoreflect.Message) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		n.Content = append(n.Content, str(string(fd.Name())), fieldNode(fd, m.Get(fd)))
	}
	return n
}

func fieldNode(fd protoreflect.FieldDescriptor, v protoreflect.Value) *yaml.Node {
	switch {
	case fd.IsMap():
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		var keys []protoreflect.MapKey
		v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
			keys = append(keys, k)
			return true
		})
		slices.SortFunc(keys, func(a, b protoreflect.MapKey) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			n.Content = append(n.Content, str(k.String()), oneNode(fd.MapValue(), v.Map().Get(k)))
		}
		return n
	case fd.IsList():
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for i := range v.List().Len() {
			n.Content = append(n.Content, oneNode(fd, v.List().Get(i)))
		}
		return n
	}
	return oneNode(fd, v)
}

func oneNode(fd protoreflect.FieldDescriptor, v protoreflect.Value) *yaml.Node {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		switch x := v.Message().Interface().(type) {
		case *durationpb.Duration:
			return str(x.AsDuration().String())
		case *timestamppb.Timestamp:
			return str(x.AsTime().Format("2006-01-02T15:04:05.999999999Z07:00"))
		}
		return messageNode(v.Message())
	case protoreflect.StringKind:
		return str(v.String())
	case protoreflect.BytesKind:
		return str(base64.StdEncoding.EncodeToString(v.Bytes()))
	case protoreflect.EnumKind:
		if d := fd.Enum().Values().ByNumber(v.Enum()); d != nil {
			return str(string(d.Name()))
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(int(v.Enum()))}
	case protoreflect.BoolKind:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v.Bool())}
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!float", Value: strconv.FormatFloat(v.Float(), 'g', -1, 64)}
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: v.String()}
}

func str(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if strings.Contains(s, "\n") {
		n.Style = yaml.DoubleQuotedStyle
		if plainLines(s) {
			n.Style = yaml.LiteralStyle
		}
	}
	return n
}

// plainLines reports whether literal style keeps s as it is: blanks at the ends of lines and of the text are left to quotes.
func plainLines(s string) bool {
	if strings.HasPrefix(s, "\n") || strings.HasSuffix(s, "\n\n") || !utf8.ValidString(s) {
		return false
	}
	for i, line := range strings.Split(strings.TrimSuffix(s, "\n"), "\n") {
		if strings.TrimRight(line, " ") != line || i == 0 && strings.HasPrefix(line, " ") || strings.ContainsFunc(line, unicode.IsControl) {
			return false
		}
	}
	return true
}
