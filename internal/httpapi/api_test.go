package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/pki"
	"drover/internal/resource"
	"drover/internal/rpc"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Every procedure of every service that this package serves has a row in the table of calls, and no row is for nothing.
func TestCallsAreComplete(t *testing.T) {
	served := map[string]bool{}
	for _, f := range []protoreflect.FileDescriptor{
		v1.File_drover_v1_site_proto, v1.File_drover_v1_host_proto, v1.File_drover_v1_datastore_proto, v1.File_drover_v1_network_proto,
		v1.File_drover_v1_image_proto, v1.File_drover_v1_vm_proto, v1.File_drover_v1_snapshot_proto, v1.File_drover_v1_task_proto,
		v1.File_drover_v1_history_proto, v1.File_drover_v1_manager_proto, v1.File_drover_v1_agent_proto,
		v1.File_drover_v1_profile_proto, v1.File_drover_v1_port_proto, v1.File_drover_v1_switch_proto,
		v1.File_drover_v1_repository_proto, v1.File_drover_v1_backup_proto, v1.File_drover_v1_vault_proto,
	} {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			if s.Name() == "NodeService" {
				continue // hosts serve it
			}
			for j := range s.Methods().Len() {
				name := string(s.Name()) + "/" + string(s.Methods().Get(j).Name())
				served[name] = true
				if s.Name() == "VaultService" && slices.Contains([]string{"Open", "Close", "Status", "Grant", "Forget", "Keep", "Rekey", "Collect", "Scrub", "Copy"}, string(s.Methods().Get(j).Name())) {
					if _, ok := calls[name]; ok {
						t.Errorf("%s is the manager's alone, and in calls", name)
					}
					continue
				}
				if _, ok := calls[name]; !ok {
					t.Errorf("%s has no row in calls", name)
				}
			}
		}
	}
	for name := range calls {
		if !served[name] {
			t.Errorf("calls has %s, which is no procedure", name)
		}
	}
}

// A caller who isn't known gets nothing but log-in, from every procedure and every plain path.
func TestNobodyGetsNothing(t *testing.T) {
	r := start(t)
	trust, err := pki.ParseTrust(r.m.CAPEM())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := pki.ClientConfig(pki.ClientOptions{Trust: trust, Peer: pki.Identity{Role: pki.RoleManager}})
	if err != nil {
		t.Fatal(err)
	}
	c := rpc.TLSClient(cfg)
	defer c.CloseIdleConnections()
	for name := range calls {
		if open[name] {
			continue
		}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+r.address+"/drover.v1."+name, strings.NewReader("{}"))
		req.Header.Set("Content-Type", "application/json")
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		// Streams refuse JSON without an envelope before anything else; they are refused all the same.
		if res.StatusCode != http.StatusUnauthorized && res.StatusCode != http.StatusUnsupportedMediaType {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
	}
	for _, path := range []string{"/metrics", "/images/" + strings.Repeat("0", 64), "/ws/vnc/x"} {
		res, err := c.Get("https://" + r.address + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusUnauthorized {
			t.Errorf("GET %s: %d, want 401", path, res.StatusCode)
		}
	}
	anon := droverv1connect.NewVMServiceClient(c, "https://"+r.address, rpc.ClientOptions()...)
	st, err := anon.Watch(t.Context(), &v1.WatchRequest{})
	if err == nil {
		for st.Receive() {
			t.Errorf("an unknown watcher got %v", st.Msg())
		}
		err = st.Err()
		st.Close()
	}
	if resource.CodeOf(rpc.FromError(err)) != resource.Anonymous {
		t.Errorf("watch by nobody: %v", err)
	}
}

func TestLoginOverTLS(t *testing.T) {
	r := start(t)
	trust, _ := pki.ParseTrust(r.m.CAPEM())
	cfg, err := pki.ClientConfig(pki.ClientOptions{Trust: trust, Peer: pki.Identity{Role: pki.RoleManager}})
	if err != nil {
		t.Fatal(err)
	}
	c := rpc.TLSClient(cfg)
	defer c.CloseIdleConnections()
	post := func(token, path, body string) (int, map[string]any) {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+r.address+path, strings.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var v map[string]any
		if err := json.NewDecoder(res.Body).Decode(&v); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, v
	}
	if code, v := post("", "/drover.v1.AuthService/Login", `{"user":"admin","password":"not this one"}`); code != 401 {
		t.Fatalf("log-in with a wrong password: %d %v", code, v)
	}
	code, v := post("", "/drover.v1.AuthService/Login", `{"user":"admin","password":"`+r.password+`"}`)
	for deadline := time.Now().Add(10 * time.Second); code == http.StatusTooManyRequests && time.Now().Before(deadline); {
		<-time.After(200 * time.Millisecond) // the wrong password made the next one wait
		code, v = post("", "/drover.v1.AuthService/Login", `{"user":"admin","password":"`+r.password+`"}`)
	}
	token, _ := v["token"].(string)
	if code != 200 || token == "" {
		t.Fatalf("log-in: %d %v", code, v)
	}
	if code, v := post(token, "/drover.v1.SiteService/Create", `{"site":{"meta":{"name":"a"},"spec":{"time_zone":"Europe/Berlin"}}}`); code != 200 {
		t.Fatalf("create site: %d %v", code, v)
	}
	code, v = post(token, "/drover.v1.SiteService/Create", `{"site":{"meta":{"name":"a"}}}`)
	if code != 409 || !strings.Contains(v["message"].(string), "the name is taken") {
		t.Errorf("create it again: %d %v", code, v)
	}
	code, v = post(token, "/drover.v1.SiteService/Create", `{"site":{"meta":{"name":"b"},"spec":{"colour":"blue"}}}`)
	if code != 400 || !strings.Contains(v["message"].(string), "colour") {
		t.Errorf("an unknown field: %d %v", code, v)
	}
	if code, _ := post("drv_"+strings.Repeat("a", 43), "/drover.v1.SiteService/List", `{}`); code != 401 {
		t.Errorf("a made-up token: %d", code)
	}
	if code, _ := post(token, "/drover.v1.AuthService/Logout", `{}`); code != 200 {
		t.Errorf("log-out: %d", code)
	}
	if code, _ := post(token, "/drover.v1.SiteService/List", `{}`); code != 401 {
		t.Errorf("after log-out: %d", code)
	}
	list, err := r.m.ListAudit(t.Context(), &v1.ListAuditRequest{Kind: "site"})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Records) < 2 || list.Records[len(list.Records)-1].Principal != "user:admin" || !strings.Contains(list.Records[len(list.Records)-1].After, "Europe/Berlin") {
		t.Errorf("audit log: %v", list.Records)
	}
	all, _ := r.m.ListAudit(t.Context(), &v1.ListAuditRequest{})
	for _, rec := range all.Records {
		if s := rec.String(); strings.Contains(s, r.password) || strings.Contains(s, token) {
			t.Errorf("a secret is in the audit log: %v", rec)
		}
	}
}

