package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"drover/internal/unwind"
)

// Status is what the daemon tells about a lab.
type Status struct {
	Name   string       `json:"name"`
	PID    int          `json:"pid"` // the daemon's
	Links  []LinkStatus `json:"links"`
	Leases []Lease      `json:"leases"`
}

// errNoLink is answered as 404.
var errNoLink = errors.New("no such WAN link: see the lab's status for the names")

// maxRequest bounds a request's body.
const maxRequest = 64 << 10

// serve answers on the control socket: GET /v1/status, PATCH /v1/wan with a
// WANChange. Only root can reach it: its directory is closed to others.
func (d *daemon) serve(u *unwind.Stack, socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("lab control: %w", err) // of a daemon that was killed
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("lab control: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { respond(w, d.status(), nil) })
	mux.HandleFunc("PATCH /v1/wan", func(w http.ResponseWriter, r *http.Request) {
		var ch WANChange
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
		dec.DisallowUnknownFields()
		err := dec.Decode(&ch)
		if err == nil {
			err = d.change(ch)
		}
		respond(w, d.status(), err)
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	u.Push("close the control socket", func(context.Context) error {
		err := srv.Close()
		if e := <-ended; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
		return err
	})
	return nil
}

func respond(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case errors.Is(err, errNoLink):
		w.WriteHeader(http.StatusNotFound)
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
	}
	if err != nil {
		v = map[string]string{"error": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // the caller may be gone
}

func (d *daemon) status() Status {
	s := Status{Name: d.cfg.Name, PID: os.Getpid(), Links: []LinkStatus{}, Leases: []Lease{}}
	for _, l := range d.links {
		s.Links = append(s.Links, l.status())
	}
	for _, srv := range d.dhcp {
		s.Leases = append(s.Leases, srv.leases()...)
	}
	return s
}

func (d *daemon) change(ch WANChange) error {
	found := false
	for _, l := range d.links {
		if ch.Link == "" || ch.Link == l.Name {
			found = true
			if err := l.change(ch); err != nil {
				return err
			}
		}
	}
	if !found {
		return fmt.Errorf("WAN link %q: %w", ch.Link, errNoLink)
	}
	return nil
}

// Status asks the daemon how the lab does.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	return l.call(ctx, http.MethodGet, "/v1/status", nil)
}

// SetWAN changes the WAN while it runs. When it returns, every packet that
// enters a link meets the new parameters.
func (l *Lab) SetWAN(ctx context.Context, ch WANChange) (Status, error) {
	return l.call(ctx, http.MethodPatch, "/v1/wan", ch)
}

// Cut and restore the WAN between all sites.
func (l *Lab) Cut(ctx context.Context, cut bool) error {
	_, err := l.SetWAN(ctx, WANChange{Cut: &cut})
	return err
}

func (l *Lab) call(ctx context.Context, method, path string, in any) (s Status, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("lab %s: %w", l.cfg.Name, err)
		}
	}()
	body, err := json.Marshal(in)
	if err != nil {
		return s, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, bytes.NewReader(body))
	if err != nil {
		return s, err
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return s, fmt.Errorf("its daemon does not answer (%w): run up again", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return s, err
	}
	if resp.StatusCode != http.StatusOK {
		var e struct{ Error string }
		_ = json.Unmarshal(b, &e) // the status says enough if this fails
		return s, fmt.Errorf("%s: %s", resp.Status, e.Error)
	}
	return s, json.Unmarshal(b, &s)
}
