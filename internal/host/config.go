package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/clock"
	"drover/internal/hostnet"
)

// Config is what `drover host` is started with. StateDir, and for the first start Manager and JoinToken, must be set.
type Config struct {
	// Manager is the manager's address:port. Kept from the first start on.
	Manager string
	// JoinToken is the one-time token of the first start; ignored once there is a certificate.
	JoinToken string
	// StateDir keeps what must survive a reboot: certificate, records, the host's own datastore.
	StateDir string
	// RunDir keeps sockets and other things of this boot. Empty: StateDir/run.
	RunDir string
	// ShmDir is a directory in a tmpfs for guests' memory. Empty: /dev/shm/drover-HASH, by the state directory's path.
	ShmDir string
	// Listen is where the host's own API is served. Empty: ":7444".
	Listen string
	// ListenNBD is where disks of protection points are served to programs of others. Empty: port 7445 of Listen's address.
	ListenNBD string
	// Advertise is the address:port that the manager calls. Empty: the local address of the way to the manager, with
	// Listen's port.
	Advertise string
	// Uplinks are the NICs that VMs' frames leave by: the team "default", unless the host's record names teams.
	Uplinks []string
	// OverlayAddress is where other hosts reach this one for overlays. Empty: the address that the manager calls.
	OverlayAddress string
	// Tunnel is the command that serves an encrypted tunnel with the arguments that are added (vswitch/tunnel.Serve), in a process of its own. Empty: this host
	// has no encrypted tunnels.
	Tunnel []string
	// RepositoriesOnly makes a host that serves repositories and runs no VMs: it needs no QEMU and no privileges, has no datastores and no switch.
	RepositoriesOnly bool
	// Datastores besides the host's own, known before the manager names them.
	Datastores []DatastorePath
	// Hostname to enrol with when the token names none. Empty: the machine's.
	Hostname string
	// QEMU is the system emulator. Empty: qemu-system-x86_64, found in PATH.
	QEMU string
	// Version of this binary.
	Version string
	// ConsoleBytes is the size of a VM's console ring. 0: 256 KiB.
	ConsoleBytes int64
	// SampleInterval is how often metrics are taken. 0: 15 s.
	SampleInterval time.Duration
	// BootID stands for the kernel's, so that a test can pretend a reboot. Empty: the kernel's.
	BootID string

	// Vault opens the repository that the manager names for an operation, for tests. Nil: over mutual TLS, as the target says.
	Vault func(context.Context, *v1.VaultTarget) (r backup.Repository, closer func(), err error)

	Log   *slog.Logger
	Clock clock.Clock
}

// DatastorePath names a directory for disks.
type DatastorePath struct{ Name, Path string }

// ErrConfig is wrapped by what Validate finds.
var ErrConfig = errors.New("host: bad configuration")

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// sunPath is how long a Unix socket's path may be (sun_path, less its end), and longestSocket what the agent appends.
const (
	sunPath       = 107
	longestSocket = len("/vms/12345678-1234-1234-1234-123456789abc/console.sock")
)

// Validate checks the configuration and fills in defaults.
func (c *Config) Validate() error {
	if c.StateDir == "" {
		return fmt.Errorf("%w: no state directory; give one by --state", ErrConfig)
	}
	var err error
	if c.StateDir, err = filepath.Abs(c.StateDir); err != nil {
		return fmt.Errorf("%w: state directory %s: %w", ErrConfig, c.StateDir, err)
	}
	if c.RunDir == "" {
		c.RunDir = filepath.Join(c.StateDir, "run")
	}
	if c.RunDir, err = filepath.Abs(c.RunDir); err != nil {
		return fmt.Errorf("%w: run directory %s: %w", ErrConfig, c.RunDir, err)
	}
	if n := len(c.RunDir) + longestSocket; n > sunPath {
		return fmt.Errorf("%w: run directory %s is %d characters too long for sockets below it; choose a shorter one by --run",
			ErrConfig, c.RunDir, n-sunPath)
	}
	if c.ShmDir == "" {
		c.ShmDir = shmDir(c.StateDir)
	}
	if c.Listen == "" {
		c.Listen = ":7444"
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("%w: --listen %q is not ADDRESS:PORT: %w", ErrConfig, c.Listen, err)
	}
	if c.ListenNBD == "" {
		host, _, err := net.SplitHostPort(c.Listen)
		if err != nil {
			return err
		}
		c.ListenNBD = net.JoinHostPort(host, "7445")
	}
	for what, addr := range map[string]string{"--manager": c.Manager, "--advertise": c.Advertise, "--listen-nbd": c.ListenNBD} {
		if addr == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("%w: %s %q is not ADDRESS:PORT: %w", ErrConfig, what, addr, err)
		}
	}
	seen := map[string]bool{}
	for _, n := range c.Uplinks {
		if err := hostnet.CheckName(n); err != nil {
			return fmt.Errorf("%w: --uplink: %w", ErrConfig, err)
		}
		if seen["u/"+n] {
			return fmt.Errorf("%w: --uplink %s is given twice", ErrConfig, n)
		}
		seen["u/"+n] = true
	}
	if c.OverlayAddress != "" {
		if a, err := netip.ParseAddr(c.OverlayAddress); err != nil || a.Zone() != "" || !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("%w: --overlay-address %q: want an address of this machine, without a port", ErrConfig, c.OverlayAddress)
		}
	}
	for i, d := range c.Datastores {
		if !label.MatchString(d.Name) {
			return fmt.Errorf("%w: --datastore %q: a datastore's name is a DNS label", ErrConfig, d.Name)
		}
		if seen["d/"+d.Name] {
			return fmt.Errorf("%w: --datastore %s is given twice", ErrConfig, d.Name)
		}
		seen["d/"+d.Name] = true
		if c.Datastores[i].Path, err = filepath.Abs(d.Path); err != nil || strings.TrimSpace(d.Path) == "" {
			return fmt.Errorf("%w: --datastore %s: no usable path %q", ErrConfig, d.Name, d.Path)
		}
	}
	if c.QEMU == "" {
		c.QEMU = "qemu-system-x86_64"
	}
	if c.ConsoleBytes == 0 {
		c.ConsoleBytes = 256 << 10
	}
	if c.SampleInterval == 0 {
		c.SampleInterval = 15 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = clock.Real()
	}
	return nil
}
