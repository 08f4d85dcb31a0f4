package osimage

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// Debian is a Debian 12 cloud image: cloud-init, guest agent, sshd, serial console, GRUB for BIOS and UEFI.
type Debian struct {
	Kernel   string   // "cloud" (also ""): virtio and vmxnet3 NICs; "full": every device that Debian drives
	Packages []string // more packages to install
	Size     int64    // of the disk in bytes; 0 is 2 GiB. It is a qcow2, and the root grows with the disk at each boot
}

const (
	debianVersion = 2
	debianSuite   = "bookworm"
	debianSize    = 2 << 30
)

// debianPackages come on top of mmdebstrap's minbase variant.
var debianPackages = []string{"systemd-sysv", "systemd-resolved", "udev", "dbus", "cloud-init", "cloud-guest-utils", "qemu-guest-agent", "openssh-server",
	"initramfs-tools", "zstd", "iproute2", "iputils-ping", "netbase", "sudo", "ca-certificates", "curl", "less", "e2fsprogs", "fdisk", "procps"}

// debianBase are packages that minbase brings; their versions tell, with the others', whether a cached build is current.
var debianBase = []string{"base-files", "libc6", "systemd", "libssl3", "apt", "dpkg", "bash", "coreutils", "util-linux"}

// BuildDebian makes the image. It needs root, for mmdebstrap to set owners and run packages' scripts in a chroot.
func BuildDebian(ctx context.Context, d Debian, opt Options) (*Result, error) {
	kernelMeta := map[string]string{"": "linux-image-cloud-amd64", "cloud": "linux-image-cloud-amd64", "full": "linux-image-amd64"}[d.Kernel]
	if kernelMeta == "" {
		return nil, fmt.Errorf("kernel %q is neither cloud nor full", d.Kernel)
	}
	if d.Size == 0 {
		d.Size = debianSize
	}
	if d.Size < 1<<30 || d.Size > 1<<44 || d.Size%(1<<20) != 0 {
		return nil, fmt.Errorf("disk of %d bytes: want whole MiB from 1 GiB to 16 TiB", d.Size)
	}
	if err := needTools("apt-cache", "apt-get", "mmdebstrap", "unshare", "apt-config", "mke2fs", "mkfs.vfat", "mcopy", "mmd", "sgdisk", "grub-mkimage", "qemu-img"); err != nil {
		return nil, err
	}
	for dir, pkg := range map[string]string{grubPC: "grub-pc-bin", grubEFI: "grub-efi-amd64-bin"} {
		if _, err := os.Stat(filepath.Join(dir, "kernel.img")); err != nil {
			return nil, &MissingError{What: dir, Fix: "run `apt-get install " + pkg + "`"}
		}
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("build a Debian image: root is needed to install packages into it; run with sudo")
	}
	b, err := newBuild(opt, 6)
	if err != nil {
		return nil, err
	}
	b.next("look up packages")
	names := append(append([]string{kernelMeta}, debianPackages...), d.Packages...)
	versions := map[string]string{}
	known, err := b.candidates(ctx, append(append([]string{}, names...), debianBase...)...)
	if err != nil {
		return nil, err
	}
	for _, p := range known {
		versions[p.name] = p.version
	}
	kernel, err := b.kernelPackage(ctx, kernelMeta)
	if err != nil {
		return nil, err
	}
	versions[kernel.name] = kernel.version
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		epoch = "1700000000"
	}
	name := "debian-12"
	if d.Kernel == "full" {
		name = "debian-12-full"
	}
	r := &recipe{Kind: "disk", Name: name, Ext: ".qcow2", Version: debianVersion, Packages: versions,
		Inputs: map[string]string{"size": fmt.Sprint(d.Size), "packages": strings.Join(names, " "), "epoch": epoch, "files": filesHash()}}
	return b.run(ctx, r, func(ctx context.Context, out string) error {
		return b.debian(ctx, d, r, names, epoch, out)
	})
}

func filesHash() string {
	h := sha256.New()
	for _, m := range []map[string]string{debianBefore, debianAfter} {
		for _, n := range sortedKeys(m) {
			fmt.Fprintf(h, "%s\n%s\n", n, m[n])
		}
	}
	fmt.Fprintf(h, "%s\n%s", grubConfig("x"), debianHook)
	return fmt.Sprintf("%x", h.Sum(nil))
}

