package osimage

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kdomanski/iso9660"

	"drover/internal/kernelimage"
)

// tinyImage builds or finds the tiny guest and lays out its files.
func tinyImage(t testing.TB, kernel string) *kernelimage.Extracted {
	t.Helper()
	r, err := BuildTiny(t.Context(), Tiny{Kernel: kernel}, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(r.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	x, err := kernelimage.Extract(context.Background(), f, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("tiny: %d bytes, cached %v, took %v", r.Size, r.Cached, r.Took)
	return x
}

func boot(x *kernelimage.Extracted, more string) []string {
	return []string{"-m", "256", "-kernel", x.Kernel, "-initrd", x.Initrd, "-append", strings.TrimSpace(x.Cmdline + " " + more)}
}

// seedISO writes a NoCloud seed.
func seedISO(t testing.TB, files map[string]string) string {
	t.Helper()
	w, err := iso9660.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Cleanup()
	for n, s := range files {
		if err := w.AddFile(strings.NewReader(s), n); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "seed.iso")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := w.WriteTo(f, "cidata"); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTinyOnQ35(t *testing.T) {
	x := tinyImage(t, "cloud")
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	g := startGuest(t, "q35", "virtio-net-pci", 80, append(boot(x, ""), "-drive", "file="+disk+",format=raw,if=none,id=d0", "-device", "virtio-blk-pci,drive=d0,serial=test-1")...)
	_, first := g.await(`\n`, time.Minute)
	if l, _, _ := strings.Cut(g.console(), "\n"); strings.TrimSpace(l) != "drover-tiny: init" {
		t.Errorf("the first console line is %q", l)
	}
	line, ready := g.await(`drover-tiny: ready .*\n`, time.Minute)
	t.Logf("first line after %v, ready after %v", first, ready)
	if want := "drover-tiny: ready drover-tiny 10.0.2.15"; !strings.HasPrefix(line, want) {
		t.Errorf("ready line %q, want %q", line, want)
	}

	about := g.getJSON("/")
	if about["hostname"] != "drover-tiny" || about["cpus"] != 1.0 || about["uptime"].(float64) <= 0 {
		t.Errorf("about: %v", about)
	}
	if a, b := g.get("/counter"), g.get("/counter"); a != "1\n" || b != "2\n" {
		t.Errorf("counter gave %q, then %q", a, b)
	}

	disks := g.getJSON("/disk/list")
	if vda, _ := disks["vda"].(map[string]any); vda["size"] != float64(16<<20) || vda["serial"] != "test-1" {
		t.Errorf("disks: %v", disks)
	}
	wrote := g.getJSON("/disk/write?dev=vda&offset=4096&size=1048576&seed=7")
	read := g.getJSON("/disk/read?dev=vda&offset=4096&size=1048576")
	if wrote["ok"] != true || wrote["sha256"] != read["sha256"] {
		t.Errorf("wrote %v, read %v", wrote, read)
	}
	if v := g.getJSON("/disk/verify?dev=vda&offset=8192&size=4096&seed=7"); v["ok"] != true {
		t.Errorf("verify: %v", v)
	}
	if v := g.getJSON("/disk/verify?dev=vda&offset=0&size=8192&seed=7"); v["ok"] != false || v["offset"] != 0.0 {
		t.Errorf("verify of an unwritten block: %v", v)
	}

	if l := g.getJSON("/load?mb=8&rate=100"); l["mb"] != 8.0 {
		t.Errorf("load: %v", l)
	}
	if l := g.getJSON("/load?mb=0"); l["mb"] != 0.0 {
		t.Errorf("load after its end: %v", l)
	}
	g.getJSON("/heartbeat?ms=20")
	g.await(`drover-tiny: heartbeat 3\r?\n`, 20*time.Second)
	g.getJSON("/heartbeat?ms=0")

	testTinyAgent(t, g)
	g.command(`{"execute":"system_powerdown"}`)
	g.await(`drover-tiny: power button`, 20*time.Second)
	g.awaitExit(20 * time.Second)
}

func testTinyAgent(t *testing.T, g *testGuest) {
	t.Helper()
	var id int
	if g.ask(&id, "\xff"+`{"execute":"guest-sync-delimited","arguments":{"id":4711}}`); id != 4711 {
		t.Errorf("sync gave %d", id)
	}
	g.ask(nil, `{"execute":"guest-ping"}`)
	var host struct {
		Name string `json:"host-name"`
	}
	if g.ask(&host, `{"execute":"guest-get-host-name"}`); host.Name != "drover-tiny" {
		t.Errorf("host name %q", host.Name)
	}
	var nics []struct {
		Name      string
		MAC       string `json:"hardware-address"`
		Addresses []struct {
			IP string `json:"ip-address"`
		} `json:"ip-addresses"`
	}
	g.ask(&nics, `{"execute":"guest-network-get-interfaces"}`)
	if len(nics) != 2 || nics[1].MAC != "52:54:00:12:34:56" || len(nics[1].Addresses) == 0 || nics[1].Addresses[0].IP != "10.0.2.15" {
		t.Errorf("interfaces: %+v", nics)
	}
	var run struct{ PID int }
	g.ask(&run, `{"execute":"guest-exec","arguments":{"path":"/bin/sh","arg":["-c","read x; echo got $x; exit 3"],"input-data":"`+
		base64.StdEncoding.EncodeToString([]byte("this\n"))+`","capture-output":true}}`)
	var st struct {
		Exited   bool
		ExitCode int    `json:"exitcode"`
		Out      []byte `json:"out-data"`
	}
	for end := time.Now().Add(20 * time.Second); !st.Exited && time.Now().Before(end); {
		g.ask(&st, fmt.Sprintf(`{"execute":"guest-exec-status","arguments":{"pid":%d}}`, run.PID))
	}
	if !st.Exited || st.ExitCode != 3 || string(st.Out) != "got this\n" {
		t.Errorf("exec: %+v, output %q", st, st.Out)
	}
	var frozen int
	g.ask(&frozen, `{"execute":"guest-fsfreeze-freeze"}`)
	var state string
	if g.ask(&state, `{"execute":"guest-fsfreeze-status"}`); frozen != 0 || state != "thawed" {
		t.Errorf("froze %d file systems of a guest without any; state %q", frozen, state)
	}
}

func TestTinySeedHotplugAndEcho(t *testing.T) {
	x := tinyImage(t, "cloud")
	seed := seedISO(t, map[string]string{
		"meta-data": "instance-id: i-1\nlocal-hostname: seeded\n",
		"user-data": "#cloud-config\n",
		"network-config": "version: 2\nethernets:\n  nic0:\n    match:\n      macaddress: \"52:54:00:12:34:56\"\n    addresses:\n      - 10.0.2.15/24\n    routes:\n" +
			"      - to: default\n        via: 10.0.2.2\n  nic1:\n    match: {macaddress: '52:54:00:12:34:57'}\n    addresses: [192.0.2.7/24]\n    mtu: 1400\n",
	})
	g := startGuest(t, "q35", "virtio-net-pci", 7, append(boot(x, ""), "-device", "virtio-scsi-pci", "-drive", "file="+seed+",format=raw,readonly=on,if=none,id=cd",
		"-device", "scsi-cd,drive=cd", "-device", "pcie-root-port,id=rp0,chassis=1,slot=1")...)
	line, _ := g.await(`drover-tiny: ready .*\n`, time.Minute)
	if strings.TrimSpace(line) != "drover-tiny: ready seeded 10.0.2.15" {
		t.Errorf("ready line %q", line)
	}
	g.command(`{"execute":"netdev_add","arguments":{"type":"user","id":"n1","restrict":true}}`)
	g.command(`{"execute":"device_add","arguments":{"driver":"virtio-net-pci","netdev":"n1","mac":"52:54:00:12:34:57","bus":"rp0","id":"hot"}}`)
	g.await(`drover-tiny: nic eth1 52:54:00:12:34:57 192.0.2.7/24`, 30*time.Second)
	g.command(`{"execute":"device_del","arguments":{"id":"hot"}}`)
	g.await(`drover-tiny: nic eth1 gone`, 30*time.Second)

	c, err := net.DialTimeout("tcp", "127.0.0.1:"+g.port, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l := &lineConn{t: t, c: c, r: bufio.NewReader(c)}
	l.send("hello there\n")
	if s := l.line(10 * time.Second); s != "hello there" {
		t.Errorf("echo gave %q", s)
	}
	g.agent.send(`{"execute":"guest-shutdown"}` + "\n")
	g.await(`drover-tiny: shutdown: powerdown`, 20*time.Second)
	g.awaitExit(20 * time.Second)
}

func TestTinyOnMicroVM(t *testing.T) {
	x := tinyImage(t, "cloud")
	g := startGuest(t, "microvm,acpi=on", "virtio-net-device", 80, boot(x, "tsc_early_khz="+tscKHz(t))...)
	_, first := g.await(`drover-tiny: init`, time.Minute)
	_, ready := g.await(`drover-tiny: ready drover-tiny 10\.0\.2\.15`, time.Minute)
	t.Logf("first line after %v, ready after %v", first, ready)
	if g.get("/counter") != "1\n" {
		t.Error("counter did not start at 1")
	}
	g.ask(nil, `{"execute":"guest-ping"}`)
	g.command(`{"execute":"system_powerdown"}`)
	g.awaitExit(20 * time.Second)
}

// tscKHz is the host's TSC frequency as far as the kernel tells.
func tscKHz(t testing.TB) string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`cpu MHz\s*: (\d+)\.(\d{3})`).FindSubmatch(b)
	if m == nil {
		return "2500000"
	}
	return string(m[1]) + string(m[2])
}

// Each NIC model that Drover offers, with the kernel that drives it.
func TestTinyNICs(t *testing.T) {
	for _, c := range []struct{ nic, kernel, driver string }{
		{"vmxnet3", "cloud", "vmxnet3"},
		{"e1000", "full", "e1000"},
		{"e1000e", "full", "e1000e"},
		{"pcnet", "full", "pcnet32"},
		{"rtl8139", "full", "8139cp"},
	} {
		t.Run(c.nic, func(t *testing.T) {
			x := tinyImage(t, c.kernel)
			g := startGuest(t, "q35", c.nic, 80, boot(x, "")...)
			_, ready := g.await(`drover-tiny: ready drover-tiny 10\.0\.2\.15`, time.Minute)
			t.Logf("kernel %s: ready after %v", c.kernel, ready)
			nics, _ := g.getJSON("/")["nics"].(map[string]any)
			if eth0, _ := nics["eth0"].(map[string]any); eth0["driver"] != c.driver {
				t.Errorf("driver %v, want %s", eth0["driver"], c.driver)
			}
		})
	}
}

func TestTinyConsoleShell(t *testing.T) {
	x := tinyImage(t, "cloud")
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	g := startGuestStdin(t, in, "q35", "virtio-net-pci", 80, boot(x, "")...)
	g.await(`drover-tiny:\S+# `, time.Minute)
	fmt.Fprint(out, "echo $((6*7)) on $(hostname)\n")
	g.await(`\n42 on drover-tiny`, 20*time.Second)
}
