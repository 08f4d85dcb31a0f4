package httpapi

import (
	"context"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/resource"

	"google.golang.org/protobuf/types/known/durationpb"
)

// What a host tells of another's VM is told as its own word, and not without bounds.
func TestHostsSpeakForThemselves(t *testing.T) {
	r := start(t)
	h1, h2 := r.join(t, "h1"), r.join(t, "h2")
	r.vm(t, "a", func(x *v1.VM) { x.Spec.Placement = &v1.PlacementSpec{Host: "h1"} })
	r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	said := func(kind, name, message string) *v1.Event {
		return &v1.Event{Kind: kind, Name: name, Reason: "TEST", Message: message, Host: "h9", Id: 1}
	}
	for h, events := range map[*testHost][]*v1.Event{
		h1: {said("vm", "a", "the holder's"), said("vm", "gone", "of one that is gone"), said("host", "h1", "its own")},
		h2: {said("vm", "a", "a stranger's"), said("host", "h1", "of another host"), said("user", "admin", "of a user"), said("host", "h2", strings.Repeat("é", 1<<20))},
	} {
		if _, err := h.api.Report(t.Context(), &v1.ReportRequest{Events: events}); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{ // message to teller, kind and name
		"the holder's": "h1 vm a", "of one that is gone": "h1 vm gone", "its own": "h1 host h1",
		"vm a: a stranger's": "h2 host h2", "host h1: of another host": "h2 host h2", "user admin: of a user": "h2 host h2",
		strings.Repeat("é", 2<<10): "h2 host h2",
	}
	st, err := r.events().Watch(t.Context(), &v1.WatchEventsRequest{Backlog: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for len(want) > 0 && st.Receive() {
		e := st.Msg()
		if e.Reason != "TEST" {
			continue
		}
		if got := e.Host + " " + e.Kind + " " + e.Name; want[e.Message] != got {
			t.Errorf("%.60q was told of %s, want %q", e.Message, got, want[e.Message])
		}
		delete(want, e.Message)
	}
	if len(want) > 0 {
		t.Errorf("never told: %v; %v", want, st.Err())
	}
}

// A guest that switches itself off while a task has its VM stays off, but its spec of before the task does not become the
// generation that the task may have told the host: a revert's host would take the old disks for the new wish.
func TestGuestOffWhileATaskHasTheVM(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	r.vm(t, "a", func(x *v1.VM) { x.Spec.Power = v1.Power_POWER_ON })
	r.await(t, "a", "running", isPhase(v1.VMPhase_VM_PHASE_RUNNING))
	h.set(func() { h.hold = make(chan struct{}) })
	s := r.snapshot(t, "a/s1")
	vm := r.await(t, "a", "busy", func(vm *v1.VM) bool { return vm.GetStatus().GetBusy() != "" })
	rep := h.reportOf(vm)
	rep.GuestOff, rep.Status.Phase = true, v1.VMPhase_VM_PHASE_OFF
	if _, err := h.api.Report(t.Context(), &v1.ReportRequest{Vms: []*v1.VMReport{rep}}); err != nil {
		t.Fatal(err)
	}
	got, err := r.vms().Get(t.Context(), &v1.GetRequest{Name: "a"})
	if err != nil || got.Spec.Power != v1.Power_POWER_OFF || got.Meta.Generation != vm.Meta.Generation {
		t.Errorf("power %v, generation %d (was %d), %v", got.GetSpec().GetPower(), got.GetMeta().GetGeneration(), vm.Meta.Generation, err)
	}
	h.set(func() { close(h.hold); h.hold = nil })
	r.awaitTask(t, s.Status.Task)
	r.await(t, "a", "free", func(vm *v1.VM) bool { return vm.GetStatus().GetBusy() == "" })
	if got, err = r.vms().Start(t.Context(), &v1.StartVMRequest{Name: "a"}); err != nil || got.Meta.Generation != vm.Meta.Generation+1 {
		t.Errorf("started again: %v, %v", got.GetMeta(), err)
	}
}

// Who may only look at this machine's socket makes no token and ends none: they are no user, and not the administrator.
func TestLookersOfThisMachineGetNoTokens(t *testing.T) {
	r := start(t)
	p := people{r.m}
	looks := auth.WithPrincipal(t.Context(), auth.Principal{Kind: auth.KindLocal, Name: "eve", Scopes: []auth.Scope{auth.ScopeAdmin}, Roles: []auth.Grant{{Role: auth.RoleViewer}}})
	root := auth.WithPrincipal(t.Context(), auth.Principal{Kind: auth.KindLocal, Name: "root", Scopes: []auth.Scope{auth.ScopeAdmin}, Roles: []auth.Grant{{Role: auth.RoleAdmin}}})
	req := &v1.CreateTokenRequest{Name: "t", Scopes: []string{"admin"}}
	if res, err := p.CreateToken(looks, req); resource.CodeOf(err) != resource.Denied {
		t.Errorf("got %v, %v", res.GetToken(), err)
	}
	res, err := p.CreateToken(root, req)
	if err != nil || res.Token.Spec.User != "admin" {
		t.Fatalf("root got %v, %v", res.GetToken(), err)
	}
	if l, err := p.ListTokens(looks, &v1.ListRequest{}); err != nil || len(l.Tokens) != 0 {
		t.Errorf("sees %v, %v", l.GetTokens(), err)
	}
	if _, err := p.DeleteToken(looks, &v1.DeleteRequest{Name: res.Token.Meta.Name}); resource.CodeOf(err) != resource.Denied {
		t.Errorf("ended the administrator's token: %v", err)
	}
}

// What a token makes ends with it.
func TestTokensMakeNoneThatOutliveThem(t *testing.T) {
	r := start(t)
	p := people{r.m}
	root := auth.WithPrincipal(t.Context(), auth.Principal{Kind: auth.KindLocal, Name: "root", Scopes: []auth.Scope{auth.ScopeAdmin}, Roles: []auth.Grant{{Role: auth.RoleAdmin}}})
	lent, err := p.CreateToken(root, &v1.CreateTokenRequest{Name: "lent", Scopes: []string{"admin"}, Lifetime: durationpb.New(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	who, err := r.m.Auth().Authenticate(t.Context(), lent.Secret, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, asked := range []time.Duration{0, 24 * time.Hour, time.Minute} {
		req := &v1.CreateTokenRequest{Name: "child", Scopes: []string{"admin"}}
		if asked != 0 {
			req.Lifetime = durationpb.New(asked)
		}
		got, err := p.CreateToken(auth.WithPrincipal(t.Context(), who), req)
		if err != nil {
			t.Fatal(err)
		}
		if end := got.Token.Spec.ExpireTime.AsTime(); end.After(lent.Token.Spec.ExpireTime.AsTime().Add(time.Second)) {
			t.Errorf("asked for %v: ends at %v, its maker at %v", asked, end, lent.Token.Spec.ExpireTime.AsTime())
		}
	}
}

// Who may only look at VMs is not told their user data, by no call and no question.
func TestUserDataIsForThoseWhoMayChangeVMs(t *testing.T) {
	r := start(t)
	r.join(t, "h1")
	const secret = "#cloud-config\npassword: hunter2\n"
	r.vm(t, "a", func(x *v1.VM) { x.Spec.CloudInit = &v1.CloudInit{Enabled: true, UserData: secret} })
	s := vms{r.m}
	as := func(role auth.Role, scope auth.Scope) context.Context {
		return auth.WithPrincipal(t.Context(), auth.Principal{Kind: auth.KindToken, Name: "eve", Scopes: []auth.Scope{scope}, Roles: []auth.Grant{{Role: role}}})
	}
	for what, c := range map[string]struct {
		ctx  context.Context
		told bool
	}{
		"an operator": {as(auth.RoleOperator, auth.ScopeWrite), true}, "a viewer": {as(auth.RoleViewer, auth.ScopeAdmin), false},
		"a reading token": {as(auth.RoleAdmin, auth.ScopeRead), false},
	} {
		want := leftOut
		if c.told {
			want = secret
		}
		vm, err := s.Get(c.ctx, &v1.GetRequest{Name: "a"})
		if err != nil || vm.Spec.CloudInit.UserData != want {
			t.Errorf("%s gets %q, %v", what, vm.GetSpec().GetCloudInit().GetUserData(), err)
		}
		l, err := s.List(c.ctx, &v1.ListRequest{})
		if err != nil || len(l.Vms) != 1 || l.Vms[0].Spec.CloudInit.UserData != want {
			t.Errorf("%s lists %v, %v", what, l, err)
		}
		for _, req := range []*v1.ListRequest{{Filter: `spec.cloud_init.user_data = "x"`}, {Filter: `spec.cloudInit.userData = "x"`}, {OrderBy: "spec.cloudInit.userData"}} {
			if _, err = s.List(c.ctx, req); (err == nil) != c.told {
				t.Errorf("%s asks %v: %v", what, req, err)
			}
		}
	}
	if stored, err := r.m.VMs.Get("a"); err != nil || stored.Spec.CloudInit.UserData != secret {
		t.Errorf("what is stored: %v, %v", stored, err)
	}
	vm, _ := s.Get(as(auth.RoleViewer, auth.ScopeAdmin), &v1.GetRequest{Name: "a"})
	if _, err := r.vms().Update(t.Context(), &v1.UpdateVMRequest{Vm: vm}); reasonOf(err) != "USER_DATA_LEFT_OUT" {
		t.Errorf("written back: %v", err)
	}
}

// A revert that failed at its host leaves a spec that the host listens to: it may go on with what it was told.
func TestFailedRevertLeavesANewGeneration(t *testing.T) {
	r := start(t)
	h := r.join(t, "h1")
	r.vm(t, "a")
	r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	r.awaitTask(t, r.snapshot(t, "a/s1").Status.Task)
	before := r.await(t, "a", "free", func(vm *v1.VM) bool { return vm.GetStatus().GetBusy() == "" })
	h.set(func() { h.fail = &resource.Error{Code: resource.Exhausted, Reason: "NO_SPACE", Message: "is full"} })
	task, err := r.snapshots().Revert(t.Context(), &v1.RevertRequest{Name: "a/s1"})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.awaitTask(t, task.Meta.Name); got.Status.State != v1.TaskState_TASK_STATE_FAILED {
		t.Fatalf("task: %v", got.Status)
	}
	vm := r.await(t, "a", "free", func(vm *v1.VM) bool { return vm.GetStatus().GetBusy() == "" })
	// The host was told of a generation one above that of before.
	if vm.Meta.Generation < before.Meta.Generation+2 {
		t.Errorf("generation %d, and %d before", vm.Meta.Generation, before.Meta.Generation)
	}
}
