package osimage

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"drover/internal/kernelimage"
)

// Helper is the VM that reads file systems of restore points (docs/formats/helper.md).
type Helper struct{}

//go:embed helperinit/*.go helperinit/wire/*.go
var helperSource embed.FS

const helperVersion = 1

// helperModules are the drivers of what a helper has and reads. What the kernel has built in is left out.
var helperModules = []string{
	"virtio_mmio", "virtio_pci", "virtio_blk", "virtio_console", "crc32c_intel", "crc32c_generic", "ext4", "xfs", "btrfs", "vfat", "exfat", "isofs", "udf", "squashfs",
	"nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8", "fuse", "dm_mod", "md_mod", "linear", "raid0", "raid1", "raid10", "raid456",
}

// helperCmdline: as the tiny guest's, but that an oops is an end too, for the helper is replaced then.
const helperCmdline = "console=ttyS0 quiet loglevel=1 panic=-1 oops=panic nokaslr mitigations=off cryptomgr.notests random.trust_cpu=on no_timer_check"

// helperPrograms are the files that Debian's driver for NTFS needs: its kernel has none.
var helperPrograms = []struct{ pkg, from, to string }{
	{"ntfs-3g", "bin/ntfs-3g", "bin/ntfs-3g"},
	{"libntfs-3g89", "lib/x86_64-linux-gnu/libntfs-3g.so.89", "lib/x86_64-linux-gnu/libntfs-3g.so.89"},
	{"libc6", "lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libc.so.6"},
	{"libc6", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2"},
}

// BuildHelper makes the helper's kernel image. It needs no root.
func BuildHelper(ctx context.Context, _ Helper, opt Options) (*Result, error) {
	if err := needTools("apt-cache", "apt-get", "dpkg-deb"); err != nil {
		return nil, err
	}
	goTool, err := findGo()
	if err != nil {
		return nil, err
	}
	b, err := newBuild(opt, 6)
	if err != nil {
		return nil, err
	}
	b.next("look up packages")
	kernel, err := b.kernelPackage(ctx, "linux-image-cloud-amd64")
	if err != nil {
		return nil, err
	}
	pkgs, err := b.candidates(ctx, "ntfs-3g", "libntfs-3g89", "libc6")
	if err != nil {
		return nil, err
	}
	pkgs = append(pkgs, kernel)
	goVersion, err := b.command(ctx, goEnv(b), "", goTool, "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	r := &recipe{Kind: "kernel", Name: "helper", Ext: ".tar", Version: helperVersion, Packages: map[string]string{},
		Inputs: map[string]string{"source": hashOf(helperFiles()), "go": strings.TrimSpace(goVersion), "cmdline": helperCmdline, "modules": strings.Join(helperModules, ",")}}
	for _, p := range pkgs {
		r.Packages[p.name] = p.version
	}
	return b.run(ctx, r, func(ctx context.Context, out string) error { return b.helper(ctx, r, goTool, kernel, pkgs, out) })
}

func (b *build) helper(ctx context.Context, r *recipe, goTool string, kernel *aptPackage, pkgs []*aptPackage, out string) error {
	b.next("download packages")
	tree := filepath.Join(b.work, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	for _, p := range pkgs {
		deb, err := b.fetch(ctx, p)
		if err != nil {
			return err
		}
		if _, err := b.command(ctx, nil, "", "dpkg-deb", "-x", deb, filepath.Join(tree, p.name)); err != nil {
			return err
		}
	}
	release := strings.TrimPrefix(strings.TrimSuffix(kernel.name, "-unsigned"), "linux-image-")
	bz, err := os.ReadFile(filepath.Join(tree, kernel.name, "boot", "vmlinuz-"+release))
	if err != nil {
		return err
	}
	b.next("unpack the kernel")
	vmlinux, err := b.unpackKernel(ctx, bz)
	if err != nil {
		return err
	}
	b.next("compile the init")
	init, err := b.compile(ctx, goTool, "helperinit", "drover/internal/osimage/helperinit", helperFiles())
	if err != nil {
		return err
	}
	b.next("pack the initramfs")
	mods, err := collectModules(filepath.Join(tree, kernel.name, "lib", "modules", release), helperModules)
	if err != nil {
		return err
	}
	initrd, err := packHelper(tree, init, mods)
	if err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	var drivers []string
	for _, m := range mods {
		drivers = append(drivers, m.name)
	}
	err = kernelimage.Write(f, kernelimage.Content{Cmdline: helperCmdline, Kernel: vmlinux, Initrd: initrd,
		Manifest: kernelimage.Manifest{Name: r.Name, Arch: "x86_64", KernelRelease: release, KernelFormat: "elf", Drivers: drivers, Packages: r.Packages}})
	return errors.Join(err, f.Close())
}

func packHelper(tree string, init []byte, mods []*kmod) ([]byte, error) {
	var recs []cpio.Record
	for _, d := range []string{"dev", "proc", "sys", "run", "v", "bin", "etc", "lib", "lib/x86_64-linux-gnu", "lib64", "modules"} {
		recs = append(recs, cpio.Directory(d, 0o755))
	}
	recs = append(recs, cpio.CharDev("dev/console", 0o600, 5, 1), cpio.StaticFile("init", string(init), 0o755), cpio.Symlink("etc/mtab", "/proc/mounts"))
	for _, p := range helperPrograms {
		// A package may have the file below /usr, or a link in its place.
		data, err := os.ReadFile(filepath.Join(tree, p.pkg, p.from))
		if errors.Is(err, fs.ErrNotExist) {
			data, err = os.ReadFile(filepath.Join(tree, p.pkg, "usr", p.from))
		}
		if err != nil {
			return nil, fmt.Errorf("package %s: %w", p.pkg, err)
		}
		recs = append(recs, cpio.StaticFile(p.to, string(data), 0o755))
	}
	return packCPIO(append(recs, moduleRecords(mods)...))
}

// helperFiles are the init's sources by path, without tests.
func helperFiles() map[string][]byte {
	out := map[string][]byte{}
	for _, pattern := range []string{"helperinit/*.go", "helperinit/wire/*.go"} {
		files, _ := fs.Glob(helperSource, pattern)
		for _, f := range files {
			if b, err := helperSource.ReadFile(f); err == nil && !strings.HasSuffix(f, "_test.go") {
				out[strings.TrimPrefix(f, "helperinit/")] = b
			}
		}
	}
	return out
}

func hashOf(files map[string][]byte) string {
	var names []string
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	h := sha256.New()
	for _, n := range names {
		fmt.Fprintf(h, "%s %d\n", n, len(files[n]))
		h.Write(files[n])
	}
	return hex.EncodeToString(h.Sum(nil))
}
