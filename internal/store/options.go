package store

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"time"
)

// Options says which etcd to use: Dir or Endpoints, exactly one.
type Options struct {
	// Dir is the data directory of the embedded server. It is made if it is missing.
	Dir string
	// Endpoints of an external cluster: https://HOST:PORT, unix:///PATH, or http:// on loopback only.
	Endpoints []string
	// TLS authenticates both sides to an external cluster; required for https endpoints.
	TLS *tls.Config
	// RequestTimeout bounds each single read or write; 0 means 5 s. A write that was under way when the cluster's
	// leader died is only given up by it.
	RequestTimeout time.Duration
	// QuotaBytes bounds the embedded server's database; 0 means 2 GiB.
	QuotaBytes int64
	// KeepRevisions is how much history the embedded server keeps for watchers that resume; 0 means 10,000.
	// The server looks every five minutes.
	KeepRevisions int64
	// Logger gets what etcd has to say, too; required.
	Logger *slog.Logger

	// unsafeNoFsync makes tests that are not about durability fast.
	unsafeNoFsync bool
}

// Validate checks and fills in defaults.
func (o *Options) Validate() error {
	if (o.Dir == "") == (len(o.Endpoints) == 0) {
		return fmt.Errorf("%w: give either a state directory or the endpoints of an etcd cluster", ErrInvalid)
	}
	if o.Logger == nil {
		return fmt.Errorf("%w: store options have no logger", ErrInvalid)
	}
	for _, e := range o.Endpoints {
		if err := checkEndpoint(e, o.TLS != nil); err != nil {
			return err
		}
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = 5 * time.Second
	}
	if o.QuotaBytes == 0 {
		o.QuotaBytes = 2 << 30
	}
	if o.KeepRevisions == 0 {
		o.KeepRevisions = 10_000
	}
	if o.RequestTimeout < 0 || o.QuotaBytes < 0 || o.KeepRevisions < 0 {
		return fmt.Errorf("%w: store options are negative", ErrInvalid)
	}
	return nil
}

// checkEndpoint refuses what would send state over a network unauthenticated.
func checkEndpoint(e string, hasTLS bool) error {
	u, err := url.Parse(e)
	if err != nil {
		return fmt.Errorf("%w: etcd endpoint %q: %w", ErrInvalid, e, err)
	}
	switch u.Scheme {
	case "unix":
		return nil
	case "https":
		if !hasTLS {
			return fmt.Errorf("%w: etcd endpoint %q needs a CA and a client certificate", ErrInvalid, e)
		}
		return nil
	case "http":
		if ip := net.ParseIP(u.Hostname()); (ip == nil || !ip.IsLoopback()) && u.Hostname() != "localhost" {
			return fmt.Errorf("%w: etcd endpoint %q is not encrypted and not on this machine; use https", ErrInvalid, e)
		}
		return nil
	}
	return fmt.Errorf("%w: etcd endpoint %q: want https://HOST:PORT or unix:///PATH", ErrInvalid, e)
}
