package shark

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Fields returns, for each Ethernet frame, the values of the fields, several values of one joined by "|". Frames that tshark finds malformed,
// or with wrong checksums, fail the test.
func Fields(t testing.TB, frames [][]byte, fields ...string) [][]string {
	t.Helper()
	tool, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("tshark is not installed: scripts/install-deps installs it")
	}
	var b bytes.Buffer
	le := binary.LittleEndian
	b.Write(le.AppendUint32(nil, 0xa1b2c3d4)) // pcap, draft-ietf-opsawg-pcap
	b.Write(le.AppendUint32(nil, 4<<16|2))
	b.Write(make([]byte, 8))
	b.Write(le.AppendUint32(nil, 1<<16))
	b.Write(le.AppendUint32(nil, 1)) // Ethernet
	for _, f := range frames {
		b.Write(make([]byte, 8))
		b.Write(le.AppendUint32(le.AppendUint32(nil, uint32(len(f))), uint32(len(f))))
		b.Write(f)
	}
	path := filepath.Join(t.TempDir(), "frames.pcap")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-n", "-r", path, "-T", "fields", "-E", "separator=/t", "-E", "aggregator=|", "-e", "_ws.malformed", "-e", "_ws.expert.message",
		"-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), tool, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, stderr.String())
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(frames) {
		t.Fatalf("tshark sees %d frames in %d: %s", len(lines), len(frames), out)
	}
	var all [][]string
	for i, l := range lines {
		f := strings.Split(l, "\t")
		if f[0] != "" || strings.Contains(strings.ToLower(f[1]), "checksum") || strings.Contains(strings.ToLower(f[1]), "malformed") {
			t.Errorf("tshark says of frame %d: %s %s\n% x", i, f[0], f[1], frames[i])
		}
		all = append(all, f[2:])
	}
	return all
}
