//go:build soak

// These build an operating system and boot it twice without KVM: some five minutes, too long for each run of the tests.

package osimage

import (
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func debianImage(t testing.TB) *Result {
	t.Helper()
	r, err := BuildDebian(t.Context(), Debian{}, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("debian: %d bytes, cached %v, took %v", r.Size, r.Cached, r.Took)
	return r
}

// overlay is a disk of the given size on top of an image.
func overlay(t testing.TB, image, size string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", path, size).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	return path
}

func TestDebianBIOS(t *testing.T) { testDebian(t) }

func TestDebianUEFI(t *testing.T) {
	vars, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(path, vars, 0o600); err != nil {
		t.Fatal(err)
	}
	testDebian(t, "-drive", "if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd", "-drive", "if=pflash,unit=1,format=raw,file="+path)
}

func testDebian(t *testing.T, firmware ...string) {
	image := debianImage(t)
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	seed := seedISO(t, map[string]string{
		"meta-data": "instance-id: i-1\nlocal-hostname: deb-test\n",
		"user-data": "#cloud-config\nusers:\n  - name: alice\n    shell: /bin/bash\n    sudo: ALL=(ALL) NOPASSWD:ALL\n    ssh_authorized_keys:\n      - " +
			string(ssh.MarshalAuthorizedKey(signer.PublicKey())) + "\nruncmd:\n  - [sh, -c, \"echo DROVER-CLOUD-INIT-DONE > /dev/ttyS0\"]\n",
		"network-config": "version: 2\nethernets:\n  nic0:\n    match:\n      macaddress: \"52:54:00:12:34:56\"\n    dhcp4: true\n",
	})
	g := startGuest(t, "q35", "virtio-net-pci", 22, append(firmware, "-m", "1024", "-smp", "2", "-object", "rng-random,id=rng0", "-device", "virtio-rng-pci,rng=rng0",
		"-drive", "file="+overlay(t, image.Path, "4G")+",format=qcow2,if=none,id=d0,cache=unsafe", "-device", "virtio-blk-pci,drive=d0,bootindex=1",
		"-drive", "file="+seed+",format=raw,readonly=on,if=none,id=cd", "-device", "virtio-blk-pci,drive=cd")...)
	_, login := g.await(`deb-test login:`, 5*time.Minute)
	_, done := g.await(`DROVER-CLOUD-INIT-DONE`, 5*time.Minute)
	t.Logf("login after %v, cloud-init done after %v", login, done)
	g.agent.c.SetReadDeadline(time.Now().Add(time.Minute))
	g.ask(nil, `{"execute":"guest-ping"}`)

	c, err := ssh.Dial("tcp", "127.0.0.1:"+g.port, &ssh.ClientConfig{User: "alice", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	run := func(cmd string) string {
		t.Helper()
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		out, err := s.CombinedOutput(cmd)
		if err != nil {
			t.Errorf("%s: %v: %s", cmd, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	t.Log(run("systemd-analyze; systemd-analyze blame | head -15"))
	if h := run("hostname"); h != "deb-test" {
		t.Errorf("hostname %q", h)
	}
	if s := run("df --output=size -BM / | tail -1"); len(s) < 5 || s < "3500M" {
		t.Errorf("the root has %s: it did not grow to the disk's 4 GiB", s)
	}
	if s := run("systemctl --failed --plain --no-legend"); s != "" {
		t.Errorf("failed units: %s", s)
	}
	if s := run("sudo passwd -S root | cut -d' ' -f2; sudo passwd -S alice | cut -d' ' -f2"); s != "L\nL" {
		t.Errorf("passwords are not locked: %q", s)
	}
	if s := run("cat /etc/apt/sources.list; ls /etc/apt/sources.list.d /etc/apt/apt.conf.d"); !regexp.MustCompile(`(?m)^deb http\S+ bookworm main`).MatchString(s) ||
		strings.Contains(strings.ToLower(s), "mmdebstrap") {
		t.Errorf("apt: %s", s)
	}
	g.command(`{"execute":"system_powerdown"}`)
	g.awaitExit(2 * time.Minute)
}
