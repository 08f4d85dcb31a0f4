package query

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	droverv1 "drover/api/drover/v1"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func webVM() *droverv1.VM {
	return &droverv1.VM{
		Meta: &droverv1.Meta{
			Name:       "web-1",
			Labels:     map[string]string{"env": "prod", "app.example/tier": "front", "a b": "x", "empty": ""},
			CreateTime: timestamppb.New(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)),
		},
		Spec: &droverv1.VMSpec{
			Cpus: 4, MemoryBytes: 4 << 30, Power: droverv1.Power_POWER_ON, Template: true,
			Description: `the "Große" box`, StopTimeout: durationpb.New(90 * time.Second),
			Nics: []*droverv1.NICSpec{{Name: "n0", Network: "lan"}, {Name: "n1", Network: "dmz", Addresses: []string{"10.0.0.1/24"}}},
		},
	}
}

func TestFilter(t *testing.T) {
	for filter, want := range map[string]bool{
		"":                                     true,
		"  ":                                   true,
		`meta.name = "web-1"`:                  true,
		`meta.name = web-1`:                    true,
		`meta.name=web`:                        false,
		`meta.name:WEB`:                        true,
		`web`:                                  true,
		`"EB-"`:                                true,
		`db`:                                   false,
		`spec.cpus = 4`:                        true,
		`spec.cpus != 4`:                       false,
		`spec.cpus >= 4 spec.cpus < 5`:         true,
		`spec.cpus > -1`:                       true,
		`spec.cpus < -1`:                       false,
		`spec.memoryBytes >= 4GiB`:             true,
		`spec.memory_bytes > 4.`:               false, // an error, see below
		`spec.power = ON`:                      true,
		`spec.power = power_on`:                true,
		`spec.power != OFF`:                    true,
		`spec.template = true`:                 true,
		`spec.template != true`:                false,
		`spec.description:"große"`:             true,
		`spec.description = 'the "Große" box'`: true,
		`spec.stop_timeout > 1m`:               true,
		`spec.stop_timeout = "1m30s"`:          true,
		`meta.create_time < "2026-03-01T12:00:01Z"`:       true,
		`meta.create_time >= "2026-03-01T13:00:00+01:00"`: true,
		`meta.delete_time < "2099-01-01T00:00:00Z"`:       false, // has no value
		`meta.delete_time != "2099-01-01T00:00:00Z"`:      true,
		`meta.labels.env = prod`:                          true,
		`meta.labels.env != prod`:                         false,
		`meta.labels.none = ""`:                           false,
		`meta.labels.none != prod`:                        true,
		`meta.labels.app.example/tier = front`:            true,
		`meta.labels."a b" = x`:                           true,
		`meta.labels:env`:                                 true,
		`meta.labels:none`:                                false,
		`meta.labels.empty:*`:                             true,
		`meta.labels.none:*`:                              false,
		`meta.labels:*`:                                   true,
		`spec.nics.network = dmz`:                         true,
		`spec.nics.network = wan`:                         false,
		`spec.nics.network != dmz`:                        false,
		`spec.nics.network != wan`:                        true,
		`spec.nics.addresses:"10.0."`:                     true,
		`spec.nics:*`:                                     true,
		`spec.disks:*`:                                    false,
		`spec.cloud_init:*`:                               false,
		`spec.cloud_init.user = ""`:                       true,
		`status.owner = ""`:                               true,
		`status.owner:*`:                                  false,
		`status.phase = UNSPECIFIED`:                      true,
		`NOT db`:                                          true,
		`-web`:                                            false,
		`NOT NOT web`:                                     true,
		`db OR web`:                                       true,
		`db AND web`:                                      false,
		`web AND db OR web`:                               true, // OR binds tighter
		`db AND db OR web`:                                false,
		`(db AND db) OR web`:                              true,
		`NOT (db OR spec.cpus = 4)`:                       false,
	} {
		q, err := Compile((*droverv1.VM)(nil), filter, "")
		if filter == `spec.memory_bytes > 4.` {
			if err == nil {
				t.Errorf("%s compiled", filter)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", filter, err)
			continue
		}
		if got := q.Match(webVM()); got != want {
			t.Errorf("%s: got %v, want %v", filter, got, want)
		}
		q.Match(&droverv1.VM{}) // no meta, no spec
	}
}

func TestMistakesSayWhereAndWhat(t *testing.T) {
	for _, c := range []struct {
		filter, order string
		in            string
		pos           int
		says          string
	}{
		{filter: "spec.cpu = 4", in: "filter", pos: 6, says: "did you mean cpus"},
		{filter: "web AND mta.name = x", in: "filter", pos: 9, says: "meta"},
		{filter: "spec.cpus.x = 4", in: "filter", pos: 11, says: "no fields inside"},
		{filter: "spec.cpus = four", in: "filter", pos: 13, says: "whole number"},
		{filter: "spec.cpus = 99999999999TiB", in: "filter", pos: 13, says: "whole number"},
		{filter: "spec.power = ONN", in: "filter", pos: 14, says: "did you mean ON"},
		{filter: "spec.template > true", in: "filter", pos: 17, says: "no order"},
		{filter: "spec.template = yes", in: "filter", pos: 17, says: "true or false"},
		{filter: "meta.create_time > yesterday", in: "filter", pos: 20, says: "2026"},
		{filter: "spec.stop_timeout > long", in: "filter", pos: 21, says: "90s"},
		{filter: "spec = x", in: "filter", pos: 8, says: "presence"},
		{filter: "meta.labels = x", in: "filter", pos: 15, says: "map"},
		{filter: `meta.name = "x`, in: "filter", pos: 13, says: "not closed"},
		{filter: "(web", in: "filter", pos: 1, says: "not closed"},
		{filter: "web)", in: "filter", pos: 4, says: "unexpected"},
		{filter: "web OR", in: "filter", pos: 7, says: "ends"},
		{filter: "AND web", in: "filter", pos: 1, says: "before"},
		{filter: "spec.cpus =", in: "filter", pos: 12, says: "value"},
		{filter: "web & x", in: "filter", pos: 5, says: "quotes"},
		{filter: strings.Repeat("(", 70) + "a", in: "filter", pos: 65, says: "deeper"},
		{filter: strings.Repeat("a ", 3000), in: "filter", pos: 4097, says: "longer"},
		{order: "spec.cpu", in: "order_by", pos: 6, says: "cpus"},
		{order: "spec.cpus, meta.nme desc", in: "order_by", pos: 17, says: "name"},
		{order: "spec.cpus down", in: "order_by", pos: 1, says: "desc"},
		{order: "spec.cpus,,meta.name", in: "order_by", pos: 11, says: "field name"},
		{order: "spec.nics.name", in: "order_by", pos: 1, says: "no order"},
		{order: "meta.labels", in: "order_by", pos: 1, says: "no order"},
		{order: "spec", in: "order_by", pos: 1, says: "no order"},
		{order: strings.Repeat("spec.cpus,", 9) + "spec.cpus", in: "order_by", pos: 81, says: "too many"},
	} {
		_, err := Compile((*droverv1.VM)(nil), c.filter, c.order)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q %q: got %v, want an *Error", c.filter, c.order, err)
			continue
		}
		if e.In != c.in || e.Pos != c.pos || !strings.Contains(e.Reason, c.says) {
			t.Errorf("%q %q: got %q (in %s at %d), want it in %s at %d saying %q", c.filter, c.order, err, e.In, e.Pos, c.in, c.pos, c.says)
		}
	}
}

