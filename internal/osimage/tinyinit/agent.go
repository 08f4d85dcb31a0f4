package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

// agent speaks the QEMU guest agent protocol (QEMU's qga/qapi-schema.json) on one virtio port.
type agent struct {
	m     *machine
	port  *port
	execs map[int]*execution
	ice   []string // frozen mount points
}

var ports = newSet()

// scanPorts starts an agent on the port that is meant for it.
func (m *machine) scanPorts() {
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, f := range names {
		b, _ := os.ReadFile(f)
		dev := "/dev/" + filepath.Base(filepath.Dir(f))
		if strings.TrimSpace(string(b)) != "org.qemu.guest_agent.0" || !ports.add(dev) {
			continue
		}
		p, err := openPort(dev)
		if err != nil {
			m.printf("agent: %v", err)
			ports.remove(dev)
			continue
		}
		a := &agent{m: m, port: p, execs: map[int]*execution{}}
		go func() {
			defer ports.remove(dev)
			a.serve()
		}()
	}
}

// port is a virtio port. Its read returns nothing while no host is connected; SIGIO tells when that changes.
type port struct {
	fd    int
	awake chan os.Signal
}

func openPort(dev string) (*port, error) {
	fd, err := syscall.Open(dev, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dev, err)
	}
	p := &port{fd: fd, awake: make(chan os.Signal, 1)}
	signal.Notify(p.awake, syscall.SIGIO)
	const fSetown = 8
	syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), fSetown, uintptr(os.Getpid()))
	syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_SETFL, syscall.O_RDWR|syscall.O_ASYNC)
	return p, nil
}

func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := syscall.Read(p.fd, b)
		switch {
		case n > 0:
			return n, nil
		case err == syscall.EINTR || err == syscall.EAGAIN:
		case err != nil:
			return 0, err
		default:
			<-p.awake
		}
	}
}

