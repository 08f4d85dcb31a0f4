package placement

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

const gib = 1 << 30

func host(name string, change ...func(*Host)) Host {
	h := Host{
		Name: name, Site: "sj", CPUs: 16, MemoryMiB: 65536, Accel: "kvm",
		Datastores: []Datastore{{Name: "local", Kind: "dir", SizeBytes: 500 * gib, FreeBytes: 400 * gib}},
		Networks:   []string{"lan"}, Features: []string{"uefi"}, Labels: map[string]string{"rack": "r1"},
	}
	for _, c := range change {
		c(&h)
	}
	return h
}

func vm(name string, change ...func(*Request)) Request {
	r := Request{Name: name, CPUs: 2, MemoryMiB: 4096, Disks: []Disk{{Name: "root", Bytes: 20 * gib}}, Networks: []string{"lan"}}
	for _, c := range change {
		c(&r)
	}
	return r
}

func TestReasons(t *testing.T) {
	web := []Resident{{Name: "w1", Groups: []string{"web"}, Labels: map[string]string{"app": "web"}}}
	for _, tt := range []struct {
		name string
		host func(*Host)
		vm   func(*Request)
		code Code
		want string
	}{
		{"memory", func(h *Host) { h.AllocatedMemoryMiB = 62524 }, func(r *Request) { r.MemoryMiB = 8192 }, NoMemory, "needs 8192 MiB, the host has 3012 MiB free"},
		{"more allocated than there is", func(h *Host) { h.AllocatedMemoryMiB = 99999 }, nil, NoMemory, "has 0 MiB free"},
		{"absurd memory", nil, func(r *Request) { r.MemoryMiB = 1 << 62 }, NoMemory, "MiB"},
		{"cpu", func(h *Host) { h.AllocatedCPUs = 63 }, nil, NoCPU, "needs 2 CPUs, the host has 1 free of 64"},
		{"wider than the host", nil, func(r *Request) { r.CPUs = 17 }, NoCPU, "has only 16"},
		{"down", func(h *Host) { h.Down = "no heartbeat for 40 s" }, nil, NotReady, "no heartbeat for 40 s"},
		{"cordoned", func(h *Host) { h.Cordoned = true }, nil, Cordoned, "takes no new"},
		{"maintenance", func(h *Host) { h.Maintenance = true }, nil, Maintenance, "maintenance"},
		{"site", nil, func(r *Request) { r.Sites = []string{"ny", "la"} }, NotSelected, "wants site ny or la, the host is in sj"},
		{"host", nil, func(r *Request) { r.Hosts = []string{"b"} }, NotSelected, "wants host b"},
		{"avoid", nil, func(r *Request) { r.Avoid = []string{"a"} }, NotSelected, "avoid"},
		{"label", nil, func(r *Request) { r.HostLabels = map[string]string{"rack": "r2"} }, NotSelected, "label rack=r2"},
		{"accel", func(h *Host) { h.Accel = "tcg" }, func(r *Request) { r.Accel = "kvm" }, NoAccel, "needs kvm, the host has tcg"},
		{"feature", nil, func(r *Request) { r.Features = []string{"uefi", "vmxnet3"} }, NoFeature, "needs vmxnet3"},
		{"network", nil, func(r *Request) { r.Networks = []string{"lan", "dmz"} }, NoNetwork, "needs network dmz"},
		{"disk too large", nil, func(r *Request) { r.Disks[0].Bytes = 401 * gib }, NoStorage, "disk root needs 401 GiB: local has 400 GiB free"},
		{"disk of 10^18", nil, func(r *Request) { r.Disks[0].Bytes = 1e18 }, NoStorage, "disk root"},
		{"datastore", nil, func(r *Request) { r.Disks[0].Datastore = "fast" }, NoStorage, "needs datastore fast"},
		{"datastore's kind", nil, func(r *Request) { r.Disks[0].Kind = "nfs" }, NoStorage, "of kind nfs"},
		{"closed datastore", func(h *Host) { h.Datastores[0].Closed = true }, nil, NoStorage, "closed"},
		{"together too large", nil, func(r *Request) { r.Disks = []Disk{{Bytes: 300 * gib}, {Bytes: 300 * gib}} }, NoStorage, "not together"},
		{"hard anti", func(h *Host) { h.Residents = web }, func(r *Request) { r.Terms = []Term{{Anti: true, Hard: true, Group: "web"}} }, Affinity, `must not share a host with group "web"`},
		{"hard affinity", nil, func(r *Request) {
			r.Terms = []Term{{Hard: true, Scope: SameSite, Labels: map[string]string{"app": "db"}}}
		}, Affinity, "must share a site with VMs labelled app=db"},
		{"resident keeps others away", func(h *Host) {
			h.Residents = []Resident{{Name: "x", Terms: []Term{{Anti: true, Hard: true, Labels: map[string]string{"app": "web"}}}}}
		}, func(r *Request) { r.Labels = map[string]string{"app": "web"} }, Affinity, "a VM there must not share its host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, r := host("a"), vm("v")
			if tt.host != nil {
				tt.host(&h)
			}
			if tt.vm != nil {
				tt.vm(&r)
			}
			res, err := Place([]Host{h}, r, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if len(res.Candidates) != 0 || len(res.Rejected) != 1 || len(res.Rejected[0].Reasons) != 1 {
				t.Fatalf("got %+v, want one rejection with one reason", res)
			}
			why := res.Rejected[0].Reasons[0]
			if why.Code != tt.code || !strings.Contains(why.Text, tt.want) {
				t.Errorf("reason %+v, want %s with %q", why, tt.code, tt.want)
			}
			if text := Explain(res.Rejected); text != "a: "+why.Text {
				t.Errorf("Explain: %q", text)
			}
		})
	}
}

