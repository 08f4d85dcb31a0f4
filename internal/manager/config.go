package manager

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"drover/internal/clock"
)

// Config is what a manager is started with.
type Config struct {
	// StateDir holds everything that must not be lost: etcd's data, certificates, images, history.
	StateDir string
	// Listen is the TCP address of the API, "address:port".
	Listen string
	// Advertise are the addresses by which hosts and people reach the manager; they stand in its certificate and in join
	// tokens. Default: those of Listen, or of all interfaces.
	Advertise []string
	// Socket is the path of the Unix socket; default StateDir/manager.sock.
	Socket string
	// Etcd are the endpoints of an external cluster; empty runs one inside.
	Etcd []string
	// EtcdCA, EtcdCert and EtcdKey are PEM files for an external cluster over TLS.
	EtcdCA, EtcdCert, EtcdKey string
	// HostTimeout is how long a host may be silent before it is called unreachable. Default 15 s.
	HostTimeout time.Duration
	// SMTP is how mail is sent; without a server none is.
	SMTP SMTP
	// Zone is whose clocks policies go by that name no time zone; the machine's if nil.
	Zone *time.Location
	// Outbound sends webhooks; nil: a client that does not reach this machine and its link.
	Outbound *http.Client
	// Clock is the real one if nil.
	Clock  clock.Clock
	Logger *slog.Logger
	// Version of the binary.
	Version string
}

// Default values of Config.
const (
	DefaultState  = "/var/lib/drover/manager"
	DefaultListen = ":7443"
)

// Validate fills in defaults and says what is wrong.
func (c *Config) Validate() error {
	if c.StateDir == "" {
		c.StateDir = DefaultState
	}
	if !filepath.IsAbs(c.StateDir) {
		return fmt.Errorf("state directory %q: must be an absolute path", c.StateDir)
	}
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("listen address %q: must be ADDRESS:PORT, such as :7443", c.Listen)
	}
	if c.Socket == "" {
		c.Socket = filepath.Join(c.StateDir, "manager.sock")
	}
	if len(c.Socket) > 107 {
		return fmt.Errorf("socket path %q: has %d bytes, the kernel takes 107; choose a shorter --state", c.Socket, len(c.Socket))
	}
	if len(c.Etcd) == 0 && c.EtcdCA+c.EtcdCert+c.EtcdKey != "" {
		return errors.New("certificates for etcd were given, but no endpoints")
	}
	if c.HostTimeout == 0 {
		c.HostTimeout = 15 * time.Second
	}
	if c.HostTimeout < time.Second {
		return fmt.Errorf("host timeout %v: at least 1s", c.HostTimeout)
	}
	if err := c.SMTP.validate(); err != nil {
		return err
	}
	if c.Zone == nil {
		c.Zone = time.Local
	}
	if c.Clock == nil {
		c.Clock = clock.Real()
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Version == "" {
		c.Version = "unknown"
	}
	return nil
}

func (c *Config) path(name string) string { return filepath.Join(c.StateDir, name) }
