package cli

import (
	"bufio"
	"fmt"
	"strings"
	"time"

	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// hidden are fields that tell people nothing.
var hidden = map[protoreflect.Name]bool{"uid": true, "generation": true, "revision": true, "observed_generation": true, "vm_spec": true, "arguments": true, "notes": true, "password_hash": true, "secret_hash": true, "machine_types": true}

// describe prints all of an object for people.
func (a *App) describe(o object) error {
	w := bufio.NewWriter(a.Out)
	d := describer{w: w, now: a.now(), colour: a.coloured(a.Out)}
	m := o.ProtoReflect()
	for i := range m.Descriptor().Fields().Len() {
		fd := m.Descriptor().Fields().Get(i)
		if !m.Has(fd) {
			continue
		}
		switch fd.Name() {
		case "meta":
			d.fields("", m.Get(fd).Message())
		default:
			fmt.Fprintln(w, table.Paint(title(fd.Name()), table.Bold, d.colour))
			d.fields("  ", m.Get(fd).Message())
		}
	}
	return w.Flush()
}

type describer struct {
	w      *bufio.Writer
	now    time.Time
	colour bool
}

const keyWidth = 22

func (d *describer) line(indent, key, value string) {
	pad := strings.Repeat(" ", max(1, keyWidth-len(indent)-len(key)-1))
	fmt.Fprintf(d.w, "%s%s:%s%s\n", indent, key, pad, value)
}

func (d *describer) fields(indent string, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) || hidden[fd.Name()] {
			continue
		}
		d.field(indent, title(fd.Name()), fd, m.Get(fd))
	}
}

func (d *describer) field(indent, key string, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch {
	case fd.IsMap():
		if fd.MapValue().Message() != nil {
			return // none has such a map today
		}
		m := map[string]string{}
		v.Map().Range(func(k protoreflect.MapKey, x protoreflect.Value) bool {
			m[k.String()] = d.scalar(fd.MapValue(), x)
			return true
		})
		d.line(indent, key, table.Clean(pairs(m)))
	case fd.IsList() && fd.Message() == nil:
		var out []string
		for i := range v.List().Len() {
			out = append(out, d.scalar(fd, v.List().Get(i)))
		}
		d.line(indent, key, strings.Join(out, ", "))
	case fd.IsList():
		fmt.Fprintf(d.w, "%s%s:\n", indent, key)
		for i := range v.List().Len() {
			d.item(indent+"  ", v.List().Get(i).Message())
		}
	case fd.Message() != nil && !isTime(fd.Message()):
		fmt.Fprintf(d.w, "%s%s:\n", indent, key)
		d.fields(indent+"  ", v.Message())
	default:
		text := d.scalar(fd, v)
		if fd.Kind() == protoreflect.StringKind && strings.Contains(strings.TrimSpace(v.String()), "\n") {
			fmt.Fprintf(d.w, "%s%s:\n", indent, key)
			for l := range strings.SplitSeq(strings.TrimRight(v.String(), "\n"), "\n") {
				fmt.Fprintf(d.w, "%s  | %s\n", indent, strings.TrimRight(cleanKeepIndent(l), " "))
			}
			return
		}
		d.line(indent, key, text)
	}
}

// item is an element of a list in one line: its name, then the rest as key=value.
func (d *describer) item(indent string, m protoreflect.Message) {
	var head string
	var rest []string
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) || hidden[fd.Name()] || fd.Message() != nil && !isTime(fd.Message()) || fd.IsMap() {
			continue
		}
		var text string
		if fd.IsList() {
			var parts []string
			for j := range m.Get(fd).List().Len() {
				parts = append(parts, d.scalar(fd, m.Get(fd).List().Get(j)))
			}
			text = strings.Join(parts, " ")
		} else {
			text = d.scalar(fd, m.Get(fd))
		}
		if head == "" && (fd.Name() == "name" || fd.Name() == "type" || fd.Name() == "network") {
			head = text
			continue
		}
		rest = append(rest, strings.ToLower(title(fd.Name()))+" "+text)
	}
	if head == "" {
		head = "-"
	}
	fmt.Fprintln(d.w, strings.TrimRight(fmt.Sprintf("%s%-10s %s", indent, head, strings.Join(rest, ", ")), " "))
}

func (d *describer) scalar(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		switch x := v.Message().Interface().(type) {
		case *timestamppb.Timestamp:
			t := x.AsTime()
			if ago := d.now.Sub(t); ago < 0 {
				return t.Local().Format("2006-01-02 15:04:05 MST") + " (in " + unit.Span(-ago) + ")"
			}
			return t.Local().Format("2006-01-02 15:04:05 MST") + " (" + unit.Age(d.now, x) + " ago)"
		case *durationpb.Duration:
			return x.AsDuration().String()
		}
	case protoreflect.EnumKind:
		if ed := fd.Enum().Values().ByNumber(v.Enum()); ed != nil {
			return unit.EnumWord(fd.Enum(), v.Enum())
		}
	case protoreflect.BoolKind:
		return yes(v.Bool())
	case protoreflect.Int64Kind:
		if strings.HasSuffix(string(fd.Name()), "_bytes") {
			return unit.Size(v.Int())
		}
	case protoreflect.BytesKind:
		return fmt.Sprintf("%d bytes", len(v.Bytes()))
	case protoreflect.DoubleKind:
		if n := fd.Name(); n == "progress" || n == "cpu_load" {
			return unit.Percent(v.Float())
		}
	}
	return table.Clean(v.String())
}

func isTime(d protoreflect.MessageDescriptor) bool {
	return d.FullName() == "google.protobuf.Duration" || d.FullName() == "google.protobuf.Timestamp"
}

// acronyms are words of field names that are written in capitals.
var acronyms = map[string]string{"vm": "VM", "vms": "VMs", "cpu": "CPU", "cpus": "CPUs", "nics": "NICs", "cdroms": "CD-ROMs", "mtu": "MTU", "mac": "MAC", "os": "OS", "qemu": "QEMU", "ssh": "SSH", "url": "URL", "sha256": "SHA-256", "id": "ID"}

// title is a field's name for people: memory_bytes is "Memory".
func title(n protoreflect.Name) string {
	words := strings.Split(strings.TrimSuffix(string(n), "_bytes"), "_")
	for i, w := range words {
		if up, ok := acronyms[w]; ok {
			words[i] = up
		} else if i == 0 {
			words[i] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	return strings.Join(words, " ")
}

func cleanKeepIndent(l string) string {
	trimmed := strings.TrimLeft(l, " \t")
	return strings.Repeat(" ", len(l)-len(trimmed)) + table.Clean(trimmed)
}
