package files

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"drover/internal/clock"
	"drover/internal/guest"
	"drover/internal/kernelimage"
)

// Image is the helper's image, laid out as files.
type Image struct {
	Kernel, Initrd, Cmdline string // two paths, and a line
}

// OpenImage lays out the file that `drover image build helper` makes. The files are the caller's to remove with dir.
func OpenImage(ctx context.Context, path, dir string) (Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return Image{}, fmt.Errorf("helper image: %w; make it with `drover image build helper`", err)
	}
	defer f.Close()
	x, err := kernelimage.Extract(ctx, f, dir)
	if err != nil {
		return Image{}, fmt.Errorf("helper image %s: %w", path, err)
	}
	return Image{Kernel: x.Kernel, Initrd: x.Initrd, Cmdline: x.Cmdline}, nil
}

// Options are for Open. Image must be set.
type Options struct {
	Image  Image
	QEMU   string      // empty: qemu-system-x86_64 from PATH
	Accel  guest.Accel // empty: tcg
	TSCKHz int64       // of this machine, if it is known; 0: measured
	// UID and GID of QEMU; 0: as this process, which must not be root then.
	UID, GID uint32
	// Dir is where overlays are kept, as files without a name; empty: os.TempDir.
	Dir string
	// Memory of the helper in MiB; 0 is 256. Overlay bounds what is written to one disk, in bytes; 0 is 256 MiB.
	Memory  int
	Overlay int64
	// Start bounds the helper's start, Stall how long it may be silent in a request; 0 is a minute, and two.
	Start, Stall time.Duration
	Clock        clock.Clock
	Log          *slog.Logger // nil discards
}

func (o Options) withDefaults() (Options, error) {
	if o.Image.Kernel == "" || o.Image.Initrd == "" {
		return o, fmt.Errorf("file restore: no helper image; make it with `drover image build helper`")
	}
	if o.QEMU == "" {
		o.QEMU = "qemu-system-x86_64"
	}
	if o.Accel == "" {
		o.Accel = guest.TCG
	}
	if o.UID == 0 && os.Geteuid() == 0 {
		return o, fmt.Errorf("file restore: QEMU must not run as root; name another user")
	}
	if o.Dir == "" {
		o.Dir = os.TempDir()
	}
	if o.Memory == 0 {
		o.Memory = 256
	}
	if o.Overlay == 0 {
		o.Overlay = 256 << 20
	}
	if o.Start == 0 {
		o.Start = time.Minute
	}
	if o.Stall == 0 {
		o.Stall = 2 * time.Minute
	}
	if o.Clock == nil {
		o.Clock = clock.Real()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Dir = filepath.Clean(o.Dir)
	return o, nil
}
