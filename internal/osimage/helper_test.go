package osimage

import (
	"os"
	"testing"

	"drover/internal/kernelimage"
)

// The image has what a helper needs; that it works is tested by backup/files.
func TestHelperImage(t *testing.T) {
	r, err := BuildHelper(t.Context(), Helper{}, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(r.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, _, err := kernelimage.ReadManifest(f)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, d := range m.Drivers {
		have[d] = true
	}
	for _, d := range []string{"virtio_blk", "virtio_console", "virtio_mmio", "xfs", "btrfs", "vfat", "exfat", "isofs", "fuse", "dm_mod", "raid1"} {
		if !have[d] {
			t.Errorf("the image lacks module %s; it has %v", d, m.Drivers)
		}
	}
	t.Logf("%s: %d bytes, cached %v, %v", r.Path, r.Size, r.Cached, r.Took)
}
