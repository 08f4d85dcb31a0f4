package osimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// tools maps what we run to the Debian package that has it.
var tools = map[string]string{
	"apt-cache": "apt", "apt-get": "apt", "dpkg-deb": "dpkg", "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "mkfs.vfat": "dosfstools",
	"mcopy": "mtools", "mmd": "mtools", "sgdisk": "gdisk", "qemu-img": "qemu-utils", "grub-mkimage": "grub-common", "xz": "xz-utils", "unshare": "util-linux", "apt-config": "apt",
}

// needTools tells the first tool that is not installed.
func needTools(names ...string) error {
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			return &MissingError{What: n, Fix: "run `apt-get install " + tools[n] + "`"}
		}
	}
	return nil
}

// command runs a tool and gives its standard output. A cancel ends the tool's whole process group.
func (b *build) command(ctx context.Context, env []string, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	b.opt.Log.Debug("image build runs", "tool", name, "args", args)
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(name), err, tail(errs.String(), 12))
	}
	return out.String(), nil
}

// tail is the last lines of a tool's complaint.
func tail(s string, n int) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	if len(l) > n {
		l = l[len(l)-n:]
	}
	return strings.Join(l, "\n")
}

// aptPackage is what apt knows of the version it would install.
type aptPackage struct {
	name, version string
	depends       string
}

var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// candidate asks apt for a package.
func (b *build) candidate(ctx context.Context, name string) (*aptPackage, error) {
	all, err := b.candidates(ctx, name)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// candidates asks apt for packages, all at once: each start of apt reads the whole index.
func (b *build) candidates(ctx context.Context, names ...string) ([]*aptPackage, error) {
	for _, n := range names {
		if !packageName.MatchString(n) {
			return nil, fmt.Errorf("%q is not a package's name", n)
		}
	}
	// It fails when one is unknown; which one shows in what it prints.
	out, err := b.command(ctx, nil, "", "apt-cache", append([]string{"show", "--no-all-versions"}, names...)...)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	got := map[string]*aptPackage{}
	if err == nil {
		for _, s := range strings.Split(out, "\n\n") {
			if p := parseStanza(strings.TrimLeft(s, "\n")); p.version != "" {
				got[p.name] = p
			}
		}
	}
	var all []*aptPackage
	for _, n := range names {
		if got[n] == nil && err != nil && len(names) > 1 {
			// One at a time, to name the one that is missing.
			p, err := b.candidates(ctx, n)
			if err != nil {
				return nil, err
			}
			got[n] = p[0]
		}
		if got[n] == nil {
			return nil, &MissingError{What: "package " + n, Fix: "run `apt-get update`; if it stays unknown, add Debian's sources to apt"}
		}
		all = append(all, got[n])
	}
	return all, nil
}

// parseStanza reads the fields that are needed from one entry of apt's index.
func parseStanza(s string) *aptPackage {
	p := &aptPackage{}
	for _, l := range strings.Split(s, "\n") {
		k, v, _ := strings.Cut(l, ": ")
		switch k {
		case "Package":
			p.name = v
		case "Version":
			p.version = v
		case "Depends":
			p.depends = v
		}
	}
	return p
}

// fetch gives the path of a package's .deb, from the cache or by apt.
func (b *build) fetch(ctx context.Context, p *aptPackage) (string, error) {
	path := filepath.Join(b.dir, "packages", p.name+"_"+strings.ReplaceAll(p.version, ":", "%3a")+".deb")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	tmp, err := os.MkdirTemp(b.work, "deb-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if _, err := b.command(ctx, nil, tmp, "apt-get", "download", "-q", p.name+"="+p.version); err != nil {
		return "", fmt.Errorf("download %s: %w (stale package lists? run `apt-get update`)", p.name, err)
	}
	got, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(got) != 1 {
		return "", fmt.Errorf("download %s: apt-get left %d files", p.name, len(got))
	}
	return path, os.Rename(got[0], path)
}

// kernelPackage finds the package that a kernel's metapackage stands for.
func (b *build) kernelPackage(ctx context.Context, meta string) (*aptPackage, error) {
	m, err := b.candidate(ctx, meta)
	if err != nil {
		return nil, err
	}
	name := regexp.MustCompile(`linux-image-[0-9][a-z0-9.+-]*`).FindString(m.depends)
	if name == "" {
		return nil, errors.New("package " + meta + " depends on no kernel")
	}
	return b.candidate(ctx, name)
}
