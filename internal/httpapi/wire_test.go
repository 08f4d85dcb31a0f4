package httpapi

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/rpc"

	"google.golang.org/protobuf/encoding/protojson"
)

// put sends a piece of an upload; it returns the status and the error's message.
func (r *rig) put(t *testing.T, path string, body io.Reader) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, base+path, body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := rpc.UnixClient(r.socket).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	var e struct{ Message string }
	_ = json.NewDecoder(res.Body).Decode(&e) // an image, or an error
	return res.StatusCode, e.Message
}

func TestUploads(t *testing.T) {
	r := start(t)
	for _, n := range []string{"i", "empty"} {
		if _, err := r.images().Create(t.Context(), &v1.CreateImageRequest{Image: &v1.Image{Meta: &v1.Meta{Name: n}}}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, status int, message string, wantStatus int, part string) {
		t.Helper()
		if status != wantStatus || !strings.Contains(message, part) {
			t.Errorf("%s: %d %q, want %d with %q", what, status, message, wantStatus, part)
		}
	}
	for _, p := range []string{"/upload/images/nothing?offset=0", "/upload/images/..%2f..%2fetc?offset=0", "/upload/images/%ff?offset=0"} {
		s, m := r.put(t, p, strings.NewReader("x"))
		want(p, s, m, 404, "does not exist")
	}
	s, m := r.put(t, "/upload/images/i?offset=-1", strings.NewReader("x"))
	want("a negative offset", s, m, 400, "number of bytes")
	s, m = r.put(t, "/upload/images/empty?offset=0&last=1", strings.NewReader(""))
	want("no bytes", s, m, 400, "no bytes")
	s, m = r.put(t, "/upload/images/i?offset=0", strings.NewReader("some of it"))
	want("a piece", s, m, 200, "")
	s, m = r.put(t, "/upload/images/i?offset=3", strings.NewReader("x"))
	want("a wrong offset", s, m, 409, "has 10 bytes")

	// While one sends, another is refused; what came before a cut stays, also over a restart.
	rd, wr := io.Pipe()
	cut := make(chan int, 1)
	go func() { s, _ := r.put(t, "/upload/images/i?offset=10", rd); cut <- s }()
	if _, err := wr.Write([]byte("more.")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; { // until the first is in the handler
		if n, err := r.m.Uploaded("i"); err != nil || time.Now().After(deadline) {
			t.Fatal("the first sender is not heard: ", err)
		} else if n > 10 {
			break
		}
		<-time.After(5 * time.Millisecond)
	}
	file := filepath.Join(r.dir, "uploads")
	s, m = r.put(t, "/upload/images/i?offset=10", strings.NewReader("x"))
	want("a second sender", s, m, 409, "")
	wr.CloseWithError(io.ErrUnexpectedEOF)
	<-cut
	r.stop()
	r = startIn(t, r.dir, r.address)
	res, err := rpc.UnixClient(r.socket).Head(base + "/upload/images/i")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	at := res.Header.Get(offsetHeader)
	if at < "10" || at > "20" {
		t.Errorf("after the cut and a restart %q bytes are there", at)
	}
	s, m = r.put(t, "/upload/images/i?last=1&offset="+at, strings.NewReader("QFI\xfb no image at all"))
	want("the last piece", s, m, 200, "")
	i, err := r.images().Get(t.Context(), &v1.GetRequest{Name: "i"})
	if err != nil {
		t.Fatal(err)
	}
	task := r.awaitTask(t, i.Status.Task)
	i, _ = r.images().Get(t.Context(), &v1.GetRequest{Name: "i"})
	if task.Status.State == v1.TaskState_TASK_STATE_SUCCEEDED { // bytes of any kind are a raw disk
		if i.Status.Phase != v1.ImagePhase_IMAGE_PHASE_READY {
			t.Errorf("imported: %v", i.Status)
		}
	} else if i.Status.Phase != v1.ImagePhase_IMAGE_PHASE_FAILED || i.Status.Message == "" {
		t.Errorf("failed: %v", i.Status)
	}
	if left, _ := os.ReadDir(file); len(left) > 1 {
		t.Errorf("left in uploads: %v", left)
	}
	if _, err := r.images().Delete(t.Context(), &v1.DeleteRequest{Name: "i"}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"images/*.qcow2", "images/tmp/*"} {
		if left, _ := filepath.Glob(filepath.Join(r.dir, dir)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	// The audit log can be read whatever names were given.
	if _, err := r.m.ListAudit(t.Context(), &v1.ListAuditRequest{}); err != nil {
		t.Error(err)
	}
}

// A watch resumes behind a revision; over a restart, and from a revision that never was, it tells to forget and sends all.
func TestWatchResumes(t *testing.T) {
	r := start(t)
	make := func(name string) *v1.Site {
		t.Helper()
		s, err := r.sites().Create(t.Context(), &v1.CreateSiteRequest{Site: &v1.Site{Meta: &v1.Meta{Name: name}}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	kinds := func(from int64, n int) string {
		t.Helper()
		st, err := r.sites().Watch(t.Context(), &v1.WatchRequest{FromRevision: from})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		var got []string
		for range n {
			if !st.Receive() {
				t.Fatal(st.Err())
			}
			got = append(got, strings.TrimPrefix(st.Msg().Kind.String(), "CHANGE_KIND_")+st.Msg().GetSite().GetMeta().GetName())
		}
		return strings.Join(got, " ")
	}
	a := make("a")
	make("b")
	if got := kinds(0, 3); got != "ADDEDa ADDEDb SYNCED" {
		t.Error(got)
	}
	if got := kinds(a.Meta.Revision, 1); got != "ADDEDb" {
		t.Error(got)
	}
	for _, from := range []int64{1 << 50, -5} {
		if got := kinds(from, 3); !strings.HasSuffix(got, "ADDEDa ADDEDb SYNCED") && got != "RESET ADDEDa ADDEDb" {
			t.Errorf("from %d: %s", from, got)
		}
	}
	r.stop()
	r = startIn(t, r.dir, r.address)
	if got := kinds(a.Meta.Revision, 4); got != "RESET ADDEDa ADDEDb SYNCED" {
		t.Error(got)
	}
}

// What was denied is written down with its code; what unknown callers try is not. Neither user data nor what guests say is.
func TestAuditRecords(t *testing.T) {
	r := start(t)
	r.join(t, "h1")
	r.vm(t, "a", func(x *v1.VM) {
		x.Spec.Power, x.Spec.CloudInit = v1.Power_POWER_ON, &v1.CloudInit{Enabled: true, UserData: "#cloud-config\n# hunter2"}
	})
	if _, err := r.vms().Exec(t.Context(), &v1.ExecRequest{Name: "a", Path: "/bin/secretly", Args: []string{"hunter2"}}); err != nil {
		t.Fatal(err)
	}
	_, err := r.vms().Create(t.Context(), &v1.CreateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: "a"}}})
	refusal(t, "again", err, "NAME_TAKEN")
	l, err := r.m.ListAudit(t.Context(), &v1.ListAuditRequest{Kind: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, rec := range l.Records {
		codes = append(codes, rec.Method[strings.Index(rec.Method, "/")+1:]+" "+rec.Code)
		if s := rec.String(); strings.Contains(s, "hunter2") || strings.Contains(s, "said by the guest") {
			t.Errorf("a secret is in %s", s)
		}
	}
	if got := strings.Join(codes, ", "); got != "Create already_exists, Exec ok, Create ok" {
		t.Errorf("audit log: %s", got)
	}
}

// Whatever JSON is sent to Create: no panic, and what is stored passes its check.
func FuzzCreateVM(f *testing.F) {
	r := startFuzz(f)
	for _, s := range []string{`{}`, `{"vm":{}}`, `{"vm":{"meta":{"name":"x"},"spec":{"disks":[{}],"nics":[{}]}}}`, `{"vm":{"meta":{"name":"x"},"spec":{"power":77,"hardware":{"machine":9}}}}`,
		`{"vm":{"meta":{"name":"x"},"spec":{"clone_from":{"vm":"x","snapshot":"x/y"}}}}`, `{"vm":{"meta":{"name":"x","revision":"-1"},"spec":{"cpus":-1,"memory_bytes":"9223372036854775807","stop_timeout":"1s"}}}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		req := &v1.CreateVMRequest{}
		if protojson.Unmarshal([]byte(body), req) != nil {
			return
		}
		vm, err := r.m.CreateVM(t.Context(), req.Vm, req.ValidateOnly)
		if err != nil {
			if c := resource.CodeOf(err); c == resource.Internal {
				t.Errorf("%s: %v", body, err)
			}
			return
		}
		if err := resource.CheckVM(vm); err != nil {
			t.Errorf("stored, but %v", err)
		}
	})
}

// Whatever filter, order and token are sent to List: an answer or a refusal.
func FuzzList(f *testing.F) {
	r := startFuzz(f)
	for _, s := range []string{"", "spec.cpus > 1", `meta.labels."a b" = x OR NOT y`, "nothing = 1", "((((", "status.phase = RUNNING AND -spec.template"} {
		f.Add(s, "meta.name desc", "", int32(10))
	}
	f.Add("", "status", "AAAA", int32(-1))
	f.Fuzz(func(t *testing.T, filter, order, token string, size int32) {
		_, err := r.m.VMs.List(&v1.ListRequest{Filter: filter, OrderBy: order, PageToken: token, PageSize: size})
		if err != nil && resource.CodeOf(err) != resource.Invalid {
			t.Errorf("%q %q %q %d: %v", filter, order, token, size, err)
		}
	})
}

func startFuzz(f *testing.F) *rig {
	f.Helper()
	dir := f.TempDir()
	return startAt(f, dir, "127.0.0.1:0", fmt.Sprintf("%s/m.sock", dir))
}
