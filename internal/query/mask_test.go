package query

import (
	"errors"
	"strings"
	"testing"

	droverv1 "drover/api/drover/v1"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func TestApply(t *testing.T) {
	src := func() *droverv1.VM {
		return &droverv1.VM{
			Meta: &droverv1.Meta{Labels: map[string]string{"env": "test"}},
			Spec: &droverv1.VMSpec{Cpus: 2, Nics: []*droverv1.NICSpec{{Name: "only"}}},
		}
	}
	for _, c := range []struct {
		paths []string
		want  func(vm *droverv1.VM)
	}{
		{[]string{"spec.cpus"}, func(vm *droverv1.VM) { vm.Spec.Cpus = 2 }},
		{[]string{"spec.memoryBytes"}, func(vm *droverv1.VM) { vm.Spec.MemoryBytes = 0 }},
		{[]string{"meta.labels.env"}, func(vm *droverv1.VM) { vm.Meta.Labels["env"] = "test" }},
		{[]string{"meta.labels.app.example/tier"}, func(vm *droverv1.VM) { delete(vm.Meta.Labels, "app.example/tier") }},
		{[]string{"meta.labels"}, func(vm *droverv1.VM) { vm.Meta.Labels = map[string]string{"env": "test"} }},
		{[]string{"spec.nics", "spec.template"}, func(vm *droverv1.VM) {
			vm.Spec.Nics, vm.Spec.Template = []*droverv1.NICSpec{{Name: "only"}}, false
		}},
		{[]string{"spec"}, func(vm *droverv1.VM) { vm.Spec = src().Spec }},
		{[]string{"spec", "spec.cpus"}, func(vm *droverv1.VM) { vm.Spec = src().Spec }},
		{[]string{"status.owner", "spec.cloud_init.user"}, func(*droverv1.VM) {}},
		{[]string{"status"}, func(*droverv1.VM) {}},
		{[]string{"*"}, func(vm *droverv1.VM) { proto.Reset(vm); proto.Merge(vm, src()) }},
		{nil, func(vm *droverv1.VM) {
			vm.Meta.Labels = map[string]string{"env": "test"}
			vm.Spec.Cpus, vm.Spec.Nics = 2, []*droverv1.NICSpec{{Name: "only"}}
		}},
	} {
		got, want := webVM(), webVM()
		c.want(want)
		in := src()
		if err := Apply(&fieldmaskpb.FieldMask{Paths: c.paths}, got, in); err != nil {
			t.Errorf("%v: %v", c.paths, err)
			continue
		}
		if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
			t.Errorf("%v (-want +got):\n%s", c.paths, d)
		}
		got.Spec.Cpus = 77
		if len(got.Spec.Nics) > 0 {
			got.Spec.Nics[0].Name = "changed"
		}
		got.Meta.Labels = nil
		if !proto.Equal(in, src()) {
			t.Errorf("%v: the source is shared with the destination", c.paths)
		}
	}
}

func TestApplyRefusesWithoutChanging(t *testing.T) {
	dst := webVM()
	err := Apply(&fieldmaskpb.FieldMask{Paths: []string{"spec.cpus", "spec.cpsu", "nothing", "spec.nics.name", ""}}, dst, &droverv1.VM{})
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{`"spec.cpsu"`, "cpus", `"nothing"`, `"spec.nics.name"`, "as a whole", `path ""`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %s", err, want)
		}
	}
	if !proto.Equal(dst, webVM()) {
		t.Error("a refused mask changed the destination")
	}
	if err := Apply(nil, dst, &droverv1.Site{}); err == nil {
		t.Error("took a site for a VM")
	}
}

// Keys of maps may be numbers, as those of communities are.
func TestNumbersAsKeys(t *testing.T) {
	net := func(v map[int32]int32) *droverv1.Network {
		return &droverv1.Network{Spec: &droverv1.NetworkSpec{PrivateVlans: &droverv1.PrivateVLANs{CommunityVlans: v}}}
	}
	got := net(map[int32]int32{1: 11, 2: 12})
	mask := &fieldmaskpb.FieldMask{Paths: []string{"spec.private_vlans.community_vlans.2", "spec.private_vlans.community_vlans.3", "spec.private_vlans.community_vlans.4"}}
	if err := Apply(mask, got, net(map[int32]int32{1: 99, 3: 13})); err != nil {
		t.Fatal(err)
	}
	if want := net(map[int32]int32{1: 11, 3: 13}); !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, key := range []string{"x", "99999999999", "1.2"} {
		err := Apply(&fieldmaskpb.FieldMask{Paths: []string{"spec.private_vlans.community_vlans." + key}}, got, got)
		if err == nil || !strings.Contains(err.Error(), "community_vlans") {
			t.Errorf("key %q: %v", key, err)
		}
	}
	for filter, want := range map[string]bool{"spec.private_vlans.community_vlans.3 = 13": true, "spec.private_vlans.community_vlans.2 = 13": false} {
		q, err := Compile(got, filter, "")
		if err != nil {
			t.Errorf("%s: %v", filter, err)
		} else if q.Match(got) != want {
			t.Errorf("%s: %v", filter, !want)
		}
	}
}