// A VM that no host can take is refused with each host's reason, and bad ones with theirs, before anything is stored.
func TestVMsAreRefusedWithReasons(t *testing.T) {
	r := start(t)
	vms := r.vms()
	cases := []struct {
		name string
		vm   *v1.VM
		want string
	}{
		{"no host", &v1.VM{Meta: &v1.Meta{Name: "x"}}, "no host fits"},
		{"no name", &v1.VM{}, "a name is needed"},
		{"climbing name", &v1.VM{Meta: &v1.Meta{Name: "../etc"}}, "meta.name"},
		{"zero byte disk", &v1.VM{Meta: &v1.Meta{Name: "x"}, Spec: &v1.VMSpec{Disks: []*v1.DiskSpec{{Name: "d"}}}}, "needs a size"},
		{"huge disk", &v1.VM{Meta: &v1.Meta{Name: "x"}, Spec: &v1.VMSpec{Disks: []*v1.DiskSpec{{Name: "d", SizeBytes: 1e18}}}}, "at most 64 TiB"},
		{"huge memory", &v1.VM{Meta: &v1.Meta{Name: "x"}, Spec: &v1.VMSpec{MemoryBytes: 1e18}}, "spec.memory_bytes"},
		{"unknown network", &v1.VM{Meta: &v1.Meta{Name: "x"}, Spec: &v1.VMSpec{Nics: []*v1.NICSpec{{Name: "n", Network: "nowhere"}}}}, `no network named "nowhere"`},
		{"unknown image", &v1.VM{Meta: &v1.Meta{Name: "x"}, Spec: &v1.VMSpec{Disks: []*v1.DiskSpec{{Name: "d", Image: "nothing"}}}}, `no image named "nothing"`},
		{"climbing image", &v1.VM{Meta: &v1.Meta{Name: "x"}, Spec: &v1.VMSpec{Disks: []*v1.DiskSpec{{Name: "d", Image: "../../etc/passwd"}}}}, "not the name of an image"},
		{"multicast MAC", &v1.VM{Meta: &v1.Meta{Name: "x"}, Spec: &v1.VMSpec{Nics: []*v1.NICSpec{{Name: "n", Network: "n", Mac: "01:00:5e:00:00:01"}}}}, "multicast"},
	}
	for _, c := range cases {
		_, err := vms.Create(t.Context(), &v1.CreateVMRequest{Vm: c.vm})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
	}
	l, err := vms.List(t.Context(), &v1.ListRequest{})
	if err != nil || l.Total != 0 {
		t.Errorf("after refusals: %v, %v", l, err)
	}
}

// A state backup restores into a fresh directory: same installation, same CA, same objects.
func TestBackupAndRestore(t *testing.T) {
	r := start(t)
	if _, err := r.sites().Create(t.Context(), &v1.CreateSiteRequest{Site: &v1.Site{Meta: &v1.Meta{Name: "keep"}}}); err != nil {
		t.Fatal(err)
	}
	info := r.m.Info()
	var buf bytes.Buffer
	if err := r.m.Backup(t.Context(), &buf); err != nil {
		t.Fatal(err)
	}
	r.stop()
	restored := restoreInto(t, buf.Bytes())
	r2 := startIn(t, restored, freeAddress(t))
	got := r2.m.Info()
	if got.ClusterUid != info.ClusterUid || got.CaFingerprint != info.CaFingerprint {
		t.Errorf("restored %v, was %v", got, info)
	}
	if _, err := r2.sites().Get(context.Background(), &v1.GetRequest{Name: "keep"}); err != nil {
		t.Error(err)
	}
	if r2.password != "" {
		t.Error("the restored manager made a new administrator")
	}
}
