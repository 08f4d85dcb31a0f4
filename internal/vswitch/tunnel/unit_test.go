package tunnel

import (
	"context"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func signalContext() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM)
}

func TestLoadKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	k, err := LoadKey(path)
	must(t, err)
	again, err := LoadKey(path)
	must(t, err)
	if k != again || k == (Key{}) {
		t.Errorf("keys %v and %v", k, again)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	must(t, os.WriteFile(path, []byte("rubbish"), 0o600))
	if _, err := LoadKey(path); err == nil || strings.Contains(err.Error(), "rubbish") {
		t.Errorf("a broken file: %v; want an error that does not show what is in it", err)
	}
}

func key(b byte) Key { return Key{b} }

func peer(b byte, endpoint string) Peer {
	return Peer{key(b), netip.MustParseAddrPort(endpoint), netip.AddrFrom16([16]byte{0xfd, 0x64, 0x72, 0x6f, 0x76, 0x65, 15: b})}
}

func TestChange(t *testing.T) {
	want := Config{Key: key(1), Port: Port, Peers: []Peer{peer(2, "10.0.0.2:51820"), peer(3, "10.0.0.3:51820")}}
	now := state{key: key(1), port: Port, peers: map[Key]*peerState{key(2): {}, key(9): {}}}
	told := map[Key]netip.AddrPort{key(2): want.Peers[0].Endpoint}
	got := change(now, want, told)
	for text, there := range map[string]bool{
		"private_key": false, "listen_port": false, "replace_peers": false,
		"endpoint=10.0.0.2:51820": false, // told already: it may have moved since
		"endpoint=10.0.0.3:51820": true,
		"allowed_ip=fd64:726f:7665::3/128\npersistent_keepalive_interval=25":                                    true,
		"public_key=0900000000000000000000000000000000000000000000000000000000000000\nremove=true\n":            true,
		"public_key=0200000000000000000000000000000000000000000000000000000000000000\nreplace_allowed_ips=true": true,
	} {
		if strings.Contains(got, text) != there {
			t.Errorf("%q in the change: %v, want %v\n%s", text, !there, there, got)
		}
	}
	want.Peers[0].Endpoint = netip.MustParseAddrPort("10.0.0.22:51820")
	if got := change(state{}, want, told); !strings.Contains(got, "endpoint=10.0.0.22:51820") || !strings.Contains(got, "private_key=01") || !strings.Contains(got, "listen_port=51820") {
		t.Errorf("on a fresh device: %s", got)
	}
}

func TestKernelChange(t *testing.T) {
	want := Config{Key: key(1), Port: Port, Peers: []Peer{peer(2, "10.0.0.2:51820"), peer(3, "10.0.0.3:51820")}}
	now := &wgtypes.Device{PrivateKey: key(1), ListenPort: Port, Peers: []wgtypes.Peer{{PublicKey: key(2)}, {PublicKey: key(9)}}}
	got := kernelChange(now, want, map[Key]netip.AddrPort{key(2): want.Peers[0].Endpoint})
	if got.PrivateKey != nil || got.ListenPort != nil || got.ReplacePeers || len(got.Peers) != 3 {
		t.Fatalf("change is %+v", got)
	}
	if p := got.Peers[0]; p.Endpoint != nil || p.AllowedIPs[0].String() != "fd64:726f:7665::2/128" {
		t.Errorf("a peer that stays: %+v", p)
	}
	if p := got.Peers[1]; p.Endpoint.String() != "10.0.0.3:51820" {
		t.Errorf("a new peer: %+v", p)
	}
	if p := got.Peers[2]; p.PublicKey != key(9) || !p.Remove {
		t.Errorf("a peer that is gone: %+v", p)
	}
	if got := kernelChange(&wgtypes.Device{}, want, nil); *got.PrivateKey != want.Key || *got.ListenPort != Port {
		t.Errorf("a fresh device: %+v", got)
	}
}

func TestParseState(t *testing.T) {
	hex := strings.Repeat("05", 32)
	lines := [][2]string{{"private_key", hex}, {"listen_port", "7"}, {"fwmark", "1"}, {"public_key", hex}, {"endpoint", "[2001:db8::1]:9"}, {"last_handshake_time_sec", "100"},
		{"last_handshake_time_nsec", "5"}, {"tx_bytes", "3"}, {"rx_bytes", "4"}, {"protocol_version", "1"}}
	st, err := parseState(lines)
	must(t, err)
	k, _ := parseKeyHex(hex)
	if p := st.peers[k]; st.key != k || st.port != 7 || p == nil || p.endpoint != netip.MustParseAddrPort("[2001:db8::1]:9") || !p.handshake.Equal(time.Unix(100, 5)) || p.tx != 3 || p.rx != 4 {
		t.Errorf("state %+v, peer %+v", st, p)
	}
	if _, err := parseState([][2]string{{"private_key", "xy"}}); err == nil {
		t.Error("a key that is none was read")
	}
}

func TestValidate(t *testing.T) {
	good := Config{Key: key(1), Port: Port, Address: netip.MustParseAddr("fd64:726f:7665::1"), MTU: 1420, Peers: []Peer{peer(2, "10.0.0.2:51820")}}
	must(t, good.Validate())
	for name, change := range map[string]func(*Config){
		"no key":            func(c *Config) { c.Key = Key{} },
		"no port":           func(c *Config) { c.Port = 0 },
		"address elsewhere": func(c *Config) { c.Address = netip.MustParseAddr("fd00::1") },
		"small MTU":         func(c *Config) { c.MTU = 1279 },
		"two with a key": func(c *Config) {
			c.Peers = []Peer{peer(2, "10.0.0.2:1"), {key(2), netip.MustParseAddrPort("10.0.0.3:1"), peer(3, "10.0.0.3:1").Address}}
		},
		"two with an address": func(c *Config) {
			c.Peers = []Peer{peer(2, "10.0.0.2:1"), {key(3), netip.MustParseAddrPort("10.0.0.3:1"), peer(2, "10.0.0.3:1").Address}}
		},
		"itself":            func(c *Config) { c.Peers[0].Address = c.Address },
		"peer without port": func(c *Config) { c.Peers = []Peer{peer(2, "10.0.0.2:0")} },
	} {
		bad := good
		bad.Peers = append([]Peer(nil), good.Peers...)
		change(&bad)
		if bad.Validate() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzParseState(f *testing.F) {
	f.Add("private_key=05\nlisten_port=7\n")
	f.Add("public_key=" + strings.Repeat("05", 32) + "\nendpoint=1.2.3.4:5\nrx_bytes=7\n")
	f.Fuzz(func(t *testing.T, text string) {
		var lines [][2]string
		for l := range strings.SplitSeq(text, "\n") {
			k, v, _ := strings.Cut(l, "=")
			lines = append(lines, [2]string{k, v})
		}
		_, _ = parseState(lines)
	})
}
