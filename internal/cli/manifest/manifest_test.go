package manifest

import (
	"bytes"
	"strings"
	"testing"
	"time"

	v1 "drover/api/drover/v1"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"
)

func lookup(kind string) (string, proto.Message, bool) {
	switch kind {
	case "vm", "vms":
		return "vm", &v1.VM{}, true
	case "network":
		return "network", &v1.Network{}, true
	case "host":
		return "host", &v1.Host{}, true
	}
	return "", nil, false
}

func one(t *testing.T, text string) *Doc {
	t.Helper()
	docs, err := Parse("f.yaml", strings.NewReader(text), lookup)
	if err != nil || len(docs) != 1 {
		t.Fatalf("Parse: %d documents, %v", len(docs), err)
	}
	return docs[0]
}

func TestMergeNew(t *testing.T) {
	got, err := one(t, `
kind: vm
meta: {name: web, labels: {env: prod, n: 1}}
spec:
  cpus: 2
  memory_bytes: 1.5GiB
  power: on
  stopTimeout: 1m30s
  cloud_init: {enabled: true, user_data: "#cloud-config\n"}
  disks:
  - {name: root, size_bytes: 10G, bus: virtio-scsi}
status: {phase: whatever, made: up}
`).Merge(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &v1.VM{
		Meta: &v1.Meta{Name: "web", Labels: map[string]string{"env": "prod", "n": "1"}},
		Spec: &v1.VMSpec{
			Cpus: 2, MemoryBytes: 3 << 29, Power: v1.Power_POWER_ON, StopTimeout: durationpb.New(90 * time.Second),
			CloudInit: &v1.CloudInit{Enabled: true, UserData: "#cloud-config\n"},
			Disks:     []*v1.DiskSpec{{Name: "root", SizeBytes: 10 << 30, Bus: v1.DiskBus_DISK_BUS_VIRTIO_SCSI}},
		},
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Error(d)
	}
}

func TestMergeCurrent(t *testing.T) {
	current := &v1.VM{
		Meta: &v1.Meta{Name: "web", Uid: "u", Revision: 7, Labels: map[string]string{"old": "1"}, Annotations: map[string]string{"drover/file": "x", "mine": "y"}},
		Spec: &v1.VMSpec{
			Cpus: 1, MemoryBytes: 1 << 30, Description: "stays",
			Disks: []*v1.DiskSpec{{Name: "root", SizeBytes: 1 << 30, Datastore: "a"}, {Name: "gone", SizeBytes: 5}},
			Nics:  []*v1.NICSpec{{Name: "nic0", Network: "lan", Mac: "52:54:00:00:00:01"}},
		},
		Status: &v1.VMStatus{Phase: v1.VMPhase_VM_PHASE_OFF},
	}
	before := proto.CloneOf(current)
	got, err := one(t, `
kind: vm
meta: {name: web, uid: other, revision: 3, labels: {new: "2"}, annotations: {note: z}}
spec:
  cpus: 4
  memory_bytes: ~
  disks:
  - {name: data, size_bytes: 1M}
  - {name: root, size_bytes: 2GiB}
`).Merge(current)
	if err != nil {
		t.Fatal(err)
	}
	want := proto.CloneOf(current)
	want.Meta.Labels = map[string]string{"new": "2"}
	want.Meta.Annotations = map[string]string{"drover/file": "x", "note": "z"}
	want.Spec.Cpus, want.Spec.MemoryBytes = 4, 0
	want.Spec.Disks = []*v1.DiskSpec{{Name: "data", SizeBytes: 1 << 20}, {Name: "root", SizeBytes: 2 << 30, Datastore: "a"}}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(before, current, protocmp.Transform()); d != "" {
		t.Errorf("Merge changed its argument: %s", d)
	}
	if d := cmp.Diff([]string{"meta.labels", "meta.annotations", "spec.cpus", "spec.memory_bytes", "spec.disks"}, Changed(current, got)); d != "" {
		t.Error(d)
	}
	if got := Changed(current, current); len(got) != 0 {
		t.Errorf("Changed of the same: %v", got)
	}
}

func TestFaults(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"unknown field":   {"kind: vm\nmeta: {name: a}\nspec:\n  cpu: 2\n", "f.yaml:4: spec.cpu: no such field; did you mean cpus?"},
		"in a list":       {"kind: vm\nmeta: {name: a}\nspec:\n  disks:\n  - name: d\n    siz: 1\n", "f.yaml:6: spec.disks[0].siz: no such field"},
		"unknown kind":    {"kind: cow\nmeta: {name: a}", `f.yaml:1: no such kind: "cow"`},
		"no kind":         {"meta: {name: a}", "the document has no kind"},
		"no name":         {"kind: vm\nspec: {}", "has no name"},
		"second document": {"kind: vm\nmeta: {name: a}\n---\nkind: vm\nmeta: {name: b}\nspecs: {}\n", "f.yaml:6: specs: no such field; did you mean spec?"},
		"twice":           {"kind: vm\nmeta: {name: a}\n---\nkind: vms\nmeta: {name: a}\n", `f.yaml:4: vm "a": is in line 1 already`},
		"key twice":       {"kind: vm\nmeta: {name: a}\nspec: {cpus: 1, cpus: 2}", "f.yaml:3: spec.cpus: is given twice"},
		"bad size":        {"kind: vm\nmeta: {name: a}\nspec: {memory_bytes: lots}", `f.yaml:3: spec.memory_bytes: "lots" is not a size`},
		"bad number":      {"kind: vm\nmeta: {name: a}\nspec: {cpus: 1e3}", "is not a whole number of 32 bits"},
		"bad bool":        {"kind: vm\nmeta: {name: a}\nspec: {template: maybe}", "is not true or false"},
		"bad enum":        {"kind: vm\nmeta: {name: a}\nspec: {power: half}", `"half" is none of off, on, paused`},
		"list for one":    {"kind: vm\nmeta: {name: a}\nspec: {cpus: [1]}", "one value is needed here"},
		"one for list":    {"kind: vm\nmeta: {name: a}\nspec: {disks: 1}", "a list is needed here"},
		"scalar document": {"just text", "a document is a mapping"},
		"not YAML":        {"a: [", "f.yaml: line 1:"},
		"empty":           {"# nothing\n", "holds no documents"},
		"bomb": {"a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nkind: vm\nmeta: {name: a}\nspec: {disks: *c}",
			"a: no such field"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("f.yaml", strings.NewReader(c.in), lookup)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q", err, c.want)
			}
		})
	}
}

