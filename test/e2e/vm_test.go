package e2e

import (
	"bytes"
	"image/png"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/lab"
)

// A VM on each site: made, started, seen on its console, asked by HTTP over the WAN by the other, stopped, deleted.
func TestVMsOnBothSites(t *testing.T) {
	t.Parallel()
	r := newRig(t, lab.FleetConfig{})
	image := r.tiny(false)
	began := time.Now()
	for name, site := range map[string]string{"a": "east", "b": "west"} {
		spec := guest(image)
		spec.Placement = &v1.PlacementSpec{Site: site}
		r.create(name, spec)
	}
	urls := map[string]string{}
	for _, name := range []string{"a", "b"} {
		said := r.sees(name, "drover-tiny: ready")
		if !strings.Contains(said, "drover-tiny: init") {
			t.Errorf("console of %s begins with %q", name, said)
		}
		urls[name] = r.ready(name)
	}
	t.Logf("two guests answer after %v", time.Since(began).Round(time.Millisecond))
	a, b := r.get("a"), r.get("b")
	if a.GetStatus().GetSite() != "east" || b.GetStatus().GetSite() != "west" {
		t.Errorf("sites are %s and %s", a.GetStatus().GetSite(), b.GetStatus().GetSite())
	}
	r.pid(a)
	r.pid(b)
	// From inside a guest of one site to a guest of the other, through host, switch, router and WAN.
	before, err := r.Status(t.Context())
	r.must(err)
	if got := r.exec("a", "/bin/busybox", "wget", "-q", "-O", "-", urls["b"]+"/"); !strings.Contains(got, `"hostname":"`) {
		t.Errorf("guest a got %q from guest b", got)
	}
	after, err := r.Status(t.Context())
	r.must(err)
	if before.Links[0].AToB.Packets >= after.Links[0].AToB.Packets || before.Links[0].BToA.Packets >= after.Links[0].BToA.Packets {
		t.Errorf("no packets crossed the WAN: %+v, then %+v", before.Links[0], after.Links[0])
	}
	// The guest agent's word of its addresses comes to the API.
	r.await("b", func(vm *v1.VM) bool {
		for _, nic := range vm.GetStatus().GetNics() {
			for _, a := range nic.GetAddresses() {
				if "http://"+strings.Split(a, "/")[0] == urls["b"] {
					return true
				}
			}
		}
		return false
	})
	began = time.Now()
	r.stop("a", false)
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("the guest took %v to stop: it did not hear the power button", took)
	}
	if _, err := r.API.VM.Delete(t.Context(), &v1.DeleteRequest{Name: "b"}); err == nil {
		t.Error("a VM that runs was deleted without force")
	}
	r.start("a")
	r.ready("a")
	r.stop("a", true)
	r.stop("b", true)
	r.delete("a", "b")
	r.nothing()
}

// The console types, the screen is a picture, a program runs in the guest.
func TestTalkingToAGuest(t *testing.T) {
	t.Parallel()
	r := newRig(t, small("east-1"))
	spec := guest(r.tiny(false))
	r.create("web", spec)
	c, err := r.OpenConsole(r.wait(), "web")
	r.must(err)
	defer c.Close()
	_, err = c.Until("drover-tiny: ready")
	r.must(err)
	r.must(c.Send("echo two-and-two-is-$((2+2))\n"))
	_, err = c.Until("two-and-two-is-4")
	r.must(err)

	shot, err := r.API.VM.Screenshot(t.Context(), &v1.VMActionRequest{Name: "web"})
	r.must(err)
	img, err := png.Decode(bytes.NewReader(shot.GetPng()))
	r.must(err)
	if b := img.Bounds(); b.Dx() < 320 || b.Dy() < 200 {
		t.Errorf("the screen is %v", b)
	}

	if got := r.exec("web", "/bin/busybox", "uname", "-s"); strings.TrimSpace(got) != "Linux" {
		t.Errorf("uname: %q", got)
	}
	out, err := r.API.VM.Exec(t.Context(), &v1.ExecRequest{Name: "web", Path: "/bin/busybox", Args: []string{"sh", "-c", "cat; echo oops >&2; exit 3"}, Stdin: []byte("in")})
	r.must(err)
	if out.GetExitCode() != 3 || string(out.GetStdout()) != "in" || strings.TrimSpace(string(out.GetStderr())) != "oops" {
		t.Errorf("exec: %v", out)
	}
	pid := r.pid(r.get("web"))
	_, err = r.API.VM.Pause(t.Context(), &v1.VMActionRequest{Name: "web"})
	r.must(err)
	r.await("web", lab.Phase(v1.VMPhase_VM_PHASE_PAUSED))
	_, err = r.API.VM.Resume(t.Context(), &v1.VMActionRequest{Name: "web"})
	r.must(err)
	r.ready("web")
	_, err = r.API.VM.Reset(t.Context(), &v1.VMActionRequest{Name: "web"})
	r.must(err)
	_, err = c.Until("drover-tiny: init")
	r.must(err)
	if now := r.pid(r.get("web")); now != pid {
		t.Errorf("a reset made process %d of %d", now, pid)
	}
	r.nothing()
}
