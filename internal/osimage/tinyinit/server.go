package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// server answers HTTP/1.1 on port 80, one request a connection, and echoes on port 7. It speaks just enough HTTP for
// any client, because the standard library's server would double the image and its start.
type server struct {
	m         *machine
	counter   atomic.Uint64
	load      *load
	heartbeat *heartbeat
}

func newServer(m *machine) *server {
	return &server{m: m, load: &load{}, heartbeat: newHeartbeat(m)}
}

func (s *server) listen() error {
	web, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	echo, err := net.Listen("tcp", ":7")
	if err != nil {
		web.Close()
		return err
	}
	go accept(web, s.serve)
	go accept(echo, func(c net.Conn) {
		defer c.Close()
		io.Copy(c, c)
	})
	return nil
}

func accept(l net.Listener, f func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go f(c)
	}
}

func (s *server) serve(c net.Conn) {
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	r := bufio.NewReaderSize(c, 8<<10)
	line, err := r.ReadSlice('\n')
	if err != nil {
		return
	}
	f := strings.Fields(string(line))
	body := 0
	for n := 0; n < 100; n++ {
		h, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		if strings.TrimSpace(string(h)) == "" {
			break
		}
		if k, v, ok := strings.Cut(string(h), ":"); ok && strings.EqualFold(k, "content-length") {
			body, _ = strconv.Atoi(strings.TrimSpace(v))
		}
	}
	if len(f) != 3 {
		reply(c, 400, map[string]any{"error": "bad request line"})
		return
	}
	if body > 0 {
		io.CopyN(io.Discard, r, int64(min(body, 1<<20)))
	}
	u, err := url.ParseRequestURI(f[1])
	if err != nil {
		reply(c, 400, map[string]any{"error": err.Error()})
		return
	}
	v, err := s.route(u.Path, query(u.Query()))
	if err != nil {
		code := 400
		if err == errNotFound {
			code = 404
		}
		v = map[string]any{"error": err.Error()}
		reply(c, code, v)
		return
	}
	reply(c, 200, v)
}

func reply(c net.Conn, code int, v any) {
	var b []byte
	typ := "application/json"
	if s, ok := v.(string); ok {
		b, typ = []byte(s), "text/plain"
	} else {
		b, _ = json.Marshal(v)
		b = append(b, '\n')
	}
	text := map[int]string{200: "OK", 400: "Bad Request", 404: "Not Found"}[code]
	c.SetWriteDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", code, text, typ, len(b), b)
}

var errNotFound = fmt.Errorf("not found: there is / /counter /load /disk/list /disk/write /disk/read /disk/verify /disk/time /heartbeat /frame/send /frame/watch")

// query holds the parameters of a request.
type query url.Values

func (q query) str(k string) string { return url.Values(q).Get(k) }

func (q query) num(k string, def uint64) (uint64, error) {
	v := q.str(k)
	if v == "" {
		return def, nil
	}
	n, err := strconv.ParseUint(v, 0, 63)
	if err != nil {
		return 0, fmt.Errorf("%s=%s is not a number", k, v)
	}
	return n, nil
}

func (s *server) route(path string, q query) (any, error) {
	switch path {
	case "/":
		return s.about(), nil
	case "/counter":
		return strconv.FormatUint(s.counter.Add(1), 10) + "\n", nil
	case "/load":
		return s.load.serve(q)
	case "/heartbeat":
		ms, err := q.num("ms", 1000)
		if err != nil {
			return nil, err
		}
		s.heartbeat.set(time.Duration(min(ms, 1<<31)) * time.Millisecond)
		return map[string]any{"ms": ms, "beats": s.heartbeat.count.Load()}, nil
	case "/frame/send":
		return sendFrames(q)
	case "/frame/watch":
		return watchFrames(q)
	case "/disk/list":
		return listDisks(), nil
	case "/disk/write", "/disk/read", "/disk/verify":
		return serveDisk(strings.TrimPrefix(path, "/disk/"), q)
	case "/disk/time":
		return timeWrites(q)
	}
	return nil, errNotFound
}

func (s *server) about() any {
	var si syscall.Sysinfo_t
	syscall.Sysinfo(&si)
	nics := map[string]any{}
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		d, _ := os.Readlink("/sys/class/net/" + i.Name + "/device/driver")
		nics[i.Name] = map[string]any{"mac": i.HardwareAddr.String(), "mtu": i.MTU, "driver": d[strings.LastIndexByte(d, '/')+1:]}
	}
	cpus := 0
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		cpus = strings.Count(string(b), "processor\t:")
	}
	up, _ := os.ReadFile("/proc/uptime")
	uptime, _, _ := strings.Cut(string(up), " ")
	secs, _ := strconv.ParseFloat(uptime, 64)
	return map[string]any{"hostname": s.m.host(), "uptime": secs, "addresses": addresses(), "nics": nics, "cpus": cpus,
		"memory": uint64(si.Totalram) * uint64(si.Unit), "counter": s.counter.Load(), "go": runtime.Version()}
}

// heartbeat prints a counter on the console at the interval that was asked for; 0 stops it.
type heartbeat struct {
	m     *machine
	count atomic.Uint64
	every chan time.Duration
}

func newHeartbeat(m *machine) *heartbeat {
	h := &heartbeat{m: m, every: make(chan time.Duration)}
	go h.run()
	return h
}

func (h *heartbeat) set(d time.Duration) { h.every <- d }

func (h *heartbeat) run() {
	var tick <-chan time.Time
	var t *time.Ticker
	for {
		select {
		case d := <-h.every:
			if t != nil {
				t.Stop()
				t, tick = nil, nil
			}
			if d > 0 {
				t = time.NewTicker(d)
				tick = t.C
			}
		case <-tick:
			h.m.printf("heartbeat %d", h.count.Add(1))
		}
	}
}