func TestBound(t *testing.T) {
	text := "kind: network\nmeta: {name: a}\nspec:\n  sites: [" + strings.Repeat("a,", maxValues+1) + "]\n"
	if _, err := Parse("f", strings.NewReader(text), lookup); err == nil || !strings.Contains(err.Error(), "more than 200000 values") {
		t.Errorf("error %.200v", err)
	}
	if _, err := Parse("f", strings.NewReader(strings.Repeat("# x\n", maxBytes/4+1)), lookup); err == nil || !strings.Contains(err.Error(), "larger than 16 MiB") {
		t.Errorf("error %.200v", err)
	}
}

func TestJSONDocuments(t *testing.T) {
	var b bytes.Buffer
	nets := []proto.Message{
		&v1.Network{Meta: &v1.Meta{Name: "a"}, Spec: &v1.NetworkSpec{Mtu: 9000}},
		&v1.Network{Meta: &v1.Meta{Name: "b"}},
	}
	if err := JSONList(&b, "network", nets); err != nil {
		t.Fatal(err)
	}
	docs, err := Parse("f.json", &b, lookup)
	if err != nil || len(docs) != 2 {
		t.Fatalf("%d documents, %v", len(docs), err)
	}
	for i, d := range docs {
		got, err := d.Merge(nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(nets[i], got, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	b.Reset()
	if err := JSON(&b, "network", &v1.Network{}); err != nil || b.String() != "{\n  \"kind\": \"network\"\n}\n" {
		t.Errorf("JSON of an empty message: %q, %v", b.String(), err)
	}
}

// TestRoundTrip: what YAML writes, Parse reads back, whatever is in it.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[ -~\n\täß日'"#:>|&*!%@{}\[\]-]{0,40}`)
		vm := &v1.VM{
			Meta: &v1.Meta{Name: rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?`).Draw(t, "name"), Labels: rapid.MapOfN(text, text, 1, 3).Draw(t, "labels")},
			Spec: &v1.VMSpec{
				Description: text.Draw(t, "description"), Cpus: rapid.Int32().Draw(t, "cpus"), MemoryBytes: rapid.Int64Min(0).Draw(t, "memory"),
				Power: v1.Power(rapid.IntRange(0, 3).Draw(t, "power")), Template: rapid.Bool().Draw(t, "template"),
				StopTimeout: durationpb.New(time.Duration(rapid.Int64().Draw(t, "timeout"))),
				CloudInit:   &v1.CloudInit{UserData: text.Draw(t, "user data"), SshAuthorizedKeys: rapid.SliceOfN(text, 1, 3).Draw(t, "keys")},
				Disks:       []*v1.DiskSpec{{Name: "a", ReadOnly: true}, {Name: "b", Format: 2}},
				Placement:   &v1.PlacementSpec{HostLabels: rapid.MapOfN(text, text, 1, 3).Draw(t, "host labels")},
			},
		}
		full := proto.CloneOf(vm)
		full.Meta.Uid, full.Meta.Revision, full.Meta.CreateTime = "u", 3, timestamppb.New(time.Unix(1, 5))
		full.Status = &v1.VMStatus{Phase: 5, Disks: []*v1.DiskStatus{{Layers: []string{"x"}}}}
		var b bytes.Buffer
		if err := YAML(&b, "vm", full); err != nil {
			t.Fatal(err)
		}
		docs, err := Parse("f", bytes.NewReader(b.Bytes()), lookup)
		if err != nil {
			t.Fatalf("%v\n%s", err, b.String())
		}
		got, err := docs[0].Merge(nil)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(vm, got, protocmp.Transform()); d != "" {
			t.Fatalf("%s\n%s", d, b.String())
		}
		if d := cmp.Diff(proto.Message(vm), SpecOnly(full), protocmp.Transform()); d != "" {
			t.Fatalf("SpecOnly: %s", d)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("kind: vm\nmeta: {name: a}\nspec: {disks: [{name: x}]}\n")
	f.Add("&a kind: *a")
	f.Add("[{kind: vm, meta: {name: x}}]")
	f.Add("kind: vm\nmeta: &m {name: a, <<: *m}\nspec: {host_labels: {? [a] : b}}")
	f.Fuzz(func(t *testing.T, s string) {
		docs, err := Parse("f", strings.NewReader(s), lookup)
		if err == nil && len(docs) == 0 {
			t.Error("no documents and no error")
		}
	})
}
