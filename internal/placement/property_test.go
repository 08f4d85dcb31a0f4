package placement

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func drawTerms(t *rapid.T) []Term {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Term {
		term := Term{Anti: rapid.Bool().Draw(t, "anti"), Hard: rapid.Bool().Draw(t, "hard"), Scope: Scope(rapid.IntRange(0, 1).Draw(t, "scope"))}
		if rapid.Bool().Draw(t, "byGroup") {
			term.Group = rapid.SampledFrom([]string{"g1", "g2"}).Draw(t, "group")
		} else {
			term.Labels = map[string]string{"app": rapid.SampledFrom([]string{"x", "y"}).Draw(t, "app")}
		}
		return term
	}), 0, 2).Draw(t, "terms")
}

func drawMember(t *rapid.T) ([]string, map[string]string) {
	groups := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"g1", "g2"}), 0, 2, rapid.ID).Draw(t, "groups")
	return groups, map[string]string{"app": rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "app")}
}

func drawHosts(t *rapid.T) []Host {
	var hosts []Host
	for i := range rapid.IntRange(1, 5).Draw(t, "hosts") {
		h := Host{
			Name: fmt.Sprintf("h%d", i), Site: rapid.SampledFrom([]string{"s1", "s2"}).Draw(t, "site"),
			CPUs: rapid.Int64Range(1, 8).Draw(t, "cpus"), MemoryMiB: rapid.Int64Range(0, 100).Draw(t, "mem"),
			AllocatedCPUs: rapid.Int64Range(0, 8).Draw(t, "cpusUsed"), AllocatedMemoryMiB: rapid.Int64Range(0, 40).Draw(t, "memUsed"),
			Cordoned: rapid.IntRange(0, 5).Draw(t, "cordoned") == 0,
			Networks: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"n1", "n2"}), 1, 2, rapid.ID).Draw(t, "nets"),
			Datastores: []Datastore{
				{Name: "local", FreeBytes: rapid.Int64Range(0, 50).Draw(t, "free")},
				{Name: "nfs", Kind: "nfs", FreeBytes: 60, Shared: true},
			},
		}
		for k := range rapid.IntRange(0, 2).Draw(t, "residents") {
			// Residents hold no hard affinity: their own rule may be broken
			// already, which is not for the plan to mend.
			r := Resident{Name: fmt.Sprintf("r%d-%d", i, k)}
			r.Groups, r.Labels = drawMember(t)
			r.Terms = slices.DeleteFunc(drawTerms(t), func(t Term) bool { return t.Hard && !t.Anti })
			h.Residents = append(h.Residents, r)
		}
		hosts = append(hosts, h)
	}
	return hosts
}

func drawRequests(t *rapid.T) []Request {
	var out []Request
	for i := range rapid.IntRange(1, 8).Draw(t, "vms") {
		r := Request{
			Name: fmt.Sprintf("v%d", i), CPUs: rapid.Int64Range(1, 6).Draw(t, "cpus"), MemoryMiB: rapid.Int64Range(1, 40).Draw(t, "mem"),
			Networks: []string{rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "net")}, Terms: drawTerms(t),
		}
		r.Groups, r.Labels = drawMember(t)
		for d := range rapid.IntRange(0, 3).Draw(t, "disks") {
			r.Disks = append(r.Disks, Disk{
				Name: fmt.Sprint(d), Bytes: rapid.Int64Range(0, 30).Draw(t, "bytes"),
				Datastore: rapid.SampledFrom([]string{"", "", "local", "nfs"}).Draw(t, "store"),
			})
		}
		if rapid.IntRange(0, 3).Draw(t, "picky") == 0 {
			r.Sites = []string{"s1"}
		}
		out = append(out, r)
	}
	return out
}

// spot is a VM at a place, for the check.
type spot struct {
	Resident
	host  *Host
	moved bool
}

