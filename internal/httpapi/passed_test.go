package httpapi

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/rpc"
)

// The manager passes on what its hosts measure, since they talk to nobody else.
func TestHostMetricsArePassedOn(t *testing.T) {
	r := start(t)
	r.join(t, "h1")
	c := rpc.UnixClient(r.socket)
	defer c.CloseIdleConnections()
	for path, want := range map[string]string{"/metrics/hosts/h1": `drover_test_host{name="h1"} 1`, "/metrics": `drover_hosts{phase="ready"} 1`} {
		res, err := c.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("GET %s: %d %v, want %q in %.300s", path, res.StatusCode, err, want, body)
		}
	}
	res, err := c.Get(base + "/metrics/hosts/none")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("metrics of a host that isn't there: %d", res.StatusCode)
	}
}

// A state backup holds no image files: after a restore the images that were ready say so.
func TestRestoredImagesSayThatTheyAreLost(t *testing.T) {
	r := start(t)
	disk := make([]byte, 1<<20)
	disk[510], disk[511] = 0x55, 0xaa // a boot record
	if _, err := r.m.CreateImage(t.Context(), &v1.Image{Meta: &v1.Meta{Name: "old"}}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.m.Upload(t.Context(), "old", 0, bytes.NewReader(disk), true); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		i, err := r.m.Images.Get("old")
		if err != nil || i.Status.Phase == v1.ImagePhase_IMAGE_PHASE_FAILED || time.Now().After(deadline) {
			t.Fatalf("import: %v, %v", i.GetStatus(), err)
		}
		if i.Status.Phase == v1.ImagePhase_IMAGE_PHASE_READY {
			break
		}
		<-time.After(20 * time.Millisecond)
	}
	var buf bytes.Buffer
	if err := r.m.Backup(t.Context(), &buf); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r2 := startIn(t, restoreInto(t, buf.Bytes()), freeAddress(t))
	i, err := r2.m.Images.Get("old")
	if err != nil || i.Status.Phase != v1.ImagePhase_IMAGE_PHASE_FAILED || !strings.Contains(i.Status.Message, "import it again") {
		t.Errorf("after a restore: %v, %v", i.GetStatus(), err)
	}
}
