package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/guest"
)

// TestUEFI boots by OVMF into the shell that it has in itself, and sees the machine's own variables written and nothing else.
func TestUEFI(t *testing.T) {
	const code, vars = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
	r := newRig(t, guest.Q35)
	own := filepath.Join(r.dir, "vars.fd")
	fresh, err := os.ReadFile(vars)
	if err != nil {
		t.Fatalf("%v; install ovmf", err)
	}
	if err := os.WriteFile(own, fresh, 0o600); err != nil {
		t.Fatal(err)
	}
	r.spec.Firmware = Firmware{Kind: guest.UEFI, Code: code, Vars: own}
	r.spec.Kernel = nil
	begin := time.Now()
	p := r.start(t, Attach{})
	if err := p.QMP().Cont(testContext(t)); err != nil {
		t.Fatal(err)
	}
	s := &shell{conn: p.Serial(), in: newReader(p.Serial())}
	s.until(t, "UEFI Interactive Shell")
	t.Logf("booted by UEFI in %v", time.Since(begin))
	now, err := os.ReadFile(own)
	if err != nil || bytes.Equal(now, fresh) {
		t.Errorf("the firmware's variables were not written: %v", err)
	}
}

func TestCDROM(t *testing.T) {
	r := newRig(t, guest.Q35, "ahci", "sr_mod")
	iso := func(name, text string) string {
		path := filepath.Join(r.dir, name)
		if err := os.WriteFile(path, append([]byte(text+"\n"), make([]byte, 64<<10)...), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	r.spec.CDROMs = []CDROM{{ID: "cd0", Slot: 0, Path: iso("one", "disc one")}, {ID: "cd1", Slot: 1}}
	p := r.start(t, Attach{})
	sh := boot(t, p)
	ctx := testContext(t)
	sh.eventually(t, "head -n1 /dev/sr0 2>/dev/null", "disc one")
	if err := p.ChangeCD(ctx, "cd0", iso("two", "disc two")); err != nil {
		t.Fatal(err)
	}
	sh.eventually(t, "head -n1 /dev/sr0 2>/dev/null", "disc two")
	if err := p.ChangeCD(ctx, "cd1", iso("three", "disc three")); err != nil {
		t.Fatal(err)
	}
	sh.eventually(t, "head -n1 /dev/sr1 2>/dev/null", "disc three")
	if err := p.ChangeCD(ctx, "cd0", ""); err != nil {
		t.Fatal(err)
	}
	sh.eventually(t, "head -n1 /dev/sr0 2>/dev/null; true", "")
	if c := p.Spec().CDROMs; c[0].Path != "" || c[1].Path == "" {
		t.Errorf("spec: %v", c)
	}
	if err := p.ChangeCD(ctx, "cd9", ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("a drive that is not there: %v", err)
	}
}

func TestScreen(t *testing.T) {
	r := newRig(t, guest.Q35)
	p := r.start(t, Attach{})
	ctx := testContext(t)
	for range 2 { // twice: nothing may be left in QEMU from the first
		img, err := p.Screen(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if b := img.Bounds(); b.Dx() < 320 || b.Dy() < 200 {
			t.Errorf("a screen of %v", b)
		}
	}
	for range 2 {
		conn, err := p.VNC(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		hello := make([]byte, 12)
		if _, err := io.ReadFull(conn, hello); err != nil || string(hello) != "RFB 003.008\n" {
			t.Errorf("VNC greets %q, %v", hello, err)
		}
	}
	h := newRig(t, guest.MicroVM)
	if _, err := h.start(t, Attach{}).VNC(ctx); !errors.Is(err, guest.ErrUnsupported) {
		t.Errorf("a screen on a microvm: %v", err)
	}
}

// TestSharedBase runs two machines on one image, which neither can write.
func TestSharedBase(t *testing.T) {
	a, b := newRig(t, guest.Q35), newRig(t, guest.Q35)
	base := a.image(t, "base", Qcow2, "16M")
	base.Shared = true
	if err := os.Chmod(base.Path, 0o400); err != nil {
		t.Fatal(err)
	}
	b.spec.UUID = strings.Replace(b.spec.UUID, "2f0c", "2f0d", 1)
	b.opt.UID++
	ctx := testContext(t)
	for _, r := range []*rig{a, b} {
		r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: []Layer{base, r.image(t, "top", Qcow2, "16M")}}}
		p := r.start(t, Attach{})
		if err := p.Merge(ctx, "root", "top"); !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), "others") {
			t.Errorf("merged into a shared layer: %v", err)
		}
	}
	// The same layer that is not shared: QEMU's image lock refuses the second machine.
	c := newRig(t, guest.Q35)
	c.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: []Layer{a.spec.Disks[0].Layers[1]}}}
	if p, err := Start(ctx, c.spec, Attach{}, c.opt); err == nil || !strings.Contains(err.Error(), "lock") {
		if err == nil {
			p.Kill(ctx)
		}
		t.Errorf("two writers of one image: %v", err)
	}
}

