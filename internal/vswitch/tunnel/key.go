package tunnel

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Key is a WireGuard key, private or public.
type Key = wgtypes.Key

// ParseKey reads a key in base64, as Peer.tunnel_key has it.
func ParseKey(s string) (Key, error) {
	k, err := wgtypes.ParseKey(s)
	if err != nil {
		return Key{}, fmt.Errorf("tunnel key %q: want 32 bytes in base64: %w", s, err)
	}
	return k, nil
}

// LoadKey reads a host's private key from a file that only root can read, and makes both if there is none.
func LoadKey(path string) (Key, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		k, err := ParseKey(strings.TrimSpace(string(b)))
		if err != nil {
			return Key{}, fmt.Errorf("%s does not hold a tunnel key; remove it to make a new one", path)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			return Key{}, fmt.Errorf("tunnel key: %w", err)
		}
		return k, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return Key{}, fmt.Errorf("tunnel key: %w", err)
	}
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return Key{}, fmt.Errorf("make a tunnel key: %w", err)
	}
	if err := writeKey(path, k); err != nil {
		return Key{}, fmt.Errorf("keep the tunnel key: %w", err)
	}
	return k, nil
}

// writeKey leaves a whole file or none.
func writeKey(path string, k Key) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(base64.StdEncoding.EncodeToString(k[:]) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