func TestAllReasonsAreGiven(t *testing.T) {
	h := host("a", func(h *Host) { h.Cordoned, h.AllocatedMemoryMiB, h.Networks = true, h.MemoryMiB, nil })
	res, err := Place([]Host{h}, vm("v"), Options{})
	if err != nil || len(res.Rejected) != 1 || len(res.Rejected[0].Reasons) != 3 {
		t.Errorf("%+v, %v: want three reasons", res, err)
	}
}

func best(t *testing.T, hosts []Host, r Request, o Options) Candidate {
	t.Helper()
	res, err := Place(hosts, r, o)
	if err != nil {
		t.Fatal(err)
	}
	c, ok := res.Best()
	if !ok {
		t.Fatalf("nothing fits: %s", Explain(res.Rejected))
	}
	return c
}

func TestChoice(t *testing.T) {
	busy := func(h *Host) { h.AllocatedMemoryMiB, h.AllocatedCPUs = 32768, 20 }
	web := func(h *Host) {
		h.Residents = append(h.Residents, Resident{Name: "w" + h.Name, Groups: []string{"web"}})
	}
	ny := func(h *Host) { h.Site = "ny" }
	anti := func(scope Scope, hard bool) func(*Request) {
		return func(r *Request) { r.Terms = append(r.Terms, Term{Anti: true, Hard: hard, Scope: scope, Group: "web"}) }
	}
	near := func(r *Request) { r.Terms = append(r.Terms, Term{Group: "web"}) }
	for _, tt := range []struct {
		name  string
		hosts []Host
		vm    Request
		opts  Options
		want  string
	}{
		{"spreads", []Host{host("a", busy), host("b")}, vm("v"), Options{}, "b"},
		{"packs", []Host{host("a"), host("b", busy)}, vm("v"), Options{Pack: true}, "b"},
		{"first by name of equals", []Host{host("b"), host("a")}, vm("v"), Options{}, "a"},
		{"soft anti", []Host{host("a", web), host("b", busy)}, vm("v", anti(SameHost, false)), Options{}, "b"},
		{"soft anti gives way", []Host{host("a", web)}, vm("v", anti(SameHost, false)), Options{}, "a"},
		{"soft affinity", []Host{host("a"), host("b", busy, web)}, vm("v", near), Options{}, "b"},
		{"hard anti by site", []Host{host("a", web), host("b"), host("c", ny, busy)}, vm("v", anti(SameSite, true)), Options{}, "c"},
		{"itself does not count", []Host{host("a", web), host("b", busy)}, vm("wa", anti(SameHost, true)), Options{}, "a"},
		{"no overcommit", []Host{host("a", busy), host("b", func(h *Host) { h.AllocatedMemoryMiB = 60000 })}, vm("v"), Options{CPUOvercommit: 1}, "b"},
		{"memory overcommit", []Host{host("a", func(h *Host) { h.AllocatedMemoryMiB = 65536 })}, vm("v"), Options{MemoryOvercommit: 1.5}, "a"},
	} {
		if got := best(t, tt.hosts, tt.vm, tt.opts); got.Host != tt.want || got.Score < 0 || got.Score > 1 || len(got.Parts) != 4 {
			t.Errorf("%s: %+v, want host %s", tt.name, got, tt.want)
		}
	}
}

func TestDisksGoBackWhenGreedyFails(t *testing.T) {
	h := host("a", func(h *Host) {
		h.Datastores = []Datastore{{Name: "x", Kind: "dir", FreeBytes: 10 * gib}, {Name: "y", Kind: "ssd", FreeBytes: 9 * gib}}
	})
	// The larger free-roaming disk would take x, which the other one needs.
	r := vm("v", func(r *Request) {
		r.Disks = []Disk{{Name: "pinned", Bytes: 8 * gib, Datastore: "x"}, {Name: "free", Bytes: 9 * gib}}
	})
	if c := best(t, []Host{h}, r, Options{}); !reflect.DeepEqual(c.Disks, []string{"x", "y"}) {
		t.Errorf("disks on %v, want x and y", c.Disks)
	}
	res, err := Place([]Host{h}, r, Options{DatastoreReserve: gib})
	if err != nil || len(res.Candidates) != 0 {
		t.Errorf("the reserve was used: %+v, %v", res, err)
	}
}

