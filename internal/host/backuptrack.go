package host

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"strings"

	"drover/internal/disk"
	"drover/internal/qemu"
)

// track says what a host knows of the changes to one disk, for one repository (or for programs of others). It is believed only as
// long as every step from its point to now is known: the same layer in the same file, and every bitmap there and in order.
type track struct {
	// Repo is the repository's id, or protectRepo.
	Repo string `json:"repo"`
	Disk string `json:"disk"`
	// Layer and Node are the active layer and its file, Size the disk's at the last point.
	Layer string `json:"layer"`
	Node  string `json:"node"`
	Size  int64  `json:"size"`
	// Points that the bitmaps together cover the changes since; any of them can be the parent of the next.
	Points  []string `json:"points"`
	Bitmaps []string `json:"bitmaps"`
	// Next is the bitmap that begins with NextPoint, which is being made.
	Next      string `json:"next,omitempty"`
	NextPoint string `json:"next_point,omitempty"`
	// Doubt says why the next point reads everything.
	Doubt string `json:"doubt,omitempty"`
}

// bitmapsMost is how many bitmaps one disk's track may have; then it begins anew.
const bitmapsMost = 8

// pointsMost is how many points a track remembers.
const pointsMost = 4

func newBitmap() string {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return qemu.BitmapPrefix + hex.EncodeToString(b[:])
}

// track finds what is known of a disk.
func (l *local) track(repo, disk string) *track {
	for _, t := range l.Tracks {
		if t.Repo == repo && t.Disk == disk {
			return t
		}
	}
	return nil
}

func (l *local) setTrack(t *track) {
	l.dropTrack(t.Repo, t.Disk)
	l.Tracks = append(l.Tracks, t)
}

func (l *local) dropTrack(repo, disk string) {
	l.Tracks = slices.DeleteFunc(l.Tracks, func(t *track) bool { return t.Repo == repo && t.Disk == disk })
}

// untrack forgets all tracking of a disk: somebody wrote to it unseen.
func (l *local) untrack(disk string) {
	l.Tracks = slices.DeleteFunc(l.Tracks, func(t *track) bool { return t.Disk == disk })
}

// doubt has the next point of a disk read everything.
func (l *local) doubt(disk, why string) {
	for _, t := range l.Tracks {
		if t.Disk == disk {
			t.Doubt = why
		}
	}
}

// fold takes in a point that was begun and of whose end nobody has told: what both bitmaps track together is a little too much for
// either point and right for both.
func (t *track) fold() {
	if t.Next == "" {
		return
	}
	t.Bitmaps, t.Points = append(t.Bitmaps, t.Next), append(t.Points, t.NextPoint)
	t.Next, t.NextPoint = "", ""
	t.Points = t.Points[max(0, len(t.Points)-pointsMost):]
}

// since tells which bitmaps have the changes of a disk since parent, or why there are none.
func (t *track) since(parent string, top disk.Layer, size int64, have []qemu.Bitmap) (bitmaps []string, why string) {
	switch {
	case t == nil || len(t.Bitmaps) == 0:
		return nil, "its changes were not tracked before"
	case t.Doubt != "":
		return nil, t.Doubt
	case !slices.Contains(t.Points, parent):
		return nil, "its tracking did not begin with point " + parent
	case t.Layer != top.ID || t.Node != nodeName(top):
		return nil, "it has another layer than when tracking began: a snapshot, revert, merge or restore came between"
	case size < t.Size:
		return nil, "it has become smaller"
	case len(t.Bitmaps) > bitmapsMost:
		return nil, "too many points in a row have failed"
	}
	recording := false
	for _, name := range t.Bitmaps {
		i := slices.IndexFunc(have, func(b qemu.Bitmap) bool { return b.Name == name })
		switch {
		case i < 0:
			return nil, "the bitmap of its changes is gone"
		case have[i].Lost:
			return nil, "QEMU ended unexpectedly while it tracked changes"
		}
		recording = recording || have[i].Recording
	}
	if !recording {
		return nil, "the bitmap of its changes does not record"
	}
	return t.Bitmaps, ""
}

// tidyBitmaps removes bitmaps of active layers that no track knows. No point is open.
func (m *machine) tidyBitmaps(ctx context.Context, p *qemu.Process) error {
	all, err := p.Bitmaps(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, t := range m.local.Tracks {
		for _, b := range append(slices.Clone(t.Bitmaps), t.Next) {
			known[b] = true
		}
	}
	for id, list := range all {
		for _, b := range list {
			if known[b.Name] && !b.Lost {
				continue
			}
			if err := p.RemoveBitmap(ctx, id, b.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// carryTracks notes that new layers took the bitmaps over from those that a snapshot froze.
func (m *machine) carryTracks() error {
	for _, t := range m.local.Tracks {
		made, ok := m.local.Made[t.Disk]
		if !ok {
			continue
		}
		st, err := m.a.stores.at(made.Path)
		if err != nil {
			return err
		}
		chain, err := st.Chain(m.uid, t.Disk)
		if err != nil {
			return err
		}
		// Only if the layer below is the one that was tracked: else it was lost before.
		if len(chain) > 1 && chain[1].ID == t.Layer && nodeName(chain[1]) == t.Node {
			t.Layer, t.Node = chain[0].ID, nodeName(chain[0])
		}
	}
	return nil
}

// pointDisk is a disk of a point that is being made.
type pointDisk struct {
	vm     string // uid
	name   string // of the spec
	id     string // of QEMU; empty: the VM is off
	store  *disk.Store
	top    disk.Layer
	size   int64
	next   string   // bitmap that begins
	since  []string // bitmaps that end; none: read all
	grown  int64    // the disk's size when the bitmaps began
	why    string   // why all is read
	parent bool     // the parent has a disk of this name
}

func (d *pointDisk) full() bool { return len(d.since) == 0 }

// fullWords says why disks were read in full.
func fullWords(disks []*pointDisk) string {
	var all, each []string
	for _, d := range disks {
		if d.full() {
			all = append(all, d.why)
			each = append(each, "disk "+d.name+": "+d.why)
		}
	}
	if len(all) == len(disks) && len(slices.Compact(all)) == 1 {
		return all[0]
	}
	return strings.Join(each, "; ")
}
