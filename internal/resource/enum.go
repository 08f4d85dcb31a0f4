package resource

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// checkEnums adds a fault for every field of a spec that has a value which this version does not know: a number beyond
// the names of its enumeration. What is not known is never taken for something else.
func checkEnums(f *Faults, spec proto.Message) {
	walkEnums(spec.ProtoReflect(), "spec", func(at string, fd protoreflect.FieldDescriptor, n protoreflect.EnumNumber) {
		if fd.Enum().Values().ByNumber(n) == nil {
			f.Add(at, "VALUE_UNKNOWN", "%d is not a %s; there are %s", n, fd.Enum().Name(), strings.Join(valueNames(fd.Enum()), ", "))
		}
	})
}

func walkEnums(m protoreflect.Message, at string, visit func(string, protoreflect.FieldDescriptor, protoreflect.EnumNumber)) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := at + "." + string(fd.Name())
		switch {
		case fd.IsMap(): // the API has none with messages or enumerations in it
		case fd.Message() != nil && fd.IsList():
			for i := range v.List().Len() {
				walkEnums(v.List().Get(i).Message(), at, visit)
			}
		case fd.Message() != nil:
			walkEnums(v.Message(), at, visit)
		case fd.Enum() != nil && fd.IsList():
			for i := range v.List().Len() {
				visit(at, fd, v.List().Get(i).Enum())
			}
		case fd.Enum() != nil:
			visit(at, fd, v.Enum())
		}
		return true
	})
}

func valueNames(e protoreflect.EnumDescriptor) []string {
	var names []string
	for i := range e.Values().Len() {
		names = append(names, string(e.Values().Get(i).Name()))
	}
	return names
}
