package osimage

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"drover/internal/kernelimage"
)

// Tiny is the test guest.
type Tiny struct {
	Kernel string // "cloud" (also ""): boots fastest, has virtio and vmxnet3 NICs; "full": every NIC that Drover offers, and AHCI
}

//go:embed tinyinit/*.go
var tinySource embed.FS

const tinyVersion = 1

// tinyModules are the drivers that a test guest may need. What a kernel has built in or lacks is left out.
var tinyModules = []string{
	"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "virtio_net", "virtio_console", "virtio_balloon", "virtio_rng", "virtio_mem",
	"vmxnet3", "e1000", "e1000e", "pcnet32", "8139cp", "8139too",
	"sd_mod", "sr_mod", "ahci", "ata_piix", "nvme", "isofs", "vfat", "nls_cp437", "nls_ascii", "nls_utf8", "nls_iso8859_1", "ext4", "crc32c_generic",
	"button", "evdev",
}

// tinyCmdline: no messages on the console (panics still show), no self-tests or mitigations that only cost time in a
// guest that lives for seconds, hot-added memory in use at once, an end instead of a hang after a panic.
const tinyCmdline = "console=ttyS0 quiet loglevel=1 panic=-1 nokaslr mitigations=off cryptomgr.notests random.trust_cpu=on " +
	"memhp_default_state=online no_timer_check scsi_mod.scan=sync"

// BuildTiny makes the test guest's kernel image. It needs no root.
func BuildTiny(ctx context.Context, t Tiny, opt Options) (*Result, error) {
	meta := map[string]string{"": "linux-image-cloud-amd64", "cloud": "linux-image-cloud-amd64", "full": "linux-image-amd64"}[t.Kernel]
	if meta == "" {
		return nil, fmt.Errorf("kernel %q is neither cloud nor full", t.Kernel)
	}
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
	kernel, err := b.kernelPackage(ctx, meta)
	if err != nil {
		return nil, err
	}
	busybox, err := b.candidate(ctx, "busybox-static")
	if err != nil {
		return nil, err
	}
	goVersion, err := b.command(ctx, goEnv(b), "", goTool, "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	name := "tiny"
	if t.Kernel == "full" {
		name = "tiny-full"
	}
	r := &recipe{Kind: "kernel", Name: name, Ext: ".tar", Version: tinyVersion,
		Inputs: map[string]string{"source": sourceHash(), "go": strings.TrimSpace(goVersion), "cmdline": tinyCmdline,
			"modules": strings.Join(tinyModules, ",")},
		Packages: map[string]string{kernel.name: kernel.version, busybox.name: busybox.version}}
	return b.run(ctx, r, func(ctx context.Context, out string) error {
		return b.tiny(ctx, r, goTool, kernel, busybox, out)
	})
}

func (b *build) tiny(ctx context.Context, r *recipe, goTool string, kernel, busybox *aptPackage, out string) error {
	b.next("download packages")
	tree := filepath.Join(b.work, "tree")
	for _, p := range []*aptPackage{kernel, busybox} {
		deb, err := b.fetch(ctx, p)
		if err != nil {
			return err
		}
		if _, err := b.command(ctx, nil, "", "dpkg-deb", "-x", deb, tree); err != nil {
			return err
		}
	}
	release := strings.TrimPrefix(strings.TrimSuffix(kernel.name, "-unsigned"), "linux-image-")
	bz, err := os.ReadFile(filepath.Join(tree, "boot", "vmlinuz-"+release))
	if err != nil {
		return err
	}
	b.next("unpack the kernel")
	vmlinux, err := b.unpackKernel(ctx, bz)
	if err != nil {
		return err
	}
	b.next("compile the init")
	init, err := b.compileInit(ctx, goTool)
	if err != nil {
		return err
	}
	b.next("pack the initramfs")
	mods, err := collectModules(filepath.Join(tree, "lib", "modules", release), tinyModules)
	if err != nil {
		return err
	}
	box := filepath.Join(tree, "bin", "busybox")
	applets, err := b.command(ctx, nil, "", box, "--list")
	if err != nil {
		return fmt.Errorf("busybox tells no applets: %w", err)
	}
	boxData, err := os.ReadFile(box)
	if err != nil {
		return err
	}
	initrd, err := packInitramfs(init, boxData, strings.Fields(applets), mods)
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
	err = kernelimage.Write(f, kernelimage.Content{Cmdline: tinyCmdline, Kernel: vmlinux, Initrd: initrd,
		Manifest: kernelimage.Manifest{Name: r.Name, Arch: "x86_64", KernelRelease: release, KernelFormat: "elf", Drivers: drivers, Packages: r.Packages}})
	return errors.Join(err, f.Close())
}

// packInitramfs writes the archive, uncompressed: unpacking costs a guest without KVM more than reading.
func packInitramfs(init, busybox []byte, applets []string, mods []*kmod) ([]byte, error) {
	var recs []cpio.Record
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "root", "mnt", "bin", "etc", "modules"} {
		recs = append(recs, cpio.Directory(d, 0o755))
	}
	recs = append(recs, cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.StaticFile("init", string(init), 0o755), cpio.StaticFile("bin/busybox", string(busybox), 0o755),
		cpio.StaticFile("etc/passwd", "root::0:0:root:/root:/bin/sh\n", 0o644), cpio.StaticFile("etc/group", "root:x:0:\n", 0o644))
	sort.Strings(applets)
	for _, a := range applets {
		if a != "busybox" && a != "" && !strings.ContainsAny(a, "/.") {
			recs = append(recs, cpio.Symlink("bin/"+a, "busybox"))
		}
	}
	return packCPIO(append(recs, moduleRecords(mods)...))
}

