package main

import (
	"os"
	"strings"
	"syscall"
)

// listenUevents opens the kernel's device news before anything is scanned, so that nothing falls between.
func listenUevents() (int, error) {
	s, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, syscall.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return -1, err
	}
	syscall.SetsockoptInt(s, syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, 4<<20)
	if err := syscall.Bind(s, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: 1}); err != nil {
		syscall.Close(s)
		return -1, err
	}
	return s, nil
}

// watchUevents takes up devices that come and lets go of those that leave. Everything here is idempotent, as the
// events of the boot itself are read too.
func (m *machine) watchUevents(s int, mods *modules) {
	buf := make([]byte, 64<<10)
	for {
		n, _, err := syscall.Recvfrom(s, buf, 0)
		if err == syscall.ENOBUFS {
			mods.coldplug()
			m.scanNICs()
			m.scanInputs()
			continue
		}
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			m.printf("uevents: %v", err)
			return
		}
		m.uevent(parseUevent(buf[:n]), mods)
	}
}

func parseUevent(b []byte) map[string]string {
	ev := map[string]string{}
	for _, f := range strings.Split(string(b), "\x00") {
		if k, v, ok := strings.Cut(f, "="); ok {
			ev[k] = v
		}
	}
	return ev
}

func (m *machine) uevent(ev map[string]string, mods *modules) {
	action, subsystem, path := ev["ACTION"], ev["SUBSYSTEM"], "/sys"+ev["DEVPATH"]
	if action == "add" && ev["MODALIAS"] != "" {
		mods.probe(ev["MODALIAS"])
	}
	switch {
	case subsystem == "net" && action == "add":
		m.addNIC(ev["INTERFACE"])
	case subsystem == "net" && action == "remove":
		m.removeNIC(ev["INTERFACE"])
	case subsystem == "input" && action == "add" && strings.HasPrefix(ev["DEVNAME"], "input/event"):
		m.watchInput("/dev/" + ev["DEVNAME"])
	case subsystem == "virtio-ports" && action == "add":
		m.scanPorts()
	case subsystem == "block" && action != "remove" && ev["DEVTYPE"] == "disk":
		m.findSeed()
	case subsystem == "cpu" && action == "add":
		os.WriteFile(path+"/online", []byte("1"), 0o644)
	}
}
