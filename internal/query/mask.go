package query

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// Apply copies the fields that mask names from src to dst, of the same type; a field that is not set in src is
// cleared in dst. A path may end in a map's key, which then is set or removed; it may not go into the elements of a
// list, which is replaced as a whole. "*" replaces everything. A nil or empty mask takes all fields that are set
// in src (AIP-134). The error is an *Error that names all bad paths; dst is then unchanged. src is never shared with dst.
func Apply(mask *fieldmaskpb.FieldMask, dst, src proto.Message) error {
	d, s := dst.ProtoReflect(), proto.Clone(src).ProtoReflect()
	if d.Descriptor() != s.Descriptor() {
		return &Error{In: "update_mask", Reason: "source and destination are of different types"}
	}
	if len(mask.GetPaths()) == 0 {
		overlay(d, s)
		return nil
	}
	var paths []path
	var bad []string
	all := false
	for _, text := range mask.GetPaths() {
		if text == "*" {
			all = true
			continue
		}
		p, err := resolve("update_mask", d.Descriptor(), split(text, 0))
		if err != nil {
			bad = append(bad, "path \""+clip(text)+"\": "+reasonOf(err))
			continue
		}
		if through := throughList(p); through != "" {
			bad = append(bad, "path \""+clip(text)+"\": "+through+" is a list and changes as a whole")
			continue
		}
		paths = append(paths, p)
	}
	if bad != nil {
		return &Error{In: "update_mask", Reason: strings.Join(bad, "; ")}
	}
	if all {
		proto.Reset(dst)
		proto.Merge(dst, s.Interface())
		return nil
	}
	for _, p := range paths {
		p.set(d, s)
	}
	return nil
}

func reasonOf(err error) string {
	if e, ok := err.(*Error); ok { //nolint:errorlint // resolve returns it bare
		return e.Reason
	}
	return err.Error()
}

func throughList(p path) string {
	for _, s := range p.steps[:len(p.steps)-1] {
		if s.IsList() {
			return string(s.Name())
		}
	}
	return ""
}

// set copies one path; messages on the way are made only if there is something to set.
func (p path) set(d, s protoreflect.Message) {
	for _, fd := range p.steps[:len(p.steps)-1] {
		if !s.Has(fd) && !d.Has(fd) {
			return
		}
		d, s = d.Mutable(fd).Message(), s.Get(fd).Message()
	}
	fd := p.leaf()
	switch {
	case p.hasKey:
		key, _ := mapKey(fd, p.key)
		if v := s.Get(fd).Map().Get(key); v.IsValid() {
			d.Mutable(fd).Map().Set(key, v)
		} else if d.Has(fd) {
			d.Mutable(fd).Map().Clear(key)
		}
	case s.Has(fd):
		d.Set(fd, s.Get(fd))
	default:
		d.Clear(fd)
	}
}

// overlay sets in d all that is set in s; messages field by field, lists and maps as a whole.
func overlay(d, s protoreflect.Message) {
	s.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.Message() != nil && !fd.IsList() && !fd.IsMap() && classOf(fd) == classNone {
			overlay(d.Mutable(fd).Message(), v.Message())
		} else {
			d.Set(fd, v)
		}
		return true
	})
}
