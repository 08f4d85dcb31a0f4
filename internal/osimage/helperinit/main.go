package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
)

// machine is what the ports share.
type machine struct {
	mods *modules

	mu      sync.Mutex // guards the fields below, and is held while they are worked out
	scanned bool
	volumes []*volume

	listMu sync.Mutex // guards listed
	listed listing
}

func logf(format string, args ...any) {
	os.Stdout.WriteString("drover-helper: " + fmt.Sprintf(format, args...) + "\n")
}

func main() {
	if os.Getpid() != 1 {
		logf("not process 1; refusing")
		os.Exit(1)
	}
	for _, x := range []struct{ dir, typ, opt string }{
		{"/dev", "devtmpfs", "mode=0755"}, {"/proc", "proc", ""}, {"/sys", "sysfs", ""}, {"/run", "tmpfs", "mode=0755"},
	} {
		if err := syscall.Mount(x.typ, x.dir, x.typ, 0, x.opt); err != nil && err != syscall.EBUSY {
			logf("mount %s: %v", x.dir, err)
		}
	}
	os.Setenv("PATH", "/bin")
	// One descriptor for each level of a deep tree.
	lim := syscall.Rlimit{Cur: 1 << 17, Max: 1 << 17}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		logf("descriptors: %v", err)
	}
	m := &machine{mods: readModules("/modules/list")}
	for _, n := range []string{"virtio_mmio", "virtio_pci", "virtio_blk", "virtio_console", "crc32c_intel"} {
		m.mods.load(n)
	}
	logf("init")
	if err := m.serve(); err != nil {
		logf("%v", err)
	}
	halt()
}

// halt ends the machine. QEMU runs with -no-reboot, so this is its end too.
func halt() {
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	select {}
}

func release() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(b))
}