func sortedKeys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func (b *build) debian(ctx context.Context, d Debian, r *recipe, names []string, epoch, out string) error {
	b.next("install packages")
	before, root := filepath.Join(b.work, "before"), filepath.Join(b.work, "root")
	if err := writeFiles(before, debianBefore); err != nil {
		return err
	}
	sources, err := b.sources(ctx)
	if err != nil {
		return err
	}
	list := filepath.Join(b.work, "sources.list")
	if err := os.WriteFile(list, []byte(sources), 0o644); err != nil {
		return err
	}
	// The mount namespace keeps mmdebstrap's mounts out of sight, so that removing the scratch directory can never reach through one.
	args := []string{"--mount", "--propagation", "private", "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--skip=output/dev",
		"--include=" + strings.Join(names, ","), "--setup-hook=cp -r " + before + "/. \"$1\"", "--customize-hook=chroot \"$1\" sh -ec '" + debianHook + "'"}
	for _, x := range []string{"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*", "path-include=/usr/share/locale/locale.alias",
		"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/info/*"} {
		args = append(args, "--dpkgopt="+x)
	}
	conf, err := b.aptSettings(ctx)
	if err != nil {
		return err
	}
	for _, c := range conf {
		args = append(args, "--aptopt="+c)
	}
	env := []string{"SOURCE_DATE_EPOCH=" + epoch, "TMPDIR=" + b.work}
	if _, err := b.command(ctx, env, b.work, "unshare", append(args, debianSuite, root, list)...); err != nil {
		return err
	}
	b.next("configure")
	id := uuids(r.key())
	if err := finish(root, id); err != nil {
		return err
	}
	return b.disk(ctx, d.Size, root, epoch, id, out)
}

// sources are the machine's own sources for the suite, without other vendors' ones.
func (b *build) sources(ctx context.Context) (string, error) {
	out, err := b.command(ctx, nil, "", "apt-get", "indextargets", "--format", "$(CREATED_BY)|$(ORIGIN)|$(CODENAME)|$(SIGNED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)")
	if err != nil {
		return "", err
	}
	lines := map[string]bool{}
	for _, l := range strings.Split(out, "\n") {
		f := strings.Split(l, "|")
		if len(f) != 7 || f[0] != "Packages" || f[1] != "Debian" || f[2] != debianSuite && !strings.HasPrefix(f[2], debianSuite+"-") {
			continue
		}
		opt := ""
		if strings.HasPrefix(f[3], "/") {
			opt = "[signed-by=" + f[3] + "] "
		}
		lines["deb "+opt+f[4]+" "+f[5]+" "+f[6]] = true
	}
	if len(lines) == 0 {
		return "", &MissingError{What: "apt source for Debian " + debianSuite, Fix: "add it to /etc/apt/sources.list.d and run `apt-get update`"}
	}
	return strings.Join(sortedKeys(lines), "\n") + "\n", nil
}

// aptSettings are the machine's settings on how to reach its sources.
func (b *build) aptSettings(ctx context.Context) ([]string, error) {
	out, err := b.command(ctx, nil, "", "apt-config", "dump")
	if err != nil {
		return nil, err
	}
	conf := []string{`Acquire::Languages "none"`, `APT::Install-Recommends "false"`}
	for _, l := range strings.Split(out, "\n") {
		for _, p := range []string{"Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Check-", "Acquire::Max-ValidTime", "Acquire::ForceIPv"} {
			if strings.HasPrefix(l, p) && !strings.HasSuffix(l, ` "";`) {
				conf = append(conf, strings.TrimSuffix(l, ";"))
			}
		}
	}
	return conf, nil
}

// finish sets what must hold in the finished image, and takes out what belongs to this machine.
func finish(root string, id diskIDs) error {
	if err := writeFiles(root, debianAfter); err != nil {
		return err
	}
	if err := writeFiles(root, map[string]string{
		"boot/grub/grub.cfg": grubConfig(id.rootFS),
		"etc/fstab":          "UUID=" + id.rootFS + " / ext4 errors=remount-ro 0 1\n",
		"etc/machine-id":     "",
	}); err != nil {
		return err
	}
	for _, g := range []string{"etc/ssh/ssh_host_*", "etc/apt/apt.conf.d/99mmdebstrap", "etc/apt/sources.list.d/*", "etc/apt/auth.conf*", "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
		"etc/hostname", "etc/resolv.conf", "var/lib/dbus/machine-id", "var/lib/apt/lists/*", "var/cache/apt/*.bin", "var/cache/apt/archives/*.deb", "var/cache/debconf/*-old",
		"var/lib/dpkg/*-old", "var/log/*.log", "var/log/apt/*", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "run/*", "tmp/*", "root/.*_history"} {
		found, _ := filepath.Glob(filepath.Join(root, g))
		for _, f := range found {
			if err := os.RemoveAll(f); err != nil {
				return err
			}
		}
	}
	return os.Symlink("../run/systemd/resolve/stub-resolv.conf", filepath.Join(root, "etc/resolv.conf"))
}

func writeFiles(root string, files map[string]string) error {
	for _, n := range sortedKeys(files) {
		p := filepath.Join(root, n)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(files[n]), 0o644); err != nil {
			return err
		}
	}
	return nil
}
