package unit

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Span writes a length of time in at most two units: "45s", "3m12s", "5h20m", "12d", "3y40d".
func Span(d time.Duration) string {
	s := int64(d / time.Second)
	switch {
	case s < 0:
		return "0s"
	case s < 120:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		if s%60 == 0 || s >= 600 {
			return fmt.Sprintf("%dm", s/60)
		}
		return fmt.Sprintf("%dm%ds", s/60, s%60)
	case s < 24*3600:
		if m := s % 3600 / 60; m != 0 && s < 10*3600 {
			return fmt.Sprintf("%dh%dm", s/3600, m)
		}
		return fmt.Sprintf("%dh", s/3600)
	case s < 2*365*24*3600:
		return fmt.Sprintf("%dd", s/(24*3600))
	}
	return fmt.Sprintf("%dy%dd", s/(365*24*3600), s/(24*3600)%365)
}

// Age is how long ago a time was; "-" if it isn't set.
func Age(now time.Time, t *timestamppb.Timestamp) string {
	if t == nil || t.AsTime().Unix() == 0 {
		return "-"
	}
	return Span(now.Sub(t.AsTime()))
}

// Word is an enum's value without its prefix, in lower case: VM_PHASE_IO_ERROR is "io-error". The zero value is "".
func Word(e protoreflect.Enum) string { return EnumWord(e.Descriptor(), e.Number()) }

// EnumWord is Word for a number of an enum.
func EnumWord(d protoreflect.EnumDescriptor, n protoreflect.EnumNumber) string {
	v := d.Values().ByNumber(n)
	switch {
	case v == nil:
		return fmt.Sprintf("%d", n)
	case n == 0:
		return ""
	}
	return word(d, v)
}

// Words are all values of an enum but the zero one.
func Words(d protoreflect.EnumDescriptor) []string {
	var out []string
	for i := range d.Values().Len() {
		if v := d.Values().Get(i); v.Number() != 0 {
			out = append(out, word(d, v))
		}
	}
	return out
}

func word(d protoreflect.EnumDescriptor, v protoreflect.EnumValueDescriptor) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(string(v.Name()), prefix(d))), "_", "-")
}

// prefix is what all names of an enum's values begin with: the zero value's, less UNSPECIFIED.
func prefix(d protoreflect.EnumDescriptor) string {
	zero := d.Values().ByNumber(0)
	if zero == nil {
		return ""
	}
	return strings.TrimSuffix(string(zero.Name()), "UNSPECIFIED")
}

// ParseEnum reads an enum's value: its full name, or that without the prefix, in any case, with "-" or "_".
func ParseEnum(d protoreflect.EnumDescriptor, s string) (protoreflect.EnumNumber, error) {
	name := protoreflect.Name(strings.ReplaceAll(strings.ToUpper(s), "-", "_"))
	for _, try := range []protoreflect.Name{name, protoreflect.Name(prefix(d)) + name} {
		if v := d.Values().ByName(try); v != nil {
			return v.Number(), nil
		}
	}
	return 0, fmt.Errorf("%q is none of %s", s, strings.Join(Words(d), ", "))
}

// ParseSpan reads a length of time: as Go writes it ("1h30m"), or with days and weeks ("7d", "2w").
func ParseSpan(s string) (time.Duration, error) {
	text := strings.TrimSpace(s)
	for suffix, day := range map[string]float64{"d": 1, "w": 7} {
		if number, ok := strings.CutSuffix(text, suffix); ok {
			n, err := strconv.ParseFloat(number, 64)
			if err != nil || n < 0 || n > 36500 {
				return 0, fmt.Errorf("%q is no length of time; write 90m, 36h, 7d or 2w", s)
			}
			return time.Duration(n * day * 24 * float64(time.Hour)), nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no length of time; write 90m, 36h, 7d or 2w", s)
	}
	return d, nil
}