func (p *port) write(b []byte) {
	for len(b) > 0 {
		n, err := syscall.Write(p.fd, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		b = b[n:]
	}
}

const agentLine = 8 << 20

func (a *agent) serve() {
	r := bufio.NewReaderSize(a.port, 64<<10)
	for {
		line, err := readLine(r, agentLine)
		if err != nil {
			return
		}
		// 0xFF resets the parser: a client sends it before guest-sync-delimited.
		if i := bytes.LastIndexByte(line, 0xff); i >= 0 {
			line = line[i+1:]
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		var req struct {
			Execute   string          `json:"execute"`
			Arguments json.RawMessage `json:"arguments"`
			ID        any             `json:"id"`
		}
		reply := map[string]any{}
		if err := json.Unmarshal(line, &req); err != nil {
			reply["error"] = qerror("JSON parse error: " + err.Error())
		} else {
			v, err := a.do(req.Execute, req.Arguments)
			if err == errNoReply {
				continue
			}
			if err != nil {
				reply["error"] = qerror(err.Error())
			} else {
				reply["return"] = v
			}
			if req.ID != nil {
				reply["id"] = req.ID
			}
		}
		out, _ := json.Marshal(reply)
		if req.Execute == "guest-sync-delimited" {
			out = append([]byte{0xff}, out...)
		}
		a.port.write(append(out, '\n'))
	}
}

// readLine reads up to a newline; a line past the limit is dropped whole.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	over := false
	for {
		part, err := r.ReadSlice('\n')
		if !over {
			line = append(line, part...)
		}
		if len(line) > limit {
			over, line = true, nil
		}
		if err == nil {
			return line, nil
		}
		if err != bufio.ErrBufferFull {
			return nil, err
		}
	}
}

func qerror(desc string) map[string]any { return map[string]any{"class": "GenericError", "desc": desc} }

var errNoReply = fmt.Errorf("no reply")

var empty = map[string]any{}

// commands are the ones that do answers. Kept as data for guest-info.
var commands = []string{"guest-exec", "guest-exec-status", "guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "guest-fsfreeze-status",
	"guest-fsfreeze-thaw", "guest-get-host-name", "guest-get-osinfo", "guest-get-time", "guest-get-vcpus", "guest-info",
	"guest-network-get-interfaces", "guest-ping", "guest-set-time", "guest-shutdown", "guest-sync", "guest-sync-delimited"}

func (a *agent) do(cmd string, args json.RawMessage) (any, error) {
	if len(args) == 0 {
		args = json.RawMessage("{}")
	}
	switch cmd {
	case "guest-ping":
		return empty, nil
	case "guest-sync", "guest-sync-delimited":
		var x struct{ ID json.Number }
		err := json.Unmarshal(args, &x)
		return x.ID, err
	case "guest-info":
		var list []any
		for _, c := range commands {
			list = append(list, map[string]any{"enabled": true, "name": c, "success-response": c != "guest-shutdown"})
		}
		return map[string]any{"version": "7.2.0", "supported_commands": list}, nil
	case "guest-get-host-name":
		return map[string]any{"host-name": a.m.host()}, nil
	case "guest-get-osinfo":
		return osInfo(), nil
	case "guest-get-time":
		return time.Now().UnixNano(), nil
	case "guest-set-time":
		return setTime(args)
	case "guest-get-vcpus":
		return vcpus(), nil
	case "guest-network-get-interfaces":
		return interfaces(), nil
	case "guest-shutdown":
		return nil, a.shutdown(args)
	case "guest-exec":
		return a.exec(args)
	case "guest-exec-status":
		return a.execStatus(args)
	case "guest-fsfreeze-status":
		if len(a.ice) > 0 {
			return "frozen", nil
		}
		return "thawed", nil
	case "guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list":
		return a.freeze(args)
	case "guest-fsfreeze-thaw":
		return a.thaw(), nil
	}
	return nil, fmt.Errorf("command %s is not known", cmd)
}

func (a *agent) shutdown(args json.RawMessage) error {
	x := struct{ Mode string }{"powerdown"}
	if err := json.Unmarshal(args, &x); err != nil {
		return err
	}
	how, ok := map[string]int{"powerdown": syscall.LINUX_REBOOT_CMD_POWER_OFF, "reboot": syscall.LINUX_REBOOT_CMD_RESTART,
		"halt": syscall.LINUX_REBOOT_CMD_HALT}[x.Mode]
	if !ok {
		return fmt.Errorf("mode must be halt, powerdown or reboot")
	}
	a.m.halt(how, "shutdown: "+x.Mode)
	return errNoReply
}

func setTime(args json.RawMessage) (any, error) {
	var x struct{ Time *int64 }
	if err := json.Unmarshal(args, &x); err != nil {
		return nil, err
	}
	if x.Time == nil {
		b, err := os.ReadFile("/sys/class/rtc/rtc0/since_epoch")
		if err != nil {
			return nil, err
		}
		var s int64
		if _, err := fmt.Sscan(string(b), &s); err != nil {
			return nil, err
		}
		s *= 1e9
		x.Time = &s
	}
	tv := syscall.NsecToTimeval(*x.Time)
	return empty, syscall.Settimeofday(&tv)
}

func osInfo() any {
	var u syscall.Utsname
	syscall.Uname(&u)
	str := func(c [65]int8) string {
		var b []byte
		for _, x := range c {
			if x == 0 {
				break
			}
			b = append(b, byte(x))
		}
		return string(b)
	}
	return map[string]any{"id": "drover-tiny", "name": "Drover tiny", "pretty-name": "Drover tiny test guest", "version": "1", "version-id": "1",
		"kernel-release": str(u.Release), "kernel-version": str(u.Version), "machine": str(u.Machine)}
}

func vcpus() any {
	dirs, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*")
	sort.Slice(dirs, func(i, j int) bool { return cpuID(dirs[i]) < cpuID(dirs[j]) })
	out := []any{}
	for _, d := range dirs {
		b, err := os.ReadFile(d + "/online")
		out = append(out, map[string]any{"logical-id": cpuID(d), "online": err != nil || strings.TrimSpace(string(b)) == "1", "can-offline": err == nil})
	}
	return out
}

func cpuID(dir string) int {
	n := -1
	fmt.Sscanf(filepath.Base(dir), "cpu%d", &n)
	return n
}

func interfaces() any {
	out := []any{}
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		addrs := []any{}
		as, _ := i.Addrs()
		for _, a := range as {
			if n, ok := a.(*net.IPNet); ok {
				ones, bits := n.Mask.Size()
				typ := "ipv4"
				if bits == 128 {
					typ = "ipv6"
				}
				addrs = append(addrs, map[string]any{"ip-address": n.IP.String(), "ip-address-type": typ, "prefix": ones})
			}
		}
		mac := i.HardwareAddr.String()
		if mac == "" {
			mac = "00:00:00:00:00:00"
		}
		out = append(out, map[string]any{"name": i.Name, "hardware-address": mac, "ip-addresses": addrs})
	}
	return out
}

const (
	fiFreeze = 0xc0045877 // linux/fs.h FIFREEZE
	fiThaw   = 0xc0045878 // linux/fs.h FITHAW
)

// freeze stops writes on every filesystem that is on a disk, or on those named.
func (a *agent) freeze(args json.RawMessage) (any, error) {
	var x struct{ Mountpoints []string }
	if err := json.Unmarshal(args, &x); err != nil {
		return nil, err
	}
	if len(a.ice) > 0 {
		return nil, fmt.Errorf("filesystems are frozen already")
	}
	only := map[string]bool{}
	for _, p := range x.Mountpoints {
		only[p] = true
	}
	b, _ := os.ReadFile("/proc/mounts")
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) < 4 || !strings.HasPrefix(f[0], "/dev/") || len(only) > 0 && !only[f[1]] {
			continue
		}
		if err := ioctlPath(f[1], fiFreeze); err == syscall.EOPNOTSUPP || err == syscall.EBUSY {
			continue
		} else if err != nil {
			a.thaw()
			return nil, fmt.Errorf("freeze %s: %v", f[1], err)
		}
		a.ice = append(a.ice, f[1])
	}
	return len(a.ice), nil
}

func (a *agent) thaw() any {
	n := 0
	for i := len(a.ice) - 1; i >= 0; i-- {
		if ioctlPath(a.ice[i], fiThaw) == nil {
			n++
		}
	}
	a.ice = nil
	return n
}

func ioctlPath(path string, req uintptr) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), req, 0); e != 0 {
		return e
	}
	return nil
}
