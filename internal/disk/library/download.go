package library

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// source brings the bytes into a file of our own, so that nobody changes them between check and use.
// done ends it: forget removes what a resume would need.
func (l *Library) source(ctx context.Context, r *Request) (f *os.File, done func(forget bool), err error) {
	if r.URL != "" {
		return l.download(ctx, r)
	}
	if f, err = l.temp(true); err != nil {
		return nil, nil, err
	}
	var in io.Reader = r.Reader
	total := int64(0)
	if r.Path != "" {
		local, err := os.OpenFile(r.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			f.Close()
			return nil, nil, fmt.Errorf("import: %w", err)
		}
		defer local.Close()
		st, err := local.Stat()
		if err != nil || !st.Mode().IsRegular() {
			f.Close()
			return nil, nil, fmt.Errorf("import %s: not a regular file", r.Path)
		}
		in, total = local, st.Size()
	}
	_, err = copySparse(f, &watched{ctx: ctx, r: in, note: func(n int64) { r.Progress(Download, n, total) }}, l.tooBig)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("copy the source: %w", err)
	}
	return f, func(bool) {}, nil
}

func (l *Library) tooBig(n int64) error {
	if n > l.opt.MaxBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrTooBig, l.opt.MaxBytes)
	}
	return nil
}

// partial is the state beside a download in work.
type partial struct {
	Version  int    `json:"version"`
	URL      string `json:"url"`
	ETag     string `json:"etag,omitempty"`
	Modified string `json:"modified,omitempty"`
	Total    int64  `json:"total,omitempty"`
	Synced   int64  `json:"synced"` // bytes that are surely on disk
}

// validator is what If-Range needs to be sure that the file is still the same; weak ETags don't do (RFC 9110 13.1.5).
func (p *partial) validator() string {
	if p.ETag != "" && !strings.HasPrefix(p.ETag, "W/") {
		return p.ETag
	}
	return p.Modified
}

type fetch struct {
	l     *Library
	r     *Request
	path  string // of the state
	state partial
	f     *os.File
}

func (l *Library) download(ctx context.Context, r *Request) (*os.File, func(bool), error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, nil, fmt.Errorf("import: %.200q isn't an http or https URL", r.URL)
	}
	sum := sha256.Sum256([]byte(r.URL))
	key := hex.EncodeToString(sum[:])
	l.mu.Lock()
	taken := l.busy[key]
	l.busy[key] = true
	l.mu.Unlock()
	if taken {
		return nil, nil, fmt.Errorf("import %s: %w: another import downloads it", u.Redacted(), ErrBusy)
	}
	base := filepath.Join(l.dir, "partial", key)
	release := func(forget bool) {
		if forget {
			os.Remove(base + ".json")
			os.Remove(base + ".part")
		}
		l.mu.Lock()
		delete(l.busy, key)
		l.mu.Unlock()
	}
	f, err := os.OpenFile(base+".part", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		release(false)
		return nil, nil, err
	}
	w := &fetch{l: l, r: r, path: base + ".json", f: f}
	if b, err := os.ReadFile(w.path); err == nil {
		if json.Unmarshal(b, &w.state) != nil || w.state.Version != 1 || w.state.URL != r.URL {
			w.state = partial{}
		}
	}
	if err := w.run(ctx); err != nil {
		// Kept only if going on makes sense.
		forget := w.state.Synced == 0 || errors.Is(err, ErrTooBig) || errors.As(err, new(*final))
		f.Close()
		release(forget)
		return nil, nil, fmt.Errorf("download %s: %w", u.Redacted(), err)
	}
	return f, release, nil
}

// final is an answer that a retry won't change.
type final struct{ error }

func (f *final) Unwrap() error { return f.error }

