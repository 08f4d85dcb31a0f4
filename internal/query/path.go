package query

import (
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// path is a resolved field path.
type path struct {
	steps []protoreflect.FieldDescriptor
	// key is the map key that the path ends in, if the last step is a map and hasKey.
	key    string
	hasKey bool
}

// leaf is the last field.
func (p path) leaf() protoreflect.FieldDescriptor { return p.steps[len(p.steps)-1] }

// plural: one message can have many values there.
func (p path) plural() bool {
	for _, s := range p.steps {
		if s.IsList() {
			return true
		}
	}
	return false
}

func field(md protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	if fd := md.Fields().ByName(protoreflect.Name(name)); fd != nil {
		return fd
	}
	return md.Fields().ByJSONName(name)
}

// resolve finds the fields that segs name, starting at md. After a map all that is left is the key.
func resolve(in string, md protoreflect.MessageDescriptor, segs []segment) (path, error) {
	var p path
	for i, s := range segs {
		if md == nil {
			return path{}, &Error{In: in, Pos: s.pos + 1, Reason: "field " + string(p.leaf().Name()) + " has no fields inside"}
		}
		fd := field(md, s.text)
		if fd == nil {
			return path{}, &Error{In: in, Pos: s.pos + 1, Reason: unknownField(md, s.text)}
		}
		p.steps = append(p.steps, fd)
		if fd.IsMap() {
			if i+1 < len(segs) {
				p.hasKey, p.key = true, joinKey(segs[i+1:])
				if _, ok := mapKey(fd, p.key); !ok {
					return path{}, &Error{In: in, Pos: s.pos + 1, Reason: "\"" + clip(p.key) + "\" is no key of " + string(fd.Name()) + ", whose keys are of type " + fd.MapKey().Kind().String()}
				}
			}
			return p, nil
		}
		md = fd.Message()
	}
	return p, nil
}

// mapKey is a key of a map as the text of a path has it.
func mapKey(fd protoreflect.FieldDescriptor, text string) (protoreflect.MapKey, bool) {
	switch fd.MapKey().Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text).MapKey(), true
	case protoreflect.Int32Kind:
		n, err := strconv.ParseInt(text, 10, 32)
		return protoreflect.ValueOfInt32(int32(n)).MapKey(), err == nil
	}
	return protoreflect.MapKey{}, false
}

func joinKey(segs []segment) string {
	texts := make([]string, len(segs))
	for i, s := range segs {
		texts[i] = s.text
	}
	return strings.Join(texts, ".")
}

// each calls visit with every value at the path until it returns true, and says whether one did. A singular
// scalar always has a value, the default one; an unset message and a missing key have none.
func (p path) each(m protoreflect.Message, visit func(protoreflect.Value) bool) bool {
	return p.eachFrom(0, m, visit)
}

func (p path) eachFrom(i int, m protoreflect.Message, visit func(protoreflect.Value) bool) bool {
	fd := p.steps[i]
	last := i == len(p.steps)-1
	switch {
	case fd.IsMap():
		if !p.hasKey {
			return m.Has(fd) && visit(m.Get(fd))
		}
		key, _ := mapKey(fd, p.key)
		v := m.Get(fd).Map().Get(key)
		return v.IsValid() && visit(v)
	case fd.IsList():
		list := m.Get(fd).List()
		for j := range list.Len() {
			v := list.Get(j)
			if last {
				if visit(v) {
					return true
				}
			} else if p.eachFrom(i+1, v.Message(), visit) {
				return true
			}
		}
		return false
	case last:
		if fd.Message() != nil && !m.Has(fd) {
			return false
		}
		return visit(m.Get(fd))
	}
	return p.eachFrom(i+1, m.Get(fd).Message(), visit)
}

// first is the only value of a path that is not plural; invalid if there is none.
func (p path) first(m protoreflect.Message) (out protoreflect.Value) {
	p.each(m, func(v protoreflect.Value) bool { out = v; return true })
	return out
}

// namePath finds the object's name: meta.name, or name.
func namePath(md protoreflect.MessageDescriptor) (path, error) {
	for _, segs := range [][]segment{{{text: "meta"}, {text: "name"}}, {{text: "name"}}, {{text: "id"}}} {
		p, err := resolve("", md, segs)
		if err == nil && p.leaf().Kind() == protoreflect.StringKind && !p.plural() && !p.leaf().IsMap() {
			return p, nil
		}
	}
	return path{}, &Error{In: "filter", Reason: string(md.FullName()) + " has no name to list by"}
}