// fleet makes n VMs in name order, the same each time.
func fleet(n int) []*droverv1.VM {
	r := rand.New(rand.NewPCG(1, 2))
	vms := make([]*droverv1.VM, n)
	for i := range vms {
		vms[i] = &droverv1.VM{
			Meta:   &droverv1.Meta{Name: fmt.Sprintf("vm-%05d", i), Labels: map[string]string{"env": []string{"prod", "test"}[r.IntN(2)]}},
			Spec:   &droverv1.VMSpec{Cpus: int32(1 + r.IntN(8)), MemoryBytes: int64(r.IntN(64)) << 28},
			Status: &droverv1.VMStatus{Owner: fmt.Sprintf("host-%d", r.IntN(20)), Phase: droverv1.VMPhase(r.IntN(4))},
		}
		if r.IntN(3) > 0 {
			vms[i].Meta.CreateTime = timestamppb.New(time.Unix(int64(r.IntN(1000)), 0))
		}
	}
	return vms
}

func TestPagesTogetherAreTheSortedList(t *testing.T) {
	vms := fleet(500)
	for _, order := range []string{"", "spec.cpus", "spec.cpus desc, meta.name desc", "meta.create_time desc", "meta.labels.env, spec.memory_bytes desc", "status.phase,status.owner"} {
		q, err := Compile((*droverv1.VM)(nil), "spec.cpus >= 3", order)
		if err != nil {
			t.Fatal(err)
		}
		all, err := Page(q, vms, 1000, "")
		if err != nil || all.Next != "" || all.Total != len(all.Items) || all.Total < 300 {
			t.Fatalf("%s: %d items of %d, next %q, %v", order, len(all.Items), all.Total, all.Next, err)
		}
		if !slices.IsSortedFunc(all.Items, func(a, b *droverv1.VM) int {
			return q.compare(q.rank(a.ProtoReflect(), nil), q.rank(b.ProtoReflect(), nil))
		}) {
			t.Errorf("%s: not in order", order)
		}
		shuffled := slices.Clone(vms)
		rand.New(rand.NewPCG(3, 4)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		var got []*droverv1.VM
		for token := ""; ; {
			p, err := Page(q, shuffled, 7, token)
			if err != nil || p.Total != all.Total {
				t.Fatalf("%s: total %d, %v", order, p.Total, err)
			}
			got = append(got, p.Items...)
			if token = p.Next; token == "" {
				break
			}
		}
		if !slices.Equal(got, all.Items) {
			t.Errorf("%s: the pages differ from the list", order)
		}
	}
}

func TestPageResumesAfterItsLastObjectIsGone(t *testing.T) {
	q, err := Compile((*droverv1.VM)(nil), "", "meta.name desc")
	if err != nil {
		t.Fatal(err)
	}
	vms := fleet(20)
	first, err := Page(q, vms, 5, "")
	if err != nil {
		t.Fatal(err)
	}
	rest := slices.DeleteFunc(vms, func(vm *droverv1.VM) bool { return slices.Contains(first.Items, vm) })
	rest = append(rest, &droverv1.VM{Meta: &droverv1.Meta{Name: "zzz"}}) // before the page: not seen again
	second, err := Page(q, rest, 5, first.Next)
	if err != nil || second.Items[0].Meta.Name != "vm-00014" {
		t.Fatalf("second page starts at %v, %v", second.Items[0].Meta, err)
	}
}

func TestTokensAreBoundAndChecked(t *testing.T) {
	vms := fleet(20)
	compile := func(m proto.Message, filter, order string) *Query {
		q, err := Compile(m, filter, order)
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	q := compile((*droverv1.VM)(nil), "spec.cpus > 0", "spec.cpus")
	p, err := Page(q, vms, 3, "")
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]*Query{
		"filter": compile((*droverv1.VM)(nil), "spec.cpus > 1", "spec.cpus"),
		"order":  compile((*droverv1.VM)(nil), "spec.cpus > 0", "spec.cpus desc"),
	} {
		if _, err := Page(other, vms, 3, p.Next); !errors.Is(err, ErrToken) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	for i := range p.Next {
		for _, c := range []byte("A_z") {
			if p.Next[i] == c {
				continue
			}
			bad := p.Next[:i] + string(c) + p.Next[i+1:]
			if _, err := Page(q, vms, 3, bad); !errors.Is(err, ErrToken) {
				t.Fatalf("changed at %d: %v", i, err)
			}
		}
		if _, err := Page(q, vms, 3, p.Next[:i]); i > 0 && !errors.Is(err, ErrToken) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func TestTenThousandPageQuickly(t *testing.T) {
	vms := fleet(10_000)
	for _, c := range []struct{ filter, order string }{
		{"meta.labels.env = prod AND spec.cpus >= 4 AND status.owner:host-1", ""},
		{"", "spec.memory_bytes desc, meta.create_time"},
	} {
		var took []time.Duration
		for range 50 {
			start := time.Now()
			q, err := Compile((*droverv1.VM)(nil), c.filter, c.order)
			if err != nil {
				t.Fatal(err)
			}
			if p, err := Page(q, vms, 100, ""); err != nil || len(p.Items) != 100 {
				t.Fatalf("%d items, %v", len(p.Items), err)
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		t.Logf("%q by %q: median %v, worst %v", c.filter, c.order, took[25], took[49])
		// The promise is 20 ms p99 on an idle machine; the median is what a loaded one can be held to.
		if took[25] > 20*time.Millisecond && !raceEnabled {
			t.Errorf("%q by %q: median %v", c.filter, c.order, took[25])
		}
	}
}

func BenchmarkFilterPage(b *testing.B) {
	vms := fleet(10_000)
	q, err := Compile((*droverv1.VM)(nil), "meta.labels.env = prod AND spec.cpus >= 4 AND status.owner:host-1", "")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Page(q, vms, 100, ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOrderPage(b *testing.B) {
	vms := fleet(10_000)
	q, err := Compile((*droverv1.VM)(nil), "", "spec.memory_bytes desc, meta.create_time")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Page(q, vms, 100, ""); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzCompile(f *testing.F) {
	for _, s := range []string{`meta.labels."a b" = x OR NOT (spec.cpus > -4GiB)`, `a.b:"c\"d" -x`, `spec.nics.network:*`, `meta.create_time<"2026-03-01T12:00:01Z"`} {
		f.Add(s, "spec.cpus desc, meta.name")
	}
	vm := webVM()
	f.Fuzz(func(t *testing.T, filter, order string) {
		q, err := Compile(vm, filter, order)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Pos < 0 || e.Pos > max(len(filter), len(order))+1 {
				t.Fatalf("not an error with a position: %v", err)
			}
			return
		}
		q.Match(&droverv1.VM{})
		if p, err := Page(q, []*droverv1.VM{vm}, 1, ""); err != nil || (len(p.Items) == 1) != q.Match(vm) {
			t.Fatalf("page %v, %v, match %v", p, err, q.Match(vm))
		}
	})
}

func FuzzToken(f *testing.F) {
	q, err := Compile((*droverv1.VM)(nil), "", "spec.cpus, meta.create_time")
	if err != nil {
		f.Fatal(err)
	}
	p, err := Page(q, fleet(3), 1, "")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p.Next)
	f.Fuzz(func(t *testing.T, token string) {
		r, err := q.decode(token)
		if err == nil && q.encode(r) != token {
			t.Fatalf("token %q decodes but does not come back", token)
		}
	})
}
