package host

import (
	"slices"
	"strings"
	"testing"

	"drover/internal/backup"
	"drover/internal/disk"
	"drover/internal/qemu"
)

// A bitmap is believed only if every step since its point is known.
func TestTrackIsBelieved(t *testing.T) {
	top := disk.Layer{ID: "0123456789abcdef", File: "vms/x/fedcba9876543210.qcow2"}
	good := func() *track {
		return &track{Repo: "r", Disk: "d", Layer: top.ID, Node: nodeName(top), Size: 100, Points: []string{"p"}, Bitmaps: []string{"a", "b"}}
	}
	have := []qemu.Bitmap{{Name: "a"}, {Name: "b", Recording: true}}
	for _, c := range []struct {
		name   string
		change func(*track) (*track, string, disk.Layer, int64, []qemu.Bitmap)
		why    string
	}{
		{"as it should be", func(k *track) (*track, string, disk.Layer, int64, []qemu.Bitmap) { return k, "p", top, 100, have }, ""},
		{"grown", func(k *track) (*track, string, disk.Layer, int64, []qemu.Bitmap) { return k, "p", top, 200, have }, ""},
		{"none", func(*track) (*track, string, disk.Layer, int64, []qemu.Bitmap) { return nil, "p", top, 100, have }, "not tracked"},
		{"parent", func(k *track) (*track, string, disk.Layer, int64, []qemu.Bitmap) { return k, "q", top, 100, have }, "did not begin"},
		{"layer", func(k *track) (*track, string, disk.Layer, int64, []qemu.Bitmap) {
			return k, "p", disk.Layer{ID: "1123456789abcdef", File: top.File}, 100, have
		}, "another layer"},
		{"file", func(k *track) (*track, string, disk.Layer, int64, []qemu.Bitmap) {
			return k, "p", disk.Layer{ID: top.ID, File: "vms/x/aedcba9876543210.qcow2"}, 100, have
		}, "another layer"},
		{"shrunk", func(k *track) (*track, string, disk.Layer, int64, []qemu.Bitmap) { return k, "p", top, 50, have }, "smaller"},
		{"one is gone", func(k *track) (*track, string, disk.Layer, int64, []qemu.Bitmap) { return k, "p", top, 100, have[:1] }, "gone"},
		{"lost", func(k *track) (*track, string, disk.Layer, int64, []qemu.Bitmap) {
			return k, "p", top, 100, []qemu.Bitmap{{Name: "a", Lost: true}, have[1]}
		}, "unexpectedly"},
		{"asleep", func(k *track) (*track, string, disk.Layer, int64, []qemu.Bitmap) {
			return k, "p", top, 100, []qemu.Bitmap{{Name: "a"}, {Name: "b"}}
		}, "does not record"},
		{"doubt", func(k *track) (*track, string, disk.Layer, int64, []qemu.Bitmap) {
			k.Doubt = "so"
			return k, "p", top, 100, have
		}, "so"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			k, parent, layer, size, bitmaps := c.change(good())
			since, why := k.since(parent, layer, size, bitmaps)
			if c.why == "" && (why != "" || !slices.Equal(since, []string{"a", "b"})) || c.why != "" && (!strings.Contains(why, c.why) || since != nil) {
				t.Errorf("since %q, why %q, want %q", since, why, c.why)
			}
		})
	}
	// A point of whose end nobody heard: right for both, whichever is the newest in the repository.
	k := good()
	k.Next, k.NextPoint = "c", "q"
	k.fold()
	have = append(have, qemu.Bitmap{Name: "c", Recording: true})
	for _, parent := range []string{"p", "q"} {
		if since, why := k.since(parent, top, 100, have); !slices.Equal(since, []string{"a", "b", "c"}) {
			t.Errorf("parent %s after a fold: %q, %q", parent, since, why)
		}
	}
}

func TestJoined(t *testing.T) {
	got := joined([]backup.Extent{{Offset: 50, Length: 10}, {Offset: 0, Length: 10}, {Offset: 5, Length: 20}, {Offset: 25, Length: 5}, {Offset: 52, Length: 2}})
	want := []backup.Extent{{Offset: 0, Length: 30}, {Offset: 50, Length: 10}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestFullWords(t *testing.T) {
	full := func(name, why string) *pointDisk { return &pointDisk{name: name, why: why} }
	part := &pointDisk{name: "p", since: []string{"b"}}
	for want, disks := range map[string][]*pointDisk{
		"":                     {part},
		"x":                    {full("a", "x"), full("b", "x")},
		"disk a: x; disk b: y": {full("a", "x"), full("b", "y")},
		"disk a: x":            {full("a", "x"), part},
		"disk a: x; disk c: x": {full("a", "x"), part, full("c", "x")},
	} {
		if got := fullWords(disks); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
