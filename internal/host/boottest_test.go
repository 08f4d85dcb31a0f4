package host_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/resource"
)

// testPoint runs a boot test to its end.
func (b *bench) testPoint(point string, check *v1.BootCheck) (*v1.PointTest, error) {
	b.t.Helper()
	stream, err := b.node(b.hostAddress()).TestPoint(b.t.Context(), &v1.NodeTestRequest{
		Operation: resource.NewUID(), Point: point, Check: check, Source: &v1.VaultTarget{Vault: &v1.VaultAddress{Repository: "shelf"}},
	})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var r *v1.PointTest
	for stream.Receive() {
		b.t.Log(stream.Msg().GetStep())
		r = stream.Msg().GetResult()
	}
	return r, stream.Err()
}

// TestBootTest boots a point, has what is wrong be told, and leaves nothing.
func TestBootTest(t *testing.T) {
	b := newBench(t)
	b.tiny()
	spec := tinySpec()
	spec.Disks = []*v1.DiskSpec{{Name: "root", SizeBytes: restoreSize}}
	spec.Nics = []*v1.NICSpec{{Name: "eth0", Network: "lan", Mac: "52:54:00:11:22:33"}}
	definition, err := protojson.Marshal(&v1.VM{Meta: &v1.Meta{Name: "web", Uid: resource.NewUID()}, Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	b.shelve("p1", "first", restoreSize, func(p *backup.Point) { p.Definition = definition })
	b.shelve("p2", "second", restoreSize)
	b.start()
	script := "test \"$(head -n 1 /dev/vda)\" = first && echo spoilt | dd of=/dev/vda conv=notrunc,sync,fsync"
	r, err := b.testPoint("p1", &v1.BootCheck{Agent: true, Console: "drover-tiny: ready", TcpPort: 80, Exec: []string{"/bin/busybox", "sh", "-c", script}, Timeout: durationpb.New(boot)})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v in %v", r.GetChecks(), r.GetBootTime().AsDuration())
	if !r.GetPassed() || len(r.GetChecks()) != 4 || r.GetBootTime().AsDuration() <= 0 || !bytes.HasPrefix(r.GetScreenshot(), []byte("\x89PNG")) {
		t.Errorf("passed %v, checks %q, a picture of %d bytes", r.GetPassed(), r.GetChecks(), len(r.GetScreenshot()))
	}
	// What the guest wrote was thrown away, and a check that fails is a result.
	r, err = b.testPoint("p1", &v1.BootCheck{Exec: []string{"/bin/busybox", "sh", "-c", "head -n 1 /dev/vda; false"}, Timeout: durationpb.New(boot)})
	if err != nil {
		t.Fatal(err)
	}
	if last := strings.Join(r.GetChecks(), "\n"); r.GetPassed() || !strings.Contains(last, "exit code 1: first") {
		t.Errorf("passed %v, checks %q", r.GetPassed(), last)
	}
	r, err = b.testPoint("p1", &v1.BootCheck{Console: "no guest says this", Timeout: durationpb.New(5 * time.Second)})
	if err != nil || r.GetPassed() {
		t.Errorf("a text that does not come: %v %v", r.GetChecks(), err)
	}
	if _, err := b.testPoint("p2", &v1.BootCheck{Agent: true}); err == nil {
		t.Error("a point without a definition was started")
	}
	if pids := b.qemuPIDs(); len(pids) > 0 {
		t.Errorf("QEMUs that are left: %v", pids)
	}
}
