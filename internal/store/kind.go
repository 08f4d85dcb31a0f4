package store

import (
	"fmt"
	"regexp"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// prefix is where everything of Drover is in etcd.
const prefix = "/drover/v1/"

var kindName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// maxName is the longest name in bytes that the store takes; package resource is stricter.
const maxName = 253

// Step turns the payload of one schema version into that of the next.
type Step func(payload []byte) ([]byte, error)

// Kind says how objects of type T are kept.
type Kind[T proto.Message] struct {
	// Name is the part of the key: vm, host, site.
	Name string
	// Version is the schema version written, from 1 on; 0 means 1.
	Version uint32
	// Steps[v] turns version v into v+1; there must be one for every v in 1..Version-1.
	Steps map[uint32]Step
	// New makes an empty message; needed only where a nil T does not know its own type.
	New func() T
}

// MessageStep is a Step that changes the message itself. Fields that the current message no longer has are
// in its unknown fields.
func MessageStep[T proto.Message](change func(T) error) Step {
	return func(payload []byte) ([]byte, error) {
		var zero T
		m, ok := zero.ProtoReflect().Type().New().Interface().(T)
		if !ok {
			return nil, fmt.Errorf("%w: %T cannot make itself", ErrInvalid, zero)
		}
		if err := proto.Unmarshal(payload, m); err != nil {
			return nil, err
		}
		if err := change(m); err != nil {
			return nil, err
		}
		return proto.MarshalOptions{Deterministic: true}.Marshal(m)
	}
}

// codec turns messages of one kind into values and back. It is immutable.
type codec[T proto.Message] struct {
	kind                 string
	version              uint32
	steps                map[uint32]Step
	newT                 func() T
	meta, name, revision protoreflect.FieldDescriptor
}

func newCodec[T proto.Message](k Kind[T]) (*codec[T], error) {
	if !kindName.MatchString(k.Name) {
		return nil, fmt.Errorf("%w: kind name %q", ErrInvalid, k.Name)
	}
	c := &codec[T]{kind: k.Name, version: max(k.Version, 1), steps: k.Steps, newT: k.New}
	for v := uint32(1); v < c.version; v++ {
		if c.steps[v] == nil {
			return nil, fmt.Errorf("%w: kind %s has no step from schema version %d", ErrInvalid, k.Name, v)
		}
	}
	if c.newT == nil {
		var zero T
		mt := zero.ProtoReflect().Type()
		c.newT = func() T { return mt.New().Interface().(T) }
	}
	md := c.newT().ProtoReflect().Descriptor()
	if c.meta = md.Fields().ByName("meta"); c.meta == nil || c.meta.Message() == nil || c.meta.IsList() || c.meta.IsMap() {
		return nil, fmt.Errorf("%w: message %s of kind %s has no meta", ErrInvalid, md.FullName(), k.Name)
	}
	c.name = c.meta.Message().Fields().ByName("name")
	c.revision = c.meta.Message().Fields().ByName("revision")
	if c.name == nil || c.name.Kind() != protoreflect.StringKind || c.revision == nil || c.revision.Kind() != protoreflect.Int64Kind {
		return nil, fmt.Errorf("%w: meta of kind %s needs a string name and an int64 revision", ErrInvalid, k.Name)
	}
	return c, nil
}

func (c *codec[T]) prefix() string         { return prefix + c.kind + "/" }
func (c *codec[T]) key(name string) string { return c.prefix() + name }

func (c *codec[T]) nameOf(m T) string {
	return m.ProtoReflect().Get(c.meta).Message().Get(c.name).String()
}

func (c *codec[T]) revisionOf(m T) int64 {
	return m.ProtoReflect().Get(c.meta).Message().Get(c.revision).Int()
}

func (c *codec[T]) setRevision(m T, rev int64) {
	m.ProtoReflect().Mutable(c.meta).Message().Set(c.revision, protoreflect.ValueOfInt64(rev))
}

func (c *codec[T]) encode(m T) ([]byte, error) {
	if rev := c.revisionOf(m); rev != 0 {
		m = proto.Clone(m).(T)
		m.ProtoReflect().Mutable(c.meta).Message().Clear(c.revision)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return seal(c.version, b), nil
}

// decode gives the message, and whether it came from an older schema.
func (c *codec[T]) decode(name string, value []byte, rev int64) (m T, old bool, err error) {
	v, payload, err := unseal(value)
	if err != nil {
		return m, false, fail("decode", c.kind, name, err)
	}
	if v > c.version {
		return m, false, fail("decode", c.kind, name, fmt.Errorf("%w: schema version %d, this one knows up to %d", ErrNewerSchema, v, c.version))
	}
	for ; v < c.version; v++ {
		if payload, err = c.steps[v](payload); err != nil {
			return m, false, fail("migrate", c.kind, name, fmt.Errorf("from schema version %d: %w", v, err))
		}
		old = true
	}
	m = c.newT()
	if err := proto.Unmarshal(payload, m); err != nil {
		return m, false, fail("decode", c.kind, name, fmt.Errorf("%w: %w", ErrCorrupt, err))
	}
	if got := c.nameOf(m); got != name {
		return m, false, fail("decode", c.kind, name, fmt.Errorf("%w: it is named %q inside", ErrCorrupt, got))
	}
	c.setRevision(m, rev)
	return m, old, nil
}

func (c *codec[T]) checkName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%w: a name has 1 to %d bytes, this one %d", ErrInvalid, maxName, len(name))
	}
	for i := 0; i < len(name); i++ {
		if name[i] <= ' ' || name[i] >= 0x7f || (name[i] == '/' && (i == 0 || i == len(name)-1 || name[i-1] == '/')) {
			return fmt.Errorf("%w: name %q has a character that a key cannot have at %d", ErrInvalid, name, i)
		}
	}
	return nil
}
