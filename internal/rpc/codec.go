package rpc

import (
	"fmt"
	"strings"

	"drover/internal/resource"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// JSON is the codec for application/json: protobuf's JSON mapping, in which unknown fields are an error.
type JSON struct{}

// Name is what the codec is known as in a Content-Type.
func (JSON) Name() string { return "json" }

// Marshal writes m with the field names of the .proto files, which are also those of filters and field masks.
func (JSON) Marshal(m any) ([]byte, error) {
	pm, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("json: %T is not a message", m)
	}
	return protojson.MarshalOptions{UseProtoNames: true}.Marshal(pm)
}

// Unmarshal reads data into m. It takes lowerCamelCase and snake_case names.
func (JSON) Unmarshal(data []byte, m any) error {
	pm, ok := m.(proto.Message)
	if !ok {
		return fmt.Errorf("json: %T is not a message", m)
	}
	if len(data) == 0 {
		data = []byte("{}")
	}
	if err := protojson.Unmarshal(data, pm); err != nil {
		// protobuf varies its spacing on purpose, with no-break spaces
		return &resource.Error{Code: resource.Invalid, Reason: "JSON_INVALID", Message: strings.ReplaceAll(err.Error(), "\u00a0", " "), Err: err}
	}
	return nil
}

// known refuses a message with fields that this version does not know.
func known(m any) error {
	pm, ok := m.(proto.Message)
	if !ok {
		return nil
	}
	if path := unknown(pm.ProtoReflect()); path != "" {
		return &resource.Error{Code: resource.Invalid, Reason: "FIELD_UNKNOWN",
			Message: "the request has a field in " + path + " that this server does not know", Remedy: "upgrade the server, or use a client of its version"}
	}
	return nil
}

func unknown(m protoreflect.Message) (path string) {
	if len(m.GetUnknown()) > 0 {
		return string(m.Descriptor().Name())
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Message() == nil:
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, x protoreflect.Value) bool {
					path = unknown(x.Message())
					return path == ""
				})
			}
		case fd.IsList():
			for i := 0; i < v.List().Len() && path == ""; i++ {
				path = unknown(v.List().Get(i).Message())
			}
		default:
			path = unknown(v.Message())
		}
		return path == ""
	})
	return path
}
