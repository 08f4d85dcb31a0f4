package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"drover/internal/vswitch/table"
)

// leaseFile is DIR/leases.json.
type leaseFile struct {
	Version int          `json:"version"`
	Leases  []savedLease `json:"leases"`
}

type savedLease struct {
	Port    string     `json:"port"`
	Net     uint32     `json:"net"`
	Addr    netip.Addr `json:"addr"`
	MAC     string     `json:"mac"`
	Expires time.Time  `json:"expires,omitzero"` // absent: never
}

const leaseVersion = 1

// OpenLeases reads the leases that Save wrote to the directory; those that are over are left out. Where the file can't be read the error says so, and the
// result begins empty and may be used.
func OpenLeases(dir string, now time.Time) (*Leases, error) {
	l := NewLeases()
	l.path = filepath.Join(dir, "leases.json")
	data, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, fmt.Errorf("read leases: %w", err)
	}
	if err := l.load(data, now); err != nil {
		return l, fmt.Errorf("read leases of %s: %w", l.path, err)
	}
	return l, nil
}

func (l *Leases) load(data []byte, now time.Time) error {
	var f leaseFile
	if err := json.Unmarshal(data, &f); err != nil {
		return err
	}
	if f.Version != leaseVersion {
		return fmt.Errorf("version %d, want %d", f.Version, leaseVersion)
	}
	var all []Lease
	for _, s := range f.Leases {
		m, err := net.ParseMAC(s.MAC)
		if err != nil || len(m) != 6 {
			return fmt.Errorf("lease of %s: %q is no MAC", s.Addr, s.MAC)
		}
		all = append(all, Lease{Port: s.Port, Net: s.Net, Addr: s.Addr, MAC: table.MAC(m), Expires: s.Expires})
	}
	l.Adopt(all, now)
	return nil
}

// Save writes the leases so that after a crash there is the old file or the new one, whole.
func (l *Leases) Save() (err error) {
	if l.path == "" {
		return nil
	}
	f := leaseFile{Version: leaseVersion, Leases: []savedLease{}}
	for _, x := range l.All() {
		f.Leases = append(f.Leases, savedLease{Port: x.Port, Net: x.Net, Addr: x.Addr, MAC: macText(x.MAC), Expires: x.Expires})
	}
	data, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return fmt.Errorf("save leases: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("save leases to %s: %w", l.path, err)
		}
	}()
	t, err := os.CreateTemp(filepath.Dir(l.path), ".leases-*")
	if err != nil {
		return err
	}
	_, err = t.Write(append(data, '\n'))
	if err = errors.Join(err, t.Sync(), t.Close()); err != nil {
		return errors.Join(err, os.Remove(t.Name()))
	}
	if err := os.Rename(t.Name(), l.path); err != nil {
		return errors.Join(err, os.Remove(t.Name()))
	}
	d, err := os.Open(filepath.Dir(l.path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
