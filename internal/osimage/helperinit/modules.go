package main

import (
	"os"
	"strings"
	"sync"
	"syscall"
	"unsafe"
)

// modules are the drivers that the image carries: lines of name, file, and needed modules separated by commas (or -).
type modules struct {
	mu     sync.Mutex // guards loaded, and is held while one loads
	files  map[string]string
	deps   map[string][]string
	loaded map[string]bool
}

func readModules(path string) *modules {
	ms := &modules{files: map[string]string{}, deps: map[string][]string{}, loaded: map[string]bool{}}
	b, err := os.ReadFile(path)
	if err != nil {
		logf("modules: %v", err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		ms.files[f[0]] = f[1]
		if f[2] != "-" {
			ms.deps[f[0]] = strings.Split(f[2], ",")
		}
	}
	return ms
}

// load inserts a module after those that it needs. What the image does not carry is built in.
func (ms *modules) load(names ...string) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, n := range names {
		ms.insert(n)
	}
}

func (ms *modules) insert(name string) {
	if ms.files[name] == "" || ms.loaded[name] {
		return
	}
	ms.loaded[name] = true
	for _, d := range ms.deps[name] {
		ms.insert(d)
	}
	f, err := os.Open(ms.files[name])
	if err != nil {
		logf("module %s: %v", name, err)
		return
	}
	defer f.Close()
	const sysFinitModule = 313
	empty := []byte{0}
	if _, _, e := syscall.Syscall(sysFinitModule, f.Fd(), uintptr(unsafe.Pointer(&empty[0])), 0); e != 0 && e != syscall.EEXIST {
		logf("module %s: %v", name, e)
	}
}
