package qemu

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

// testKernel is Debian's generic kernel, unpacked from its package: it has the drivers of every NIC adapter, which the
// cloud kernel has not.
type testKernel struct {
	image   string
	modules map[string]string // name with underscores to file
}

var kernelOnce = sync.OnceValues(fetchKernel)

func kernel(t *testing.T) testKernel {
	t.Helper()
	k, err := kernelOnce()
	if err != nil {
		t.Fatalf("the test kernel: %v", err)
	}
	return k
}

// fetchKernel keeps the kernel in the user's cache directory, for later runs.
func fetchKernel() (testKernel, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return testKernel{}, err
	}
	dir := filepath.Join(cache, "drover-test", "linux-amd64")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return testKernel{}, err
	}
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		return testKernel{}, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return testKernel{}, err
	}
	root := filepath.Join(dir, "root")
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		script := `set -e
p=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9]\)/\1/p' | head -1)
rm -rf new *.deb; apt-get download -q "$p"; mkdir new; dpkg-deb -x linux-image-*.deb new; rm *.deb; mv new root`
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return testKernel{}, fmt.Errorf("apt-get download linux-image-amd64: %w\n%s", err, out)
		}
	}
	k := testKernel{modules: map[string]string{}}
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return k, fmt.Errorf("kernels in %s: %v, %v", root, images, err)
	}
	k.image = images[0]
	err = filepath.WalkDir(filepath.Join(root, "lib", "modules"), func(path string, d os.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			k.modules[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	return k, err
}

// withDependencies orders modules so that each comes after those it needs.
func (k testKernel) withDependencies(names ...string) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	var visit func(string) error
	visit = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if seen[name] {
			return nil
		}
		seen[name] = true
		path, ok := k.modules[name]
		if !ok {
			return fmt.Errorf("no module %s", name)
		}
		f, err := elf.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Section(".modinfo").Data()
		if err != nil {
			return err
		}
		for _, kv := range strings.Split(string(info), "\x00") {
			if deps, ok := strings.CutPrefix(kv, "depends="); ok && deps != "" {
				for _, d := range strings.Split(deps, ",") {
					if err := visit(d); err != nil {
						return err
					}
				}
			}
		}
		out = append(out, path)
		return nil
	}
	for _, n := range names {
		if err := visit(n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// guestInit answers commands on the serial console: it reads "ID COMMAND" and writes the output and "@ID STATUS".
const guestInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in /m/*; do insmod $m || echo "insmod $m failed"; done
ip link set lo up; dmesg -n 1
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -onlcr
echo "@ready 0"
while read -r id cmd; do eval "$cmd"; echo "@$id $?"; done
`

// buildInitrd writes an initramfs with busybox, the modules and guestInit.
func buildInitrd(t *testing.T, modules ...string) string {
	t.Helper()
	k := kernel(t)
	paths, err := k.withDependencies(modules...)
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v; install busybox-static", err)
	}
	out := filepath.Join(t.TempDir(), "initrd")
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	records := []cpio.Record{
		cpio.Directory("bin", 0o755), cpio.Directory("dev", 0o755), cpio.Directory("m", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1), cpio.CharDev("dev/ttyS0", 0o600, 4, 64), cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.StaticFile("bin/busybox", string(busybox), 0o755), cpio.StaticFile("init", guestInit, 0o755),
	}
	for i, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, cpio.StaticFile(fmt.Sprintf("m/%02d-%s", i, filepath.Base(p)), string(b), 0o644))
	}
	w := cpio.Newc.Writer(f)
	if err := cpio.WriteRecords(w, records); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	return out
}
