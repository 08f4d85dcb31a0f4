package manifest

import (
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Changed are the paths in which a user's part of two messages of one type differs: below spec, and meta.labels and
// meta.annotations; fit for a field mask.
func Changed(a, b proto.Message) []string {
	var out []string
	differ("", a.ProtoReflect(), b.ProtoReflect(), &out)
	return slices.DeleteFunc(out, func(p string) bool {
		return p != "spec" && p != "meta.labels" && p != "meta.annotations" && (len(p) < 5 || p[:5] != "spec.")
	})
}

func differ(path string, a, b protoreflect.Message, out *[]string) {
	fields := a.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		at := join(path, string(fd.Name()))
		switch {
		case !a.Has(fd) && !b.Has(fd):
		case path == "" && (fd.Name() == "spec" || fd.Name() == "meta"):
			differ(at, a.Get(fd).Message(), b.Get(fd).Message(), out)
		case a.Has(fd) != b.Has(fd):
			*out = append(*out, at)
		case fd.Message() != nil && !fd.IsMap() && !fd.IsList() && !wellKnown(fd.Message()):
			differ(at, a.Get(fd).Message(), b.Get(fd).Message(), out)
		case !a.Get(fd).Equal(b.Get(fd)):
			*out = append(*out, at)
		}
	}
}