// check looks at the end state with nothing of the planner's own bookkeeping.
func check(t *rapid.T, hosts []Host, reqs []Request, o Options, plan Plan) {
	o = o.withDefaults()
	at := map[string]*Host{}
	for i := range hosts {
		at[hosts[i].Name] = &hosts[i]
	}
	byName := map[string]Request{}
	for _, r := range reqs {
		byName[r.Name] = r
	}
	var spots []spot
	for i := range hosts {
		for _, r := range hosts[i].Residents {
			if _, moving := byName[r.Name]; !moving {
				spots = append(spots, spot{r, &hosts[i], false})
			}
		}
	}
	cpu, mem, disk := map[string]int64{}, map[string]int64{}, map[string]int64{}
	for _, a := range plan.Assignments {
		r, h := byName[a.VM], at[a.Host]
		if h.Cordoned || len(r.Sites) > 0 && !slices.Contains(r.Sites, h.Site) || !slices.Contains(h.Networks, r.Networks[0]) {
			t.Fatalf("%s is on %s, which it may not use", a.VM, a.Host)
		}
		cpu[h.Name] += r.CPUs
		mem[h.Name] += r.MemoryMiB
		for d, store := range a.Disks {
			if want := r.Disks[d].Datastore; want != "" && want != store {
				t.Fatalf("%s: disk %d is on %s, wants %s", a.VM, d, store, want)
			}
			if store == "local" {
				store += "/" + h.Name
			}
			disk[store] += r.Disks[d].Bytes
		}
		if len(a.Disks) != len(r.Disks) {
			t.Fatalf("%s: %d disks placed of %d", a.VM, len(a.Disks), len(r.Disks))
		}
		spots = append(spots, spot{Resident{r.Name, r.Groups, r.Labels, r.Terms}, h, true})
	}
	for name, n := range cpu {
		if float64(at[name].AllocatedCPUs+n) > float64(at[name].CPUs)*o.CPUOvercommit {
			t.Fatalf("host %s: CPUs over capacity", name)
		}
	}
	for name, n := range mem {
		if float64(at[name].AllocatedMemoryMiB+n) > float64(at[name].MemoryMiB)*o.MemoryOvercommit {
			t.Fatalf("host %s: memory over capacity", name)
		}
	}
	for i := range hosts {
		if d := disk["local/"+hosts[i].Name]; d > 0 && d > hosts[i].Datastores[0].FreeBytes-o.DatastoreReserve {
			t.Fatalf("host %s: local datastore over capacity", hosts[i].Name)
		}
	}
	if d := disk["nfs"]; d > 0 && d > 60-o.DatastoreReserve {
		t.Fatal("shared datastore over capacity")
	}
	for _, s := range spots {
		for _, term := range s.Terms {
			if !term.Hard {
				continue
			}
			near, all := 0, 0
			for _, other := range spots {
				if other.Name == s.Name || !term.matches(other.Groups, other.Labels) {
					continue
				}
				// Two that were there before are none of the plan's doing.
				if term.Anti && !s.moved && !other.moved {
					continue
				}
				all++
				if term.Scope == SameHost && s.host == other.host || term.Scope == SameSite && s.host.Site == other.host.Site {
					near++
				}
			}
			if term.Anti && near > 0 {
				t.Fatalf("%s on %s: %d others break %+v", s.Name, s.host.Name, near, term)
			}
			if !term.Anti && near == 0 && (all > 0 || !term.matches(s.Groups, s.Labels)) {
				t.Fatalf("%s on %s: nobody near for %+v", s.Name, s.host.Name, term)
			}
		}
	}
}

