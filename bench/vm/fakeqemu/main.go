// Command fakeqemu is as much of QEMU as the host agent talks to, without a guest: it answers its monitor, prints a line
// on its console, and ends when told. It exists for measuring what the agent and the manager need for many VMs, on a
// machine that could not run that many. Nothing that it says of a guest is true.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println("QEMU emulator version 7.2.0 (fake, for measuring)")
		return
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fakeqemu:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	lines := map[string]net.Conn{}
	for i, a := range args {
		if a != "-chardev" || i+1 == len(args) {
			continue
		}
		id, c, err := accept(args[i+1])
		if err != nil {
			return fmt.Errorf("-chardev %s: %w", args[i+1], err)
		}
		lines[id] = c
	}
	for _, id := range []string{"qmp", "console0", "qga"} {
		if lines[id] == nil {
			return errors.New("no -chardev " + id)
		}
	}
	m := machine{console: lines["console0"], disk: strings.Contains(strings.Join(args, " "), "disk-vd0")}
	for _, id := range []string{"console0", "qga"} {
		go io.Copy(io.Discard, lines[id])
	}
	return m.serve(lines["qmp"])
}

// accept takes the connection that waits in a passed socket's queue: "socket,id=ID,fd=N,…".
func accept(option string) (id string, c net.Conn, err error) {
	fd := -1
	for _, part := range strings.Split(option, ",") {
		switch k, v, _ := strings.Cut(part, "="); k {
		case "id":
			id = v
		case "fd":
			if fd, err = strconv.Atoi(v); err != nil {
				return "", nil, err
			}
		}
	}
	f := os.NewFile(uintptr(fd), id)
	if f == nil {
		return "", nil, errors.New("no descriptor")
	}
	l, err := net.FileListener(f)
	if err != nil {
		return "", nil, errors.Join(err, f.Close())
	}
	defer l.Close()
	c, err = l.Accept()
	return id, c, errors.Join(err, f.Close())
}

type machine struct {
	console net.Conn
	disk    bool
	running atomic.Bool
	printed bool
}

type request struct {
	Execute string          `json:"execute"`
	ID      json.RawMessage `json:"id"`
}

// serve answers a monitor until quit or its end.
func (m *machine) serve(c net.Conn) error {
	out := json.NewEncoder(c)
	greeting := map[string]any{"QMP": map[string]any{
		"version": map[string]any{"qemu": map[string]int{"major": 7, "minor": 2, "micro": 0}, "package": "fake"}, "capabilities": []string{},
	}}
	if err := out.Encode(greeting); err != nil {
		return err
	}
	in := json.NewDecoder(bufio.NewReader(c))
	for {
		var q request
		if err := in.Decode(&q); err != nil {
			return nil // the agent let go; a real QEMU would live on
		}
		res := map[string]any{}
		if len(q.ID) > 0 {
			res["id"] = q.ID
		}
		value, ok := m.answer(q.Execute)
		if ok {
			res["return"] = value
		} else {
			res["error"] = map[string]string{"class": "CommandNotFound", "desc": "fakeqemu does not know " + q.Execute}
		}
		if err := out.Encode(res); err != nil {
			return err
		}
		if q.Execute == "quit" {
			return out.Encode(map[string]any{
				"event": "SHUTDOWN", "timestamp": map[string]int64{"seconds": 0, "microseconds": 0},
				"data": map[string]any{"guest": false, "reason": "host-qmp-quit"},
			})
		}
	}
}

func (m *machine) answer(command string) (value any, ok bool) {
	switch command {
	case "qmp_capabilities", "quit", "set_link":
	case "stop":
		m.running.Store(false)
	case "cont":
		m.running.Store(true)
		if !m.printed {
			m.printed = true
			fmt.Fprint(m.console, "drover-tiny: init\r\nthis is no guest, only fakeqemu\r\n")
		}
	case "query-status":
		word := "paused"
		if m.running.Load() {
			word = "running"
		}
		return map[string]any{"running": m.running.Load(), "singlestep": false, "status": word}, true
	case "query-blockstats":
		if !m.disk {
			return []any{}, true
		}
		return []any{map[string]any{"device": "", "qdev": "/machine/peripheral/disk-vd0/virtio-backend", "stats": map[string]uint64{"rd_bytes": 1 << 20, "rd_operations": 99}}}, true
	default:
		return nil, false
	}
	return struct{}{}, true
}
