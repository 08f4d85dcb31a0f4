package query

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// restrict compiles "path op value"; reason says what is wrong with it.
func restrict(p path, op string, val token) (pred predicate, reason string) {
	fd := p.leaf()
	if op == ":" && val.kind == tokWord && val.text == "*" {
		return func(m protoreflect.Message) bool {
			return p.each(m, func(v protoreflect.Value) bool { return p.hasKey || present(fd, v) })
		}, ""
	}
	if fd.IsMap() && !p.hasKey {
		if op != ":" || fd.MapKey().Kind() != protoreflect.StringKind {
			return nil, fmt.Sprintf("%s is a map: ask %s:KEY or %s.KEY = VALUE", fd.Name(), fd.Name(), fd.Name())
		}
		key := protoreflect.ValueOfString(val.text).MapKey()
		return func(m protoreflect.Message) bool {
			return p.each(m, func(v protoreflect.Value) bool { return v.Map().Has(key) })
		}, ""
	}
	valueField := fd
	if fd.IsMap() {
		valueField = fd.MapValue()
	}
	c := classOf(valueField)
	want, reason := c.parse(valueField, val.text)
	if reason != "" {
		return nil, reason
	}
	if op == ":" && c == classString {
		needle := fold(val.text)
		return func(m protoreflect.Message) bool {
			return p.each(m, func(v protoreflect.Value) bool { return contains(v.String(), needle) })
		}, ""
	}
	if c == classBool && op != "=" && op != "!=" && op != ":" {
		return nil, fmt.Sprintf("%s is true or false; it has no order", fd.Name())
	}
	if op == "!=" {
		return func(m protoreflect.Message) bool {
			return !p.each(m, func(v protoreflect.Value) bool { return c.compare(c.of(v), want) == 0 })
		}, ""
	}
	holds := map[string]func(int) bool{
		"=":  func(d int) bool { return d == 0 },
		":":  func(d int) bool { return d == 0 },
		"<":  func(d int) bool { return d < 0 },
		"<=": func(d int) bool { return d <= 0 },
		">":  func(d int) bool { return d > 0 },
		">=": func(d int) bool { return d >= 0 },
	}[op]
	return func(m protoreflect.Message) bool {
		return p.each(m, func(v protoreflect.Value) bool { return holds(c.compare(c.of(v), want)) })
	}, ""
}

// present: not the default value.
func present(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
	if fd.IsList() || fd.IsMap() || fd.Message() != nil || fd.HasPresence() {
		return true // there is an element
	}
	return !v.Equal(fd.Default())
}

func nameHas(name path, text string) predicate {
	needle := fold(text)
	return func(m protoreflect.Message) bool {
		return name.each(m, func(v protoreflect.Value) bool { return contains(v.String(), needle) })
	}
}

func fold(s string) string { return strings.Map(unicode.ToLower, s) }

// contains says whether s has needle, which is folded, in it. ASCII without capitals, as nearly all names are,
// takes no copy.
func contains(s, needle string) bool {
	for i := range len(s) {
		if c := s[i]; c >= utf8.RuneSelf || 'A' <= c && c <= 'Z' {
			return strings.Contains(fold(s), needle)
		}
	}
	return strings.Contains(s, needle)
}
