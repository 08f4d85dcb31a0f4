package guest

import (
	"bytes"
	"encoding/json"
)

// Prop is one property of a QEMU device. Value is a string, a bool or an int, in the type that QEMU's own JSON expects.
type Prop struct {
	Key   string
	Value any
}

// Props keeps properties in the order they were written, so that what is made from them is the same every time.
type Props []Prop

// With returns a copy with one more property; the receiver, which may belong to a frozen row, stays as it is.
func (p Props) With(key string, value any) Props {
	out := make(Props, len(p), len(p)+1)
	copy(out, p)
	return append(out, Prop{key, value})
}

// MarshalJSON writes an object with the keys in order.
func (p Props) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, kv := range p {
		if i > 0 {
			b.WriteByte(',')
		}
		k, err := json.Marshal(kv.Key)
		if err != nil {
			return nil, err
		}
		v, err := json.Marshal(kv.Value)
		if err != nil {
			return nil, err
		}
		b.Write(k)
		b.WriteByte(':')
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// Device is a QEMU device model at a fixed place. An empty Driver means that the machine has no such device.
type Device struct {
	ID     string `json:"id,omitempty"`
	Driver string `json:"driver,omitempty"`
	Bus    string `json:"bus,omitempty"`
	Addr   string `json:"addr,omitempty"` // PCI "slot.function" in hex; empty on other buses
	Props  Props  `json:"props,omitempty"`
}

// Present reports whether the machine has the device.
func (d Device) Present() bool { return d.Driver != "" }

// Args returns the device as QEMU's -device and device_add take it: driver and id first, then the place, then the rest.
func (d Device) Args() Props {
	out := Props{{"driver", d.Driver}}
	if d.ID != "" {
		out = append(out, Prop{"id", d.ID})
	}
	if d.Bus != "" {
		out = append(out, Prop{"bus", d.Bus})
	}
	if d.Addr != "" {
		out = append(out, Prop{"addr", d.Addr})
	}
	return append(out, d.Props...)
}
