package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"
)

// modules are the drivers that the image carries. The list has one line each: name, file, dependencies separated by
// commas (or -), then the device patterns that ask for it.
type modules struct {
	m      *machine
	byName map[string]*module
	order  []*module
}

type module struct {
	name, file string
	deps       []string
	aliases    []string
	loaded     bool
}

func loadModuleList(m *machine, path string) *modules {
	ms := &modules{m: m, byName: map[string]*module{}}
	b, err := os.ReadFile(path)
	if err != nil {
		m.printf("modules: %v", err)
		return ms
	}
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		mod := &module{name: f[0], file: f[1], aliases: f[3:]}
		if f[2] != "-" {
			mod.deps = strings.Split(f[2], ",")
		}
		ms.byName[mod.name] = mod
		ms.order = append(ms.order, mod)
	}
	return ms
}

// load inserts a module after those that it needs. A name that the image does not carry is a built-in: no error.
func (ms *modules) load(name string) {
	mod := ms.byName[name]
	if mod == nil || mod.loaded {
		return
	}
	mod.loaded = true
	for _, d := range mod.deps {
		ms.load(d)
	}
	f, err := os.Open(mod.file)
	if err != nil {
		ms.m.printf("module %s: %v", name, err)
		return
	}
	defer f.Close()
	empty := []byte{0}
	if _, _, e := syscall.Syscall(sysFinitModule, f.Fd(), uintptr(unsafe.Pointer(&empty[0])), 0); e != 0 && e != syscall.EEXIST {
		ms.m.printf("module %s: %v", name, e)
	}
}

// coldplug loads drivers for the devices that are there, until loading one brings no new device to light.
func (ms *modules) coldplug() {
	seen := map[string]bool{}
	for again := true; again; {
		again = false
		for _, bus := range []string{"acpi", "pci", "virtio", "scsi", "input", "platform", "serio"} {
			dirs, _ := filepath.Glob("/sys/bus/" + bus + "/devices/*/modalias")
			if bus == "input" {
				dirs, _ = filepath.Glob("/sys/class/input/input*/modalias")
			}
			for _, d := range dirs {
				if seen[d] {
					continue
				}
				seen[d] = true
				b, _ := os.ReadFile(d)
				if ms.probe(strings.TrimSpace(string(b))) {
					again = true
				}
			}
		}
	}
}

// probe loads what a device's modalias asks for and reports whether it loaded anything.
func (ms *modules) probe(alias string) bool {
	did := false
	for _, mod := range ms.order {
		if mod.loaded {
			continue
		}
		for _, a := range mod.aliases {
			if match(a, alias) {
				ms.load(mod.name)
				did = true
				break
			}
		}
	}
	return did
}

// match is the kernel's pattern language for aliases as far as it is used: '*' alone. ('?' and sets do not occur
// in the modules of the image.)
func match(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	if len(parts) == 1 {
		return s == ""
	}
	last := parts[len(parts)-1]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, last)
}

const (
	sysFinitModule = 313
)
