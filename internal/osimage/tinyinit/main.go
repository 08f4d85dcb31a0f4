package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// machine is what the parts of the guest share.
type machine struct {
	start time.Time
	procs *procs
	mods  *modules

	mu       sync.Mutex
	hostname string
	seeded   bool              // a seed was found and applied
	seed     *networkConfig    // nil: DHCP on every NIC
	nics     map[string]*netif // by kernel name
	ready    bool
	arrived  chan struct{} // closed and replaced when a NIC has got an address
}

// printf writes one line to the console. Tests read these, so a line is one write.
func (m *machine) printf(format string, args ...any) {
	os.Stdout.WriteString("drover-tiny: " + fmt.Sprintf(format, args...) + "\n")
}

func main() {
	m := &machine{start: time.Now(), procs: newProcs(), nics: map[string]*netif{}, hostname: "drover-tiny", arrived: make(chan struct{})}
	m.printf("init")
	if os.Getpid() != 1 {
		m.printf("not process 1; refusing")
		os.Exit(1)
	}
	mountAll(m)
	os.Setenv("PATH", "/bin")
	os.Setenv("HOME", "/root")
	os.Setenv("TERM", "vt100")
	syscall.Sethostname([]byte(m.hostname))
	go m.procs.reap()

	events, err := listenUevents()
	if err != nil {
		m.printf("uevents: %v", err)
	}
	mods := loadModuleList(m, "/modules/list")
	m.mods = mods
	mods.coldplug()
	m.findSeed()
	m.startLoopback()
	srv := newServer(m)
	if err := srv.listen(); err != nil {
		m.printf("listen: %v", err)
	}
	m.scanNICs()
	m.scanInputs()
	m.scanPorts()
	if events >= 0 {
		go m.watchUevents(events, mods)
	}
	m.awaitAddresses(readyWait())
	m.printReady()
	if ms := cmdlineInt("drover.heartbeat"); ms > 0 {
		srv.heartbeat.set(time.Duration(ms) * time.Millisecond)
	}
	m.console()
}

// readyWait is how long "ready" waits for addresses.
func readyWait() time.Duration {
	if ms := cmdlineInt("drover.wait"); ms > 0 {
		return time.Duration(ms) * time.Millisecond
	}
	return 5 * time.Second
}

// cmdlineInt is the number after key= on the kernel's command line, 0 without it.
func cmdlineInt(key string) int {
	b, _ := os.ReadFile("/proc/cmdline")
	for _, f := range strings.Fields(string(b)) {
		if v, ok := strings.CutPrefix(f, key+"="); ok {
			n, _ := strconv.Atoi(v)
			return n
		}
	}
	return 0
}

func mountAll(m *machine) {
	for _, x := range []struct{ src, dir, typ, opt string }{
		{"dev", "/dev", "devtmpfs", "mode=0755"},
		{"proc", "/proc", "proc", ""},
		{"sys", "/sys", "sysfs", ""},
		{"run", "/run", "tmpfs", "mode=0755"},
		{"tmp", "/tmp", "tmpfs", "mode=1777"},
		{"pts", "/dev/pts", "devpts", "mode=0620"},
	} {
		os.MkdirAll(x.dir, 0o755)
		if err := syscall.Mount(x.src, x.dir, x.typ, 0, x.opt); err != nil && err != syscall.EBUSY {
			m.printf("mount %s: %v", x.dir, err)
		}
	}
}

func (m *machine) setHostname(h string) {
	h = strings.TrimSpace(h)
	if h == "" || len(h) > 64 || strings.ContainsAny(h, " \t\r\n/") {
		return
	}
	syscall.Sethostname([]byte(h))
	m.mu.Lock()
	m.hostname = h
	m.mu.Unlock()
}

func (m *machine) host() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hostname
}

func (m *machine) printReady() {
	m.mu.Lock()
	m.ready = true
	m.mu.Unlock()
	line := "ready " + m.host()
	for _, a := range addresses() {
		line += " " + a
	}
	m.printf("%s", line)
}

// halt ends the machine: filesystems are written out first. how is one of syscall.LINUX_REBOOT_CMD_*.
func (m *machine) halt(how int, word string) {
	m.printf("%s", word)
	syscall.Sync()
	mounts, _ := os.ReadFile("/proc/mounts")
	lines := strings.Split(strings.TrimSpace(string(mounts)), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 1 && strings.HasPrefix(f[0], "/dev/") {
			if syscall.Unmount(f[1], 0) != nil {
				syscall.Mount("", f[1], "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
			}
		}
	}
	syscall.Reboot(how)
}