// moduleRecords are the modules and their list: lines of name, file, needed modules and aliases.
func moduleRecords(mods []*kmod) []cpio.Record {
	var recs []cpio.Record
	var list strings.Builder
	for _, m := range mods {
		deps := strings.Join(m.deps, ",")
		if deps == "" {
			deps = "-"
		}
		file := "modules/" + m.name + ".ko"
		fmt.Fprintln(&list, strings.Join(append([]string{m.name, "/" + file, deps}, m.aliases...), " "))
		recs = append(recs, cpio.StaticFile(file, string(m.data), 0o644))
	}
	return append(recs, cpio.StaticFile("modules/list", list.String(), 0o644))
}

// packCPIO writes the same archive for the same records.
func packCPIO(recs []cpio.Record) ([]byte, error) {
	var buf bytes.Buffer
	w := cpio.Newc.Writer(&buf)
	for i, rec := range recs {
		rec = cpio.MakeReproducible(rec)
		rec.Ino = uint64(i + 1)
		if err := w.WriteRecord(rec); err != nil {
			return nil, fmt.Errorf("initramfs: %s: %w", rec.Name, err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func findGo() (string, error) {
	p, err := exec.LookPath("go")
	if err == nil {
		return p, nil
	}
	if p = "/usr/local/go/bin/go"; exec.Command(p, "version").Run() == nil {
		return p, nil
	}
	return "", &MissingError{What: "go", Fix: "the guest's init is compiled here; install Go 1.22 or newer and put it on PATH"}
}

// goEnv is for a build without modules, network, cgo or this process's flags.
func goEnv(b *build) []string {
	return []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOFLAGS=", "GOWORK=off", "GOPROXY=off", "GOTOOLCHAIN=local", "GOEXPERIMENT="}
}

// initFiles are the init's sources by name, without tests.
func initFiles() map[string][]byte {
	out := map[string][]byte{}
	files, _ := fs.Glob(tinySource, "tinyinit/*.go")
	for _, f := range files {
		if b, err := tinySource.ReadFile(f); err == nil && !strings.HasSuffix(f, "_test.go") {
			out[filepath.Base(f)] = b
		}
	}
	return out
}

func sourceHash() string { return hashOf(initFiles()) }

func (b *build) compileInit(ctx context.Context, goTool string) ([]byte, error) {
	return b.compile(ctx, goTool, "tinyinit", "tinyinit", initFiles())
}

// compile builds a program from sources that use the standard library and themselves alone.
func (b *build) compile(ctx context.Context, goTool, name, module string, files map[string][]byte) ([]byte, error) {
	dir := filepath.Join(b.work, name)
	files["go.mod"] = []byte("module " + module + "\n\ngo 1.22\n")
	for n, data := range files {
		path := filepath.Join(dir, n)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return nil, err
		}
	}
	env := goEnv(b)
	if os.Getenv("HOME") == "" && os.Getenv("GOCACHE") == "" {
		env = append(env, "GOCACHE="+filepath.Join(b.dir, "go"))
	}
	if _, err := b.command(ctx, env, dir, goTool, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", "init", "."); err != nil {
		return nil, fmt.Errorf("compile the guest's init: %w", err)
	}
	return os.ReadFile(filepath.Join(dir, "init"))
}
