package wire

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	v := Volume{ID: "d0p1", FS: "ext4", Label: "root", UUID: "u", Size: 1 << 40, Disk: 3, Part: 1, Place: "p", Note: "n"}
	if got, err := ParseVolume(v.Append(nil)); err != nil || got != v {
		t.Errorf("volume %+v, %v", got, err)
	}
	e := Entry{Name: "\xff\n", Kind: Symlink, Mode: 0o120777, UID: 1, GID: 2, Size: 3, Seconds: -4, Nanos: 5, Links: 6, Target: "../x"}
	if got, err := ParseEntry(e.Append(nil)); err != nil || got != e {
		t.Errorf("entry %+v, %v", got, err)
	}
	l := List{Volume: "v", Path: "/p", After: "a", Limit: 7}
	if got, err := ParseList(l.Append(nil)); err != nil || got != l {
		t.Errorf("list %+v, %v", got, err)
	}
	ta := Tar{Items: []TarItem{{"v", "/a", "a"}, {"w", "/b", "b"}}}
	if got, err := ParseTar(ta.Append(nil)); err != nil || !reflect.DeepEqual(got, ta) {
		t.Errorf("tar %+v, %v", got, err)
	}
	s := Stat{Volume: "v", Path: "/", Follow: true}
	if got, err := ParseStat(s.Append(nil)); err != nil || got != s {
		t.Errorf("stat %+v, %v", got, err)
	}
	r := Read{Volume: "v", Path: "/f"}
	if got, err := ParseRead(r.Append(nil)); err != nil || got != r {
		t.Errorf("read %+v, %v", got, err)
	}
	end := End{Code: Damaged, Message: "m"}
	if got, err := ParseEnd(end.Append(nil)); err != nil || got != end {
		t.Errorf("end %+v, %v", got, err)
	}
	if n, err := ParseHole(Hole(9)); err != nil || n != 9 {
		t.Errorf("hole %d, %v", n, err)
	}
	if n, err := ParseHello(Hello()); err != nil || n != Version {
		t.Errorf("hello %d, %v", n, err)
	}
	if n, s, err := ParseHelloBack(HelloBack("6.1")); err != nil || n != Version || s != "6.1" {
		t.Errorf("hello back %d %q, %v", n, s, err)
	}
}

func TestFrameLimits(t *testing.T) {
	f := Frame{Type: TypeData, Request: 7, Payload: []byte("abc")}
	b := AppendFrame(nil, f)
	if got, err := ReadFrame(bytes.NewReader(b), nil); err != nil || !reflect.DeepEqual(got, f) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := ReadFrame(bytes.NewReader(b[:len(b)-1]), nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut: %v", err)
	}
	for _, n := range []int{-1, MaxPayload + 1} {
		if _, err := ReadFrame(bytes.NewReader(AppendHead(nil, TypeData, 1, n)), nil); !errors.Is(err, ErrFormat) {
			t.Errorf("length %d: %v", n, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(AppendFrame(nil, Frame{Type: TypeEntry, Request: 1, Payload: Entry{Name: "x"}.Append(nil)}))
	f.Add(AppendFrame(nil, Frame{Type: TypeTar, Payload: Tar{Items: []TarItem{{"v", "/a", "a"}}}.Append(nil)}))
	f.Add(AppendFrame(nil, Frame{Type: TypeVolume, Payload: Volume{ID: "d0"}.Append(nil)}))
	f.Add(AppendFrame(nil, Frame{Type: TypeHello, Payload: Hello()}))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := ReadFrame(bytes.NewReader(b), nil)
		if err != nil {
			return
		}
		p := fr.Payload
		if e, err := ParseEntry(p); err == nil && !bytes.Equal(e.Append(nil), p) {
			t.Error("entry is not what was parsed")
		}
		if v, err := ParseVolume(p); err == nil && !bytes.Equal(v.Append(nil), p) {
			t.Error("volume is not what was parsed")
		}
		if x, err := ParseTar(p); err == nil && !bytes.Equal(x.Append(nil), p) {
			t.Error("tar is not what was parsed")
		}
		if l, err := ParseList(p); err == nil && !bytes.Equal(l.Append(nil), p) {
			t.Error("list is not what was parsed")
		}
		ParseStat(p)
		ParseRead(p)
		ParseEnd(p)
		ParseHole(p)
		ParseHello(p)
		ParseHelloBack(p)
	})
}
