package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// execution is one guest-exec; its fields are read after done is closed.
type execution struct {
	done     chan struct{}
	ws       syscall.WaitStatus
	out, err *capture
}

// capture keeps the first MiB of a stream and says whether there was more.
type capture struct {
	buf  bytes.Buffer
	over bool
}

func (c *capture) Write(b []byte) (int, error) {
	room := 1<<20 - c.buf.Len()
	if len(b) > room {
		c.over = true
		c.buf.Write(b[:room])
	} else {
		c.buf.Write(b)
	}
	return len(b), nil
}

func (a *agent) exec(args json.RawMessage) (any, error) {
	var x struct {
		Path    string
		Arg     []string
		Env     []string
		Input   string          `json:"input-data"`
		Capture json.RawMessage `json:"capture-output"`
	}
	if err := json.Unmarshal(args, &x); err != nil {
		return nil, err
	}
	in, err := base64.StdEncoding.DecodeString(x.Input)
	if err != nil {
		return nil, fmt.Errorf("input-data: %w", err)
	}
	path := x.Path
	if !strings.Contains(path, "/") {
		path = "/bin/" + path
	}
	want := len(x.Capture) > 0 && string(x.Capture) != "false" && string(x.Capture) != `"none"`
	pid, e, err := a.m.procs.run(path, append([]string{x.Path}, x.Arg...), append(os.Environ(), x.Env...), in, want)
	if err != nil {
		return nil, fmt.Errorf("run %q: %w", x.Path, err)
	}
	a.execs[pid] = e
	return map[string]any{"pid": pid}, nil
}

func (p *procs) run(path string, argv, env []string, in []byte, want bool) (int, *execution, error) {
	e := &execution{done: make(chan struct{})}
	inR, inW, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return 0, nil, err
	}
	files := []*os.File{inR, null, null}
	var readers []*os.File
	if want {
		e.out, e.err = &capture{}, &capture{}
		for i := 1; i <= 2; i++ {
			r, w, err := os.Pipe()
			if err != nil {
				return 0, nil, err
			}
			files[i], readers = w, append(readers, r)
		}
	}
	pid, status, err := p.start(path, argv, &os.ProcAttr{Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true}})
	for _, f := range files {
		f.Close()
	}
	null.Close()
	if err != nil {
		inW.Close()
		for _, r := range readers {
			r.Close()
		}
		return 0, nil, err
	}
	go func() {
		inW.Write(in)
		inW.Close()
	}()
	go func() {
		both := make(chan struct{}, 2)
		for i, c := range []*capture{e.out, e.err} {
			if c == nil {
				both <- struct{}{}
				continue
			}
			go func() {
				io.Copy(c, readers[i])
				readers[i].Close()
				both <- struct{}{}
			}()
		}
		<-both
		<-both
		e.ws = <-status
		close(e.done)
	}()
	return pid, e, nil
}

func (a *agent) execStatus(args json.RawMessage) (any, error) {
	var x struct{ PID int }
	if err := json.Unmarshal(args, &x); err != nil {
		return nil, err
	}
	e := a.execs[x.PID]
	if e == nil {
		return nil, fmt.Errorf("no process with pid %d was started by guest-exec, or its end was told already", x.PID)
	}
	select {
	case <-e.done:
	default:
		return map[string]any{"exited": false}, nil
	}
	delete(a.execs, x.PID)
	r := map[string]any{"exited": true}
	if e.ws.Signaled() {
		r["signal"] = int(e.ws.Signal())
	} else {
		r["exitcode"] = e.ws.ExitStatus()
	}
	for k, c := range map[string]*capture{"out": e.out, "err": e.err} {
		if c != nil && c.buf.Len() > 0 {
			r[k+"-data"] = base64.StdEncoding.EncodeToString(c.buf.Bytes())
			if c.over {
				r[k+"-truncated"] = true
			}
		}
	}
	return r, nil
}
