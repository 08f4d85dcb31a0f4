package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/clock"
	"drover/internal/pki"
	"drover/internal/resource"
	"drover/internal/rpc"
)

// A host that is removed by force is nobody from then on, over its open connections too; its VMs can be deleted, and a new host
// of its name holds none of them. Its token lets it in no more.
func TestRemovedHost(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	ctx := t.Context()
	r.vm(t, "a", func(x *v1.VM) { x.Spec.Power = v1.Power_POWER_ON })
	r.vm(t, "deleting")
	vm := r.await(t, "a", "running", isPhase(v1.VMPhase_VM_PHASE_RUNNING))
	r.await(t, "deleting", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	_, err := r.hosts().Delete(ctx, &v1.DeleteRequest{Name: "h1"})
	refusal(t, "remove a host with VMs", err, "HAS_VMS")
	h.set(func() { h.mute = true })
	if _, err := r.vms().Delete(ctx, &v1.DeleteRequest{Name: "deleting"}); err != nil {
		t.Fatal(err)
	}
	st, err := h.api.Watch(ctx, &v1.AgentWatchRequest{})
	if err != nil || !st.Receive() {
		t.Fatal(err, st.Err())
	}
	if _, err := r.hosts().Delete(ctx, &v1.DeleteRequest{Name: "h1", Force: true}); err != nil {
		t.Fatal(err)
	}
	for st.Receive() {
		if x := st.Msg().GetVm(); x.GetStatus().GetOwner() != "" && x.GetStatus().GetOwner() != "h1" {
			t.Errorf("told of %v", x)
		}
	}
	refusal(t, "its open stream", st.Err(), "HOST_REMOVED")
	st.Close()
	_, err = h.api.Report(ctx, &v1.ReportRequest{Vms: []*v1.VMReport{h.reportOf(vm)}})
	refusal(t, "its report over an open connection", err, "HOST_REMOVED")
	if res, err := h.client.Get("https://" + r.address + "/images/" + strings.Repeat("0", 64)); err == nil {
		res.Body.Close()
		if res.StatusCode != http.StatusForbidden {
			t.Errorf("an image for it: %d", res.StatusCode)
		}
	}
	if err := h.enrol(ctx); reasonOf(err) != "JOIN_REFUSED" {
		t.Errorf("the same token and key again: %v", err)
	}
	h.stop()
	got := r.await(t, "a", "failed", isPhase(v1.VMPhase_VM_PHASE_FAILED))
	if got.Status.Owner != "" || got.Status.Epoch != vm.Status.Epoch+1 {
		t.Errorf("a VM of the removed host: %v", got.Status)
	}
	r.await(t, "deleting", "gone", isGone)
	_, err = r.vms().Start(ctx, &v1.StartVMRequest{Name: "a"})
	refusal(t, "start it", err, "NO_OWNER")
	h2 := r.join(t, "h1")
	h2.mu.Lock()
	if len(h2.vms) != 0 {
		t.Errorf("the new host of that name was told of %v", h2.vms)
	}
	h2.mu.Unlock()
	if _, err := r.vms().Delete(ctx, &v1.DeleteRequest{Name: "a"}); err != nil {
		t.Errorf("delete it: %v", err)
	}
	r.await(t, "a", "gone", isGone)
	r.vm(t, "b", func(x *v1.VM) { x.Spec.Nics[0].Mac = vm.Spec.Nics[0].Mac })
}

// A certificate of another CA, one of the right CA for a host that never was, and one that has expired let nobody in.
func TestForgedCertificates(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	real, err := pki.Load(r.dir+"/pki", clock.Real())
	if err != nil {
		t.Fatal(err)
	}
	past, err := pki.Load(r.dir+"/pki", shifted{clock.Real(), -10 * 365 * 24 * time.Hour})
	if err != nil {
		t.Log("no CA in the past: ", err)
	}
	other, err := pki.Open(t.TempDir(), clock.Real())
	if err != nil {
		t.Fatal(err)
	}
	mine := pki.Identity{Role: pki.RoleHost, Name: "h1", UID: h.uid}
	for what, c := range map[string]struct {
		ca *pki.CA
		id pki.Identity
	}{
		"another CA":        {other, mine},
		"another uid":       {real, pki.Identity{Role: pki.RoleHost, Name: "h1", UID: resource.NewUID()}},
		"another name":      {real, pki.Identity{Role: pki.RoleHost, Name: "h2", UID: h.uid}},
		"a manager's":       {real, pki.Identity{Role: pki.RoleManager, Name: "manager", UID: h.uid}},
		"one of years back": {past, mine},
	} {
		if c.ca == nil {
			continue
		}
		key, _ := pki.NewKey()
		chain, err := c.ca.Issue(key.Public(), pki.Grant{Identity: c.id})
		if err != nil {
			t.Logf("%s: can't even be issued: %v", what, err)
			continue
		}
		cred, err := pki.SaveCredential(t.TempDir()+"/c.pem", key, chain)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := pki.ClientConfig(pki.ClientOptions{Credential: cred, Trust: h.trust, Peer: pki.Identity{Role: pki.RoleManager}})
		if err != nil {
			t.Fatal(err)
		}
		hc := rpc.TLSClient(cfg)
		api := droverv1connect.NewAgentServiceClient(hc, "https://"+r.address, rpc.ClientOptions()...)
		if _, err := api.Report(t.Context(), &v1.ReportRequest{}); err == nil {
			t.Errorf("%s let a report in", what)
		}
		hc.CloseIdleConnections()
	}
	if err := h.hello(t.Context()); err != nil {
		t.Errorf("the real one: %v", err)
	}
}

// shifted is a clock that is off.
type shifted struct {
	clock.Clock
	by time.Duration
}

func (s shifted) Now() time.Time { return s.Clock.Now().Add(s.by) }

// A manager stops within three seconds with streams, uploads and calls open, and each stream is told why.
func TestStopWithOpenStreams(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	ctx := t.Context()
	ended := make(chan error, 100)
	streams := 0
	watch := func(receive func() bool, fail func() error, first bool) {
		t.Helper()
		if first && !receive() {
			t.Fatal(fail())
		}
		streams++
		go func() {
			for receive() {
			}
			ended <- fail()
		}()
	}
	for range 20 {
		st, err := r.vms().Watch(ctx, &v1.WatchRequest{})
		if err != nil {
			t.Fatal(err)
		}
		watch(st.Receive, st.Err, true)
		ev, err := r.events().Watch(ctx, &v1.WatchEventsRequest{Backlog: 1})
		if err != nil {
			t.Fatal(err)
		}
		watch(ev.Receive, ev.Err, true)
	}
	ag, err := h.api.Watch(ctx, &v1.AgentWatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	watch(ag.Receive, ag.Err, true)
	r.vm(t, "a", func(x *v1.VM) { x.Spec.Power = v1.Power_POWER_ON })
	r.await(t, "a", "running", isPhase(v1.VMPhase_VM_PHASE_RUNNING))
	console, err := r.vms().Console(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := console.Send(&v1.ConsoleInput{Vm: "a", Data: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	watch(func() bool { _, err = console.Receive(); return err == nil }, func() error { return err }, true)
	// A task that hangs at its host, and an upload whose sender sleeps.
	h.set(func() { h.hold = make(chan struct{}) })
	if _, err := r.snapshots().Create(ctx, &v1.CreateSnapshotRequest{Snapshot: &v1.Snapshot{Meta: &v1.Meta{Name: "a/s"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.images().Create(ctx, &v1.CreateImageRequest{Image: &v1.Image{Meta: &v1.Meta{Name: "i"}}}); err != nil {
		t.Fatal(err)
	}
	rd, wr := io.Pipe()
	defer wr.Close()
	go func() {
		req, _ := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodPut, base+"/upload/images/i?offset=0", rd)
		res, err := rpc.UnixClient(r.socket).Do(req)
		if err == nil {
			res.Body.Close()
		}
	}()
	if _, err := wr.Write([]byte("something")); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	r.stop()
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("stopping took %v", d)
	}
	for range streams {
		select {
		case err := <-ended:
			if err == nil || errors.Is(err, context.Canceled) {
				t.Errorf("a stream ended with %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("a stream did not end")
		}
	}
}

func (r *rig) events() droverv1connect.EventServiceClient {
	return droverv1connect.NewEventServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...)
}