func (w *fetch) run(ctx context.Context) error {
	wait := w.l.opt.Backoff
	for try := 1; ; try++ {
		before := w.state.Synced
		err := w.once(ctx)
		if err == nil {
			return nil
		}
		if serr := w.save(); serr != nil {
			return errors.Join(err, serr)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.As(err, new(*final)) || errors.Is(err, ErrTooBig) {
			return err
		}
		if w.state.Synced > before {
			try = 1
		}
		if try >= w.l.opt.Attempts {
			return fmt.Errorf("given up after %d tries: %w; import again to go on at byte %d", try, err, w.state.Synced)
		}
		w.l.opt.Log.Warn("image download cut", "url", w.r.URL, "at", w.state.Synced, "error", err)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
		wait = min(2*wait, time.Minute)
	}
}

// save makes the bytes so far durable, then the state that claims them.
func (w *fetch) save() error {
	n, err := w.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	w.state.Version, w.state.URL, w.state.Synced = 1, w.r.URL, n
	b, err := json.Marshal(w.state)
	if err != nil {
		return err
	}
	tmp := w.path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, w.path)
}

func (w *fetch) once(ctx context.Context) error {
	from := w.state.Synced
	if from > 0 && w.state.validator() == "" {
		from = 0
	}
	if st, err := w.f.Stat(); err != nil || st.Size() < from {
		from = 0
	}
	if w.state.Total > 0 && from == w.state.Total {
		_, err := w.f.Seek(from, io.SeekStart)
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(w.l.opt.Stall, func() { cancel(fmt.Errorf("no byte came for %v", w.l.opt.Stall)) })
	defer stall.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.r.URL, nil)
	if err != nil {
		return &final{err}
	}
	req.Header.Set("Accept-Encoding", "identity")
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		req.Header.Set("If-Range", w.state.validator())
	}
	resp, err := w.l.opt.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	total := resp.ContentLength
	switch {
	case resp.StatusCode == http.StatusOK:
		from = 0
	case resp.StatusCode == http.StatusPartialContent && from > 0:
		start, all, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || start != from {
			w.state = partial{}
			return fmt.Errorf("the server answered with another range (%.80q)", resp.Header.Get("Content-Range"))
		}
		total = all
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		w.state = partial{}
		return errors.New("the server has less than what was downloaded before; starting again")
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("the server answered %s", resp.Status)
	default:
		return &final{fmt.Errorf("the server answered %s", resp.Status)}
	}
	if total > 0 {
		if err := w.l.tooBig(total); err != nil {
			return err
		}
	}
	w.state.Total, w.state.ETag, w.state.Modified = max(total, 0), resp.Header.Get("ETag"), resp.Header.Get("Last-Modified")
	if err := w.f.Truncate(from); err != nil {
		return err
	}
	if _, err := w.f.Seek(from, io.SeekStart); err != nil {
		return err
	}
	return w.body(ctx, resp.Body, from, func() { stall.Reset(w.l.opt.Stall) })
}

func (w *fetch) body(ctx context.Context, body io.Reader, at int64, alive func()) error {
	buf := make([]byte, 256<<10)
	synced := at
	for {
		n, err := body.Read(buf)
		if n > 0 {
			alive()
			if _, werr := w.f.Write(buf[:n]); werr != nil {
				return &final{werr}
			}
			at += int64(n)
			if terr := w.l.tooBig(at); terr != nil {
				return terr
			}
			w.r.Progress(Download, at, w.state.Total)
			if at-synced >= w.l.opt.SyncEvery {
				if serr := w.save(); serr != nil {
					return &final{serr}
				}
				synced = at
			}
		}
		if errors.Is(err, io.EOF) {
			if w.state.Total > 0 && at != w.state.Total {
				return fmt.Errorf("cut at byte %d of %d", at, w.state.Total)
			}
			return w.save()
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
	}
}

// contentRange reads "bytes 100-199/200".
func contentRange(s string) (start, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, all, ok2 := strings.Cut(s, "/")
	first, last, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, false
	}
	start, err1 := strconv.ParseInt(first, 10, 64)
	end, err2 := strconv.ParseInt(last, 10, 64)
	if err1 != nil || err2 != nil || start < 0 || end < start {
		return 0, 0, false
	}
	if all == "*" {
		return start, 0, true
	}
	total, err := strconv.ParseInt(all, 10, 64)
	return start, total, err == nil && total > end
}
