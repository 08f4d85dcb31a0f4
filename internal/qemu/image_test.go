package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"drover/internal/kernelimage"
	"drover/internal/osimage"
)

// testKernel is the kernel of the tiny guest, the full one: it has the drivers of every NIC adapter, and being an ELF file with a PVH entry it
// needs no unpacking in the guest, which takes longer than all the rest of a boot without KVM.
type testKernel struct {
	image   string
	list    []module // each after those it needs
	archive map[string]string
}

type module struct {
	name, file string
	needs      []string
}

var kernelOnce = sync.OnceValues(buildKernel)

func kernel(t *testing.T) testKernel {
	t.Helper()
	k, err := kernelOnce()
	if err != nil {
		t.Fatalf("the test kernel: %v", err)
	}
	return k
}

// buildKernel keeps the kernel below scratch, for all tests of this run.
func buildKernel() (testKernel, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	k := testKernel{archive: map[string]string{}}
	r, err := osimage.BuildTiny(ctx, osimage.Tiny{Kernel: "full"}, osimage.Options{})
	if err != nil {
		return k, err
	}
	f, err := os.Open(r.Path)
	if err != nil {
		return k, err
	}
	defer f.Close()
	dir, err := os.MkdirTemp(scratch.dir, "kernel")
	if err != nil {
		return k, err
	}
	x, err := kernelimage.Extract(ctx, f, dir)
	if err != nil {
		return k, err
	}
	// Readable for QEMU's user: it is passed as it is then, not copied.
	if err := os.Chmod(x.Kernel, 0o644); err != nil {
		return k, err
	}
	k.image = x.Kernel
	return k, k.unpack(x.Initrd)
}

// unpack reads the modules from the tiny guest's initramfs, which lists them as "NAME FILE NEEDS ALIAS…".
func (k *testKernel) unpack(initrd string) error {
	f, err := os.Open(initrd)
	if err != nil {
		return err
	}
	defer f.Close()
	err = cpio.ForEachRecord(cpio.Newc.Reader(f), func(r cpio.Record) error {
		if !strings.HasPrefix(r.Name, "modules/") || r.FileSize == 0 {
			return nil
		}
		b, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
		k.archive["/"+r.Name] = string(b)
		return err
	})
	if err != nil {
		return err
	}
	in := bufio.NewScanner(strings.NewReader(k.archive["/modules/list"]))
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		f := strings.Fields(in.Text())
		if len(f) < 3 || k.archive[f[1]] == "" {
			return fmt.Errorf("the list of modules says %q", in.Text())
		}
		m := module{name: f[0], file: f[1]}
		if f[2] != "-" {
			m.needs = strings.Split(f[2], ",")
		}
		k.list = append(k.list, m)
	}
	if len(k.list) == 0 {
		return errors.New("the tiny guest has no modules")
	}
	return in.Err()
}

// withDependencies orders modules so that each comes after those it needs. Those that are built in are left out.
func (k testKernel) withDependencies(names ...string) []module {
	var out []module
	seen := map[string]bool{}
	var visit func(string)
	visit = func(name string) {
		for _, m := range k.list {
			if m.name != name || seen[name] {
				continue
			}
			seen[name] = true
			for _, n := range m.needs {
				visit(n)
			}
			out = append(out, m)
		}
	}
	for _, n := range names {
		visit(n)
	}
	return out
}

// guestInit answers commands on the serial console: it reads "ID COMMAND" and writes the output and "@ID STATUS".
const guestInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in /m/*; do [ -e $m ] && { insmod $m || echo "insmod $m failed"; }; done
ip link set lo up; dmesg -n 1
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -onlcr
echo "@ready 0"
while read -r id cmd; do eval "$cmd"; echo "@$id $?"; done
`

// buildInitrd writes an initramfs with busybox, the modules and guestInit.
func buildInitrd(t *testing.T, modules ...string) string {
	t.Helper()
	return buildInitrdWith(t, nil, modules...)
}

// buildInitrdWith is buildInitrd with more files.
func buildInitrdWith(t *testing.T, more []cpio.Record, modules ...string) string {
	t.Helper()
	k := kernel(t)
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
	records = append(records, more...)
	for i, m := range k.withDependencies(modules...) {
		records = append(records, cpio.StaticFile(fmt.Sprintf("m/%02d-%s", i, m.name), k.archive[m.file], 0o644))
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
