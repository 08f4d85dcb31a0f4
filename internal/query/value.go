package query

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// class is how values of a field compare.
type class int

const (
	classNone class = iota // messages, bytes, maps: presence only
	classString
	classInt
	classUint
	classFloat
	classBool
	classEnum
	classTime     // google.protobuf.Timestamp, in nanoseconds since 1970
	classDuration // google.protobuf.Duration, in nanoseconds
)

// scalar is a comparable value. Only the member of its class is set; i also holds bools, enums, times.
type scalar struct {
	i int64
	u uint64
	f float64
	s string
}

func classOf(fd protoreflect.FieldDescriptor) class {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return classString
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind, protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return classInt
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return classUint
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return classFloat
	case protoreflect.BoolKind:
		return classBool
	case protoreflect.EnumKind:
		return classEnum
	case protoreflect.MessageKind:
		switch fd.Message().FullName() {
		case "google.protobuf.Timestamp":
			return classTime
		case "google.protobuf.Duration":
			return classDuration
		}
	}
	return classNone
}

func (c class) of(v protoreflect.Value) scalar {
	switch c {
	case classString:
		return scalar{s: v.String()}
	case classInt:
		return scalar{i: v.Int()}
	case classUint:
		return scalar{u: v.Uint()}
	case classFloat:
		return scalar{f: v.Float()}
	case classBool:
		if v.Bool() {
			return scalar{i: 1}
		}
	case classEnum:
		return scalar{i: int64(v.Enum())}
	case classTime, classDuration:
		m := v.Message()
		fields := m.Descriptor().Fields()
		return scalar{i: nanos(m.Get(fields.ByNumber(1)).Int(), m.Get(fields.ByNumber(2)).Int())}
	}
	return scalar{}
}

// nanos saturates: a hostile timestamp sorts last, it does not wrap round.
func nanos(sec, ns int64) int64 {
	switch {
	case sec > math.MaxInt64/int64(time.Second)-1:
		return math.MaxInt64
	case sec < math.MinInt64/int64(time.Second)+1:
		return math.MinInt64
	}
	return sec*int64(time.Second) + ns
}

func (c class) compare(a, b scalar) int {
	switch c {
	case classString:
		return strings.Compare(a.s, b.s)
	case classUint:
		return cmp.Compare(a.u, b.u)
	case classFloat:
		return cmp.Compare(a.f, b.f)
	}
	return cmp.Compare(a.i, b.i)
}

// parse reads text as a value for fd; the reason says what is wrong.
func (c class) parse(fd protoreflect.FieldDescriptor, text string) (scalar, string) {
	bad := func(want string) (scalar, string) {
		return scalar{}, fmt.Sprintf("%s is %s, %q is not", fd.Name(), want, clip(text))
	}
	switch c {
	case classString:
		return scalar{s: text}, ""
	case classInt:
		num, mul := unit(text)
		i, err := strconv.ParseInt(num, 10, 64)
		if err != nil || i > math.MaxInt64/mul || i < math.MinInt64/mul {
			return bad("a whole number")
		}
		return scalar{i: i * mul}, ""
	case classUint:
		num, mul := unit(text)
		u, err := strconv.ParseUint(num, 10, 64)
		if err != nil || u > math.MaxUint64/uint64(mul) {
			return bad("a whole number from 0 on")
		}
		return scalar{u: u * uint64(mul)}, ""
	case classFloat:
		num, mul := unit(text)
		f, err := strconv.ParseFloat(num, 64)
		if err != nil || math.IsNaN(f) {
			return bad("a number")
		}
		return scalar{f: f * float64(mul)}, ""
	case classBool:
		switch text {
		case "true":
			return scalar{i: 1}, ""
		case "false":
			return scalar{}, ""
		}
		return bad("true or false")
	case classEnum:
		return parseEnum(fd, text)
	case classTime:
		t, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return bad(`a time like "2026-01-31T12:00:00Z"`)
		}
		return scalar{i: nanos(t.Unix(), int64(t.Nanosecond()))}, ""
	case classDuration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return bad("a duration like 90s or 1h30m")
		}
		return scalar{i: int64(d)}, ""
	}
	return scalar{}, fmt.Sprintf("%s can only be asked for presence: %s:*", fd.Name(), fd.Name())
}

var units = []struct {
	suffix string
	mul    int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"k", 1e3}, {"K", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12},
}

func unit(text string) (num string, mul int64) {
	for _, u := range units {
		if n, ok := strings.CutSuffix(text, u.suffix); ok {
			return n, u.mul
		}
	}
	return text, 1
}

// parseEnum takes POWER_ON, ON or on for a value of enum Power.
func parseEnum(fd protoreflect.FieldDescriptor, text string) (scalar, string) {
	values := fd.Enum().Values()
	common := ""
	if n, ok := strings.CutSuffix(string(values.Get(0).Name()), "UNSPECIFIED"); ok {
		common = n
	}
	names := make([]string, values.Len())
	for i := range names {
		full := string(values.Get(i).Name())
		names[i] = strings.TrimPrefix(full, common)
		if strings.EqualFold(text, full) || strings.EqualFold(text, names[i]) {
			return scalar{i: int64(values.Get(i).Number())}, ""
		}
	}
	return scalar{}, fmt.Sprintf("%s is never %q; %s", fd.Name(), clip(text), suggest(text, names))
}
