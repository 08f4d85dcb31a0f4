package e2e

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/osimage"

	"golang.org/x/crypto/ssh"
)

// A Debian boots by BIOS and by UEFI, takes its user data and key from cloud-init, and is spoken to by guest agent and by
// ssh. Without KVM both together take some three minutes: it is one of the long tests.
func TestDebian(t *testing.T) {
	if os.Getenv("DROVER_SOAK") == "" {
		t.Skip("takes minutes without KVM: set DROVER_SOAK=1")
	}
	r := newRig(t, small("east-1", "east-2"))
	image, err := osimage.BuildDebian(t.Context(), osimage.Debian{}, osimage.Options{})
	r.must(err)
	r.must(r.PutImage(r.wait(), "debian-12", image.Path))
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	r.must(err)
	signer, err := ssh.NewSignerFromKey(key)
	r.must(err)
	public, err := ssh.NewPublicKey(pub)
	r.must(err)
	firmware := map[string]v1.Firmware{"bios": v1.Firmware_FIRMWARE_BIOS, "uefi": v1.Firmware_FIRMWARE_UEFI}
	began := time.Now()
	for name, fw := range firmware {
		spec := guest("")
		spec.MemoryBytes = 512 << 20
		spec.Hardware = &v1.Hardware{Firmware: fw}
		spec.Disks = []*v1.DiskSpec{{Name: "root", Image: "debian-12", SizeBytes: 4 << 30}}
		spec.CloudInit = &v1.CloudInit{
			Enabled: true, Hostname: "host-" + name, User: "ann", SshAuthorizedKeys: []string{string(ssh.MarshalAuthorizedKey(public))},
			UserData: "#cloud-config\nwrite_files:\n- path: /etc/drover-test\n  content: told by user data\n",
		}
		r.create(name, spec)
	}
	for name, fw := range firmware {
		deadline := time.Now().Add(10 * time.Minute)
		vm := r.running(name)
		for len(vm.GetStatus().GetNics()[0].GetAddresses()) == 0 && time.Now().Before(deadline) {
			vm, err = r.AwaitVM(r.wait(), name, func(vm *v1.VM) bool { return len(vm.GetStatus().GetNics()[0].GetAddresses()) > 0 })
		}
		r.must(err)
		t.Logf("%s: the guest agent tells its address after %v", name, time.Since(began).Round(time.Second))
		addr, err := r.Address(r.wait(), vm, "eth0")
		r.must(err)
		if got := strings.Join(vm.GetStatus().GetNics()[0].GetAddresses(), " "); !strings.Contains(got, addr) {
			t.Errorf("%s has %s, its agent tells %s", name, addr, got)
		}
		if g := vm.GetStatus().GetGuest(); g.GetHostname() != "host-"+name || !strings.Contains(g.GetOs(), "Debian") {
			t.Errorf("%s: the guest agent tells %v", name, g)
		}
		// cloud-init's later stages end some time after the agent is there.
		r.eventually(func() error {
			out, err := r.API.VM.Exec(t.Context(), &v1.ExecRequest{Name: name, Path: "/bin/cat", Args: []string{"/etc/drover-test"}})
			if err == nil && string(out.GetStdout()) != "told by user data" {
				err = errors.New("user data: " + string(out.GetStdout()) + string(out.GetStderr()))
			}
			return err
		})
		said := r.ssh(addr, signer, "id -un; ls -d /sys/firmware/efi || true; df --output=size -B1 / | tail -1; sudo cloud-init status --wait")
		lines := strings.Fields(said)
		if lines[0] != "ann" || strings.Contains(said, "/sys/firmware/efi") != (fw == v1.Firmware_FIRMWARE_UEFI) || !strings.Contains(said, "status: done") {
			t.Errorf("%s says by ssh: %s", name, said)
		}
		for _, f := range lines {
			if n, err := strconv.ParseInt(f, 10, 64); err == nil && n < 3<<30 {
				t.Errorf("%s: its root has %d bytes of a disk of 4 GiB", name, n)
			}
		}
	}
	for name := range firmware {
		r.stop(name, false)
	}
	if e := r.events("uefi"); !strings.Contains(e, "VM_STOPPED") {
		t.Errorf("events: %s", e)
	}
	r.nothing()
}

// ssh runs a command in a guest, as user ann, when its sshd is there.
func (r *rig) ssh(addr string, signer ssh.Signer, command string) string {
	r.t.Helper()
	var out bytes.Buffer
	r.eventually(func() error {
		conn, err := r.Dial(r.wait(), r.Router("east"), "tcp", addr+":22")
		if err != nil {
			return err
		}
		defer conn.Close()
		c, chans, reqs, err := ssh.NewClientConn(conn, addr, &ssh.ClientConfig{
			User: "ann", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), // it was made just now
		})
		if err != nil {
			return err
		}
		client := ssh.NewClient(c, chans, reqs)
		defer client.Close()
		s, err := client.NewSession()
		if err != nil {
			return err
		}
		defer s.Close()
		out.Reset()
		s.Stdout = &out
		return s.Run(command)
	})
	return out.String()
}
