package pcapng

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/vswitch/frame"
	"drover/internal/vswitch/table"

	"github.com/gopacket/gopacket/pcapgo"
)

var boot = time.Date(2026, 11, 22, 12, 0, 0, 5, time.UTC)

func capture(t *testing.T, describe string, at table.CapturePoint) *table.Capture {
	t.Helper()
	f, err := frame.Describe(describe, frame.Env{MAC: table.MAC{0x52, 0x54, 0, 0, 0, 1}})
	if err != nil {
		t.Fatal(err)
	}
	c := &table.Capture{Time: 1_000_000_001, Ifindex: 7, Point: at, Length: uint32(len(f)), Captured: uint16(len(f))}
	copy(c.Data[:], f)
	return c
}

func file(t *testing.T) []byte {
	t.Helper()
	o := Options{Application: "drover", Hardware: "x86_64", Boot: boot, Name: func(uint32) string { return "web/net0" }}
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	w := New(o)
	b := w.AppendHeader(nil)
	b = w.AppendInterface(b, 7, table.CaptureFromGuest)
	b = w.AppendFrame(b, capture(t, "arp who-has 10.0.0.1", table.CaptureFromGuest))
	dropped := capture(t, "bpdu", table.CaptureDropped)
	dropped.Reason = table.DropBPDU
	b = w.AppendFrame(b, dropped)
	tagged := capture(t, "udp 10.0.0.1", table.CaptureToGuest)
	tagged.VID, tagged.GSOSize, tagged.Length = 0x1000|12, 1400, 9000
	b = w.AppendFrame(b, tagged)
	return w.AppendStatistics(b, 2_000_000_000, 4)
}

func TestTshark(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Fatal("tshark is not installed: run scripts/install-deps")
	}
	name := filepath.Join(t.TempDir(), "x.pcapng")
	if err := os.WriteFile(name, file(t), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tshark, "-n", "-r", name, "-T", "fields", "-E", "separator=|", "-e", "frame.time_epoch", "-e", "frame.interface_name",
		"-e", "frame.interface_description", "-e", "frame.packet_flags_direction", "-e", "frame.comment", "-e", "_ws.col.Protocol", "-e", "vlan.id", "-e", "frame.len", "-e", "frame.cap_len")
	cmd.Env = append(os.Environ(), "TZ=UTC")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	at := "1795348801.000000006"
	want := strings.Join([]string{
		at + "|web/net0 from-guest|what the guest sent, before policy|0x00000001||ARP||42|42",
		at + "|web/net0 dropped|what was dropped; the comment says why|0x00000001|dropped, BPDU: a spanning tree frame from a guest|STP||60|60",
		at + "|web/net0 to-guest|what was delivered to the guest|0x00000002|to be cut into segments of 1400 bytes|UDP|12|9004|52",
		""}, "\n")
	if string(out) != want {
		t.Errorf("tshark:\n%swant\n%s", out, want)
	}
}

func TestStatistics(t *testing.T) {
	r, err := pcapgo.NewNgReader(bytes.NewReader(file(t)), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	frames := 0
	for {
		if _, _, err := r.ReadPacketData(); err != nil {
			break
		}
		frames++
	}
	if frames != 3 || r.NInterfaces() != 3 {
		t.Fatalf("%d frames on %d interfaces, want 3 and 3", frames, r.NInterfaces())
	}
	i, err := r.Interface(0)
	if err != nil {
		t.Fatal(err)
	}
	if i.Statistics.PacketsReceived != 5 {
		t.Errorf("%d frames received, want 5: one was written and four were lost", i.Statistics.PacketsReceived)
	}
}

func TestSnapAndLies(t *testing.T) {
	w := New(Options{Boot: boot, Snap: 10})
	c := capture(t, "bpdu", table.CaptureFromGuest)
	c.VID = 0x1000
	c.Captured = 60000
	b := w.AppendFrame(w.AppendHeader(nil), c)
	r, err := pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	data, info, err := r.ReadPacketData()
	if err != nil || len(data) != 10 || info.Length != 64 {
		t.Errorf("%d bytes of %d, %v; want 10 of 64", len(data), info.Length, err)
	}
}

func TestValidate(t *testing.T) {
	for _, o := range []Options{{}, {Boot: boot, Snap: -1}} {
		if o.Validate() == nil {
			t.Errorf("%+v is valid", o)
		}
	}
}