func TestPlansAreSound(t *testing.T) {
	placed := 0
	rapid.Check(t, func(t *rapid.T) {
		hosts, reqs := drawHosts(t), drawRequests(t)
		o := Options{
			CPUOvercommit:    rapid.SampledFrom([]float64{0, 1, 1.5}).Draw(t, "cpuOver"),
			MemoryOvercommit: rapid.SampledFrom([]float64{0, 1.25}).Draw(t, "memOver"),
			DatastoreReserve: rapid.Int64Range(0, 10).Draw(t, "reserve"),
			Pack:             rapid.Bool().Draw(t, "pack"),
		}
		if rapid.Bool().Draw(t, "evacuate") {
			for _, r := range hosts[0].Residents {
				reqs = append(reqs, Request{
					Name: r.Name, Groups: r.Groups, Labels: r.Labels, Terms: r.Terms,
					CPUs: 1, MemoryMiB: 5, Networks: []string{"n1"}, Avoid: []string{hosts[0].Name},
				})
			}
		}
		plan, err := PlaceAll(hosts, reqs, o)
		if err != nil {
			t.Fatal(err)
		}
		if len(plan.Assignments)+len(plan.Failures) != len(reqs) {
			t.Fatalf("%d requests, %d assignments, %d failures", len(reqs), len(plan.Assignments), len(plan.Failures))
		}
		for _, f := range plan.Failures {
			if f.Because == "" && len(f.Rejected) != len(hosts) {
				t.Fatalf("%s failed with %d reasons for %d hosts", f.VM, len(f.Rejected), len(hosts))
			}
		}
		check(t, hosts, reqs, o, plan)
		placed += len(plan.Assignments)
		// The same input, hosts in another order: the same plan.
		turned := slices.Clone(hosts)
		slices.Reverse(turned)
		again, err := PlaceAll(turned, reqs, o)
		if err != nil || !reflect.DeepEqual(plan.Assignments, again.Assignments) {
			t.Fatalf("not deterministic:\n%+v\n%+v", plan.Assignments, again.Assignments)
		}
	})
	if placed == 0 {
		t.Error("no VM was ever placed: the property shows nothing")
	}
}

func TestPlaceAgreesWithPlaceAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hosts, r := drawHosts(t), drawRequests(t)[0]
		res, err := Place(hosts, r, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Candidates)+len(res.Rejected) != len(hosts) {
			t.Fatalf("%d hosts, %d candidates, %d rejected", len(hosts), len(res.Candidates), len(res.Rejected))
		}
		for _, rej := range res.Rejected {
			if len(rej.Reasons) == 0 {
				t.Fatalf("%s is rejected without a reason", rej.Host)
			}
		}
		plan, err := PlaceAll(hosts, []Request{r}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		c, ok := res.Best()
		if ok != (len(plan.Assignments) == 1) || ok && plan.Assignments[0].Host != c.Host {
			t.Fatalf("Place says %+v, PlaceAll %+v", res, plan)
		}
	})
}

// fleet is 300 hosts in two sites and n VMs: of ten groups of five, the
// members keep apart.
func fleet(n int) ([]Host, []Request) {
	var hosts []Host
	for i := range 300 {
		h := host(fmt.Sprintf("h%03d", i), func(h *Host) {
			h.CPUs, h.MemoryMiB = 64, 512<<10
			h.Datastores[0].SizeBytes, h.Datastores[0].FreeBytes = 20<<40, 16<<40
		})
		h.Site = []string{"sj", "ny"}[i%2]
		hosts = append(hosts, h)
	}
	var reqs []Request
	for i := range n {
		r := vm(fmt.Sprintf("v%05d", i), func(r *Request) { r.MemoryMiB = int64(1024 << (i % 5)) })
		if i%10 == 0 {
			r.Groups = []string{fmt.Sprintf("g%d", i/50)}
			r.Terms = []Term{{Anti: true, Hard: true, Group: r.Groups[0]}}
		}
		reqs = append(reqs, r)
	}
	return hosts, reqs
}

func BenchmarkPlaceAll10000On300(b *testing.B) {
	hosts, reqs := fleet(10000)
	for b.Loop() {
		plan, err := PlaceAll(hosts, reqs, Options{})
		if err != nil || len(plan.Failures) != 0 {
			b.Fatal(err, len(plan.Failures))
		}
	}
}

func BenchmarkPlaceOneAmong10000(b *testing.B) {
	hosts, reqs := fleet(10000)
	for i, r := range reqs {
		h := &hosts[i%300]
		h.Residents = append(h.Residents, Resident{r.Name, r.Groups, r.Labels, r.Terms})
	}
	one := vm("new", func(r *Request) { r.Groups, r.Terms = reqs[0].Groups, reqs[0].Terms })
	for b.Loop() {
		if res, err := Place(hosts, one, Options{}); err != nil || len(res.Candidates) == 0 {
			b.Fatal(err, len(res.Candidates))
		}
	}
}