// TestImagesThatLie checks that QEMU never gets to follow a header or a link.
func TestImagesThatLie(t *testing.T) {
	r := newRig(t, guest.Q35)
	secret := filepath.Join(r.dir, "secret")
	if err := os.WriteFile(secret, bytes.Repeat([]byte("secret"), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	external := filepath.Join(r.dir, "external.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(r.dir, "d")+",data_file_raw=on", external, "1M").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	link := filepath.Join(r.dir, "link")
	if err := os.Symlink(secret, link); err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	for name, l := range map[string]Layer{
		"external data": {ID: "a", Path: external, Format: Qcow2},
		"link":          {ID: "a", Path: link, Format: Raw},
		"directory":     {ID: "a", Path: r.dir, Format: Raw},
		"not qcow2":     {ID: "a", Path: secret, Format: Qcow2},
	} {
		s := r.spec
		s.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: []Layer{l}}}
		if p, err := Start(ctx, s, Attach{}, r.opt); err == nil {
			p.Kill(ctx)
			t.Errorf("%s: started", name)
		}
	}
	// A backing file named in the header is not followed: the graph says null.
	back := r.image(t, "back", Qcow2, "1M", "-b", secret, "-F", "raw")
	r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: []Layer{back}}}
	p := r.start(t, Attach{})
	nodes, err := p.QMP().QueryNamedBlockNodes(ctx)
	if err != nil || len(nodes) != 2 {
		t.Errorf("%d nodes: %v", len(nodes), err)
	}
	maps, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range maps {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", p.PID(), fd.Name())); to == secret {
			t.Error("QEMU has opened the file named in a header")
		}
	}
}

// TestKilled checks what is told of a QEMU that somebody killed.
func TestKilled(t *testing.T) {
	r := newRig(t, guest.Q35)
	p := r.start(t, Attach{})
	exit, err := p.Kill(testContext(t))
	if err != nil || exit.Kind != ExitKilled || exit.String() != "killed by SIGKILL" {
		t.Errorf("exit %v %v", exit, err)
	}
	if err := p.AddDisk(testContext(t), Disk{ID: "x", Bus: guest.VirtioBlk, Layers: []Layer{r.image(t, "x", Raw, "1M")}}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("an operation after the end: %v", err)
	}
	p2 := r.start(t, Attach{}) // the same directory again
	exit, err = p2.Quit(testContext(t))
	if err != nil || exit.Kind != ExitQuit {
		t.Errorf("exit %v %v", exit, err)
	}
	r.opt.UID = 0
	if _, err := Start(testContext(t), r.spec, Attach{}, r.opt); err == nil {
		t.Error("started as root")
	}
}

// TestCleanEndsAnUnknownQEMU is the case of an agent that died between exec and writing down the pid.
func TestCleanEndsAnUnknownQEMU(t *testing.T) {
	r := newRig(t, guest.Q35)
	p := r.start(t, Attach{})
	ctx := testContext(t)
	if err := p.change(func(s *state) { s.PID, s.StartTime = 0, 0 }); err != nil {
		t.Fatal(err)
	}
	p.qmp.Close() // as the dead agent's connection would be
	if err := Clean(ctx, r.opt.Dir); err != nil {
		t.Fatal(err)
	}
	if exit, err := p.Wait(ctx); err != nil || exit.Code > 0 {
		t.Errorf("exit %v %v", exit, err)
	}
	if _, err := os.Stat(filepath.Join(r.opt.Dir, stateFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state after: %v", err)
	}
}

func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseState(b); err == nil {
			if _, err := Make(&s.Spec); err != nil {
				t.Errorf("a state that was accepted makes no plan: %v", err)
			}
		}
	})
}

func FuzzParseProcStat(f *testing.F) {
	f.Add("1 (a) b) S 1 1 1 0 -1 4194560 1 1 1 1 5 6 1 1 20 0 1 0 77 1 88 1")
	f.Fuzz(func(t *testing.T, s string) {
		if st, err := parseProcStat(s); err == nil && st.state == 0 {
			t.Error("no state")
		}
	})
}

func TestParseProcStat(t *testing.T) {
	st, err := parseProcStat("1 (a) b) S 1 1 1 0 -1 4194560 1 1 1 1 5 6 1 1 20 0 1 0 77 1 88 1")
	if err != nil || st != (procStat{'S', 5, 6, 77, 88}) {
		t.Errorf("%+v %v", st, err)
	}
}

func TestCheckImageHeader(t *testing.T) {
	var head [104]byte
	copy(head[:], "QFI\xfb")
	binary.BigEndian.PutUint32(head[4:], 3)
	binary.BigEndian.PutUint64(head[72:], 4)
	path := filepath.Join(t.TempDir(), "x")
	for _, c := range []struct {
		n  int
		ok bool
	}{{104, false}, {79, true}, {0, true}} {
		if err := os.WriteFile(path, head[:c.n], 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := openLayer(path, false)
		if (err == nil) != c.ok {
			t.Errorf("%d bytes: %v", c.n, err)
		}
		if err == nil {
			f.Close()
		}
	}
}
