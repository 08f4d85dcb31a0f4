package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"drover/bench/report"
)

// s3 counts the requests of backups into a real S3 server (versitygw, scripts/s3server), by a proxy before it: what a provider would charge for.
func (b *bench) s3() (err error) {
	d, err := b.measureData()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(b.work, "s")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	server, end, err := b.startS3(dir)
	if err != nil {
		return err
	}
	defer end()
	var requests, puts atomic.Int64
	to := &url.URL{Scheme: "http", Host: server}
	back := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		requests.Add(1)
		if m := r.In.Method; m == http.MethodPut || m == http.MethodPost {
			puts.Add(1)
		}
		r.SetURL(to)
		r.Out.Host = r.In.Host // it is signed
	}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	front := &http.Server{Handler: back, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- front.Serve(l) }()
	defer func() {
		_ = front.Close()
		<-served
	}()

	j := &job{bench: b, dir: dir, vms: vms, env: []string{"DROVER_CACHE=" + filepath.Join(dir, "home"), "DROVER_S3_SECRET_KEY=" + secretS3}}
	flags := []string{"--s3-endpoint", l.Addr().String(), "--s3-access-key", "bench", "--s3-region", "us-east-1", "--s3-insecure"}
	run := func(args ...string) error {
		return j.run(b.drover, append(append([]string{"repository"}, args...), flags...)...)
	}
	location := "s3://bench/repository"
	if err := run("init", location, "--unencrypted"); err != nil {
		return err
	}
	backup := func(day int, name string) error {
		if err := j.day(day); err != nil {
			return err
		}
		requests.Store(0)
		puts.Store(0)
		args := []string{"backup", location}
		for _, vm := range vms {
			args = append(args, vm+"/disk0="+j.disk(vm))
			if day == 2 {
				args = append(args, "--changed", vm+"/disk0="+d.lists[vm])
			}
		}
		if err := run(args...); err != nil {
			return err
		}
		bytes, what := d.allocated, "of disk"
		if day == 2 {
			bytes, what = d.changed, "that changed"
		}
		note := fmt.Sprintf("%d requests, %d of them PUT or POST, for %.0f MB; took %.1f s", requests.Load(), puts.Load(), float64(bytes)/1e6, j.last.took.Seconds())
		b.rep.Add(report.Row{Name: "S3 requests for a TB " + what + ", " + name, Unit: "1", Ours: float64(requests.Load()) / float64(bytes) * 1e12, Better: report.Less, Note: note})
		return nil
	}
	if err := backup(1, "first backup"); err != nil {
		return err
	}
	return backup(2, "day 2")
}

const secretS3 = "bench-secret-of-loopback"

// startS3 starts a server that keeps its objects in a directory, with the bucket bench.
func (b *bench) startS3(dir string) (endpoint string, end func(), err error) {
	out, err := exec.CommandContext(b.ctx, "scripts/s3server").Output()
	if err != nil {
		return "", nil, fmt.Errorf("scripts/s3server: %w", err)
	}
	objects := filepath.Join(dir, "objects")
	if err := os.MkdirAll(filepath.Join(objects, "bench"), 0o700); err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	endpoint = l.Addr().String()
	if err := l.Close(); err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(b.ctx, strings.TrimSpace(string(out)), "--port", endpoint, "--access", "bench", "--secret", secretS3, "--quiet", "posix", objects)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	end = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for {
		if c, err := net.Dial("tcp", endpoint); err == nil {
			return endpoint, end, c.Close()
		}
		select {
		case <-tick.C:
		case <-limit:
			end()
			return "", nil, fmt.Errorf("the S3 server does not answer at %s", endpoint)
		case <-b.ctx.Done():
			end()
			return "", nil, b.ctx.Err()
		}
	}
}