func TestPlaceAllEvacuates(t *testing.T) {
	shared := func(h *Host) {
		h.Datastores = []Datastore{{Name: "nfs", Kind: "nfs", SizeBytes: 100 * gib, FreeBytes: 45 * gib, Shared: true}}
	}
	leaving := host("a", shared, func(h *Host) { h.Maintenance = true })
	var reqs []Request
	for i := range 3 {
		name := fmt.Sprintf("v%d", i)
		leaving.Residents = append(leaving.Residents, Resident{Name: name, Groups: []string{"db"}})
		reqs = append(reqs, vm(name, func(r *Request) {
			r.Groups = []string{"db"}
			r.Terms = []Term{{Anti: true, Hard: true, Group: "db"}}
		}))
	}
	hosts := []Host{leaving, host("b", shared), host("c", shared), host("d", shared)}
	plan, err := PlaceAll(hosts, reqs, Options{})
	if err != nil || len(plan.Assignments) != 2 || len(plan.Failures) != 1 {
		t.Fatalf("%+v, %v: 45 GiB of shared room take two disks of 20 GiB", plan, err)
	}
	if msg := plan.Err().Error(); !strings.Contains(msg, "nfs has 5120 MiB free") {
		t.Errorf("error %q", msg)
	}
	for i := range hosts {
		hosts[i].Datastores[0].FreeBytes = 60 * gib
	}
	plan, err = PlaceAll(hosts, reqs, Options{})
	if err != nil || plan.Err() != nil {
		t.Fatal(err, plan.Err())
	}
	seen := map[string]bool{}
	for _, a := range plan.Assignments {
		if a.Host == "a" || seen[a.Host] {
			t.Errorf("%s goes to %s", a.VM, a.Host)
		}
		seen[a.Host] = true
	}
}

func TestTeamsStayTogether(t *testing.T) {
	// b is roomier, but only c takes both.
	b := host("b", func(h *Host) { h.AllocatedMemoryMiB = 65536 - 6000; h.CPUs = 64 })
	c := host("c", func(h *Host) { h.AllocatedMemoryMiB = 65536 - 8200; h.AllocatedCPUs = 60 })
	pair := func(r *Request) {
		r.Groups = []string{"pair"}
		r.Terms = []Term{{Hard: true, Group: "pair"}}
	}
	plan, err := PlaceAll([]Host{b, c}, []Request{vm("x", pair), vm("y", pair)}, Options{})
	if err != nil || plan.Err() != nil {
		t.Fatal(err, plan.Err())
	}
	for _, a := range plan.Assignments {
		if a.Host != "c" {
			t.Errorf("%s goes to %s, want both on c", a.VM, a.Host)
		}
	}
	plan, err = PlaceAll([]Host{b}, []Request{vm("x", pair), vm("y", pair)}, Options{})
	if err != nil || len(plan.Failures) != 2 || !strings.Contains(plan.Failures[0].Because, "together") {
		t.Errorf("%+v, %v: want both to fail, for being tied", plan, err)
	}
}

func TestValidate(t *testing.T) {
	bad := []Request{
		{}, {Name: "v"}, vm("v", func(r *Request) { r.CPUs = -1 }), vm("v", func(r *Request) { r.Disks[0].Bytes = -1 }),
		vm("v", func(r *Request) { r.Terms = []Term{{Hard: true}} }),
	}
	for _, r := range bad {
		if _, err := Place(nil, r, Options{}); err == nil {
			t.Errorf("%+v was accepted", r)
		}
	}
	if _, err := Place(nil, vm("v"), Options{CPUOvercommit: -1}); err == nil {
		t.Error("a negative overcommit was accepted")
	}
	if _, err := PlaceAll(nil, []Request{vm("v"), vm("v")}, Options{}); err == nil {
		t.Error("a name was accepted twice")
	}
	if res, err := Place(nil, vm("v"), Options{}); err != nil || Explain(res.Rejected) != "there is no host" {
		t.Errorf("no hosts: %+v, %v", res, err)
	}
}

// Each of the two may start anywhere by its own rule, but once both run the
// first one's rule speaks of the second.
func TestTeamIsCheckedAsAWhole(t *testing.T) {
	x := vm("x", func(r *Request) {
		r.Labels = map[string]string{"app": "x"}
		r.Terms = []Term{{Hard: true, Labels: r.Labels}}
	})
	y := vm("y", func(r *Request) {
		r.Labels, r.Groups = x.Labels, []string{"g"}
		r.Terms = []Term{{Hard: true, Group: "g"}}
		r.Hosts = []string{"b"}
		r.CPUs = 3
	})
	x.MemoryMiB = y.MemoryMiB * 2
	x.Sites = []string{"sj"}
	plan, err := PlaceAll([]Host{host("a"), host("b")}, []Request{x, y}, Options{})
	if err != nil || plan.Err() != nil {
		t.Fatal(err, plan.Err())
	}
	for _, a := range plan.Assignments {
		if a.Host != "b" {
			t.Errorf("%s goes to %s, want both on b", a.VM, a.Host)
		}
	}
}
