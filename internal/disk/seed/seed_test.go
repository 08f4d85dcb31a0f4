package seed

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"drover/internal/disk/inspect"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS me@home"

func full() Seed {
	return Seed{
		InstanceID: "i-1", Hostname: "web-1.example.com", SSHKeys: []string{key},
		Users:    []User{{Name: "ops", Sudo: true, Groups: []string{"adm"}, SSHKeys: []string{key}}},
		UserData: []byte("#cloud-config\npackages: [curl]\n"),
		NICs: []NIC{{MAC: "52:54:00:AA:BB:01", Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24"), netip.MustParsePrefix("fd00::3/64")},
			Gateways: []netip.Addr{netip.MustParseAddr("10.1.2.1"), netip.MustParseAddr("fe80::1")},
			DNS:      []netip.Addr{netip.MustParseAddr("10.1.2.2")}, Search: []string{"example.com"}, MTU: 1450},
			{MAC: "52:54:00:aa:bb:02", DHCP4: true}},
	}
}

func isoinfo(t *testing.T, iso []byte, args ...string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "x.iso")
	if err := os.WriteFile(p, iso, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("isoinfo", append([]string{"-i", p}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("isoinfo %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestISOIsReadByOthers(t *testing.T) {
	s := full()
	iso, err := s.ISO()
	if err != nil {
		t.Fatal(err)
	}
	again, _ := full().ISO()
	if !bytes.Equal(iso, again) {
		t.Error("the same seed gave other bytes")
	}
	info, err := inspect.Inspect(bytes.NewReader(iso), int64(len(iso)), inspect.Options{})
	if err != nil || info.Label != "cidata" {
		t.Errorf("our own parser: %+v, %v", info, err)
	}
	d := isoinfo(t, iso, "-d")
	for _, want := range []string{"Volume id: cidata", "Joliet with UCS level 3 found", "Rock Ridge signatures version 1 found"} {
		if !strings.Contains(d, want) {
			t.Errorf("isoinfo -d lacks %q:\n%s", want, d)
		}
	}
	files, err := s.Files()
	if err != nil || len(files) != 3 {
		t.Fatal(err)
	}
	for _, names := range []string{"-R", "-J"} {
		list := isoinfo(t, iso, names, "-f")
		if got := strings.Join(strings.Fields(list), " "); got != "/meta-data /network-config /user-data" {
			t.Errorf("isoinfo %s -f: %s", names, got)
		}
		for _, f := range files {
			if got := isoinfo(t, iso, names, "-x", "/"+f.Name); got != string(f.Data) {
				t.Errorf("%s by %s: %q", f.Name, names, got)
			}
		}
	}
}

func TestContent(t *testing.T) {
	files, err := full().Files()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"meta-data": "instance-id: i-1\nlocal-hostname: web-1.example.com\npublic-keys:\n- " + key + "\n",
		"user-data": "#cloud-config\npackages:\n- curl\nusers:\n- default\n- groups:\n  - adm\n  lock_passwd: true\n  name: ops\n  shell: /bin/bash\n  ssh_authorized_keys:\n  - " + key + "\n  sudo: ALL=(ALL) NOPASSWD:ALL\n",
		"network-config": `ethernets:
  nic0:
    addresses:
    - 10.1.2.3/24
    - fd00::3/64
    dhcp4: false
    dhcp6: false
    match:
      macaddress: 52:54:00:aa:bb:01
    mtu: 1450
    nameservers:
      addresses:
      - 10.1.2.2
      search:
      - example.com
    routes:
    - to: 0.0.0.0/0
      via: 10.1.2.1
    - to: ::/0
      via: fe80::1
  nic1:
    dhcp4: true
    dhcp6: false
    match:
      macaddress: 52:54:00:aa:bb:02
version: 2
`,
	}
	for _, f := range files {
		// A long line may be folded; that means the same in YAML.
		if strings.ReplaceAll(strings.ReplaceAll(string(f.Data), "\n    me@home", " me@home"), "\n  me@home", " me@home") != want[f.Name] {
			t.Errorf("%s:\n%s\nwant:\n%s", f.Name, f.Data, want[f.Name])
		}
	}
	s := full()
	s.UserData = []byte("#cloud-config\nusers: [{name: big, uid: 1000000}]\n")
	if files, err = s.Files(); err != nil || !strings.Contains(string(files[1].Data), "uid: 1000000\n") {
		t.Errorf("a number changed: %s, %v", files[1].Data, err)
	}
	s.Users, s.UserData = nil, []byte("#!/bin/sh\necho   as it is\n")
	files, err = s.Files()
	if err != nil || string(files[1].Data) != string(s.UserData) {
		t.Errorf("a script wasn't passed through: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	for want, change := range map[string]func(*Seed){
		"instance ID":    func(s *Seed) { s.InstanceID = "a\nb: c" },
		"host name":      func(s *Seed) { s.Hostname = "-x" },
		"authorized":     func(s *Seed) { s.SSHKeys = []string{"ssh-rsa nonsense"} },
		"line 3":         func(s *Seed) { s.UserData = []byte("#cloud-config\na: 1\nb: [\n") },
		"already set":    func(s *Seed) { s.UserData = []byte("#cloud-config\na: 1\na: 2\n") },
		"first line":     func(s *Seed) { s.UserData = []byte("packages: [curl]\n") },
		"only be merged": func(s *Seed) { s.UserData = []byte("#!/bin/sh\n") },
		"at most":        func(s *Seed) { s.UserData = make([]byte, MaxUserData+1) },
		"isn't a list":   func(s *Seed) { s.UserData = []byte("#cloud-config\nusers: ops\n") },
		"is there twice": func(s *Seed) { s.UserData = []byte("#cloud-config\nusers: [{name: ops}]\n") },
		"user name":      func(s *Seed) { s.Users[0].Name = "Root; rm" },
		"password hash":  func(s *Seed) { s.Users[0].PasswordHash = "a b" },
		"group name":     func(s *Seed) { s.Users[0].Groups = []string{"a,b"} },
		"isn't a MAC":    func(s *Seed) { s.NICs[0].MAC = "nope" },
		"MAC address 52": func(s *Seed) { s.NICs[1].MAC = s.NICs[0].MAC },
		"gateway":        func(s *Seed) { s.NICs[0].Gateways[0] = netip.MustParseAddr("192.0.2.1") },
		"search domain":  func(s *Seed) { s.NICs[0].Search = []string{"a b"} },
		"MTU":            func(s *Seed) { s.NICs[0].MTU = 5 },
	} {
		s := full()
		change(&s)
		if _, err := s.ISO(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	for _, f := range [][]File{{{"../x", nil}}, {{"a", nil}, {"a", nil}}, {{"a", make([]byte, maxISO+1)}}} {
		if _, err := Build("x", f); err == nil {
			t.Errorf("Build took %.20q", f[0].Name)
		}
	}
}

func FuzzUserData(f *testing.F) {
	f.Add("#cloud-config\nusers: [default, {name: x}]\n")
	f.Add("#cloud-config\na: &a [1]\nb: *a\n")
	f.Fuzz(func(t *testing.T, in string) {
		s := full()
		s.UserData = []byte(in)
		out, err := s.userData()
		if err != nil {
			return
		}
		var doc map[string]any
		if err := yaml.Unmarshal(out, &doc); err != nil || doc["users"] == nil || !bytes.HasPrefix(out, []byte(cloudConfig+"\n")) {
			t.Fatalf("%q became %q: %v", in, out, err)
		}
	})
}
