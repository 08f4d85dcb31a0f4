package manager

import (
	"slices"
	"testing"

	v1 "drover/api/drover/v1"
)

// An address that a person gave to one VM is not taken from it by what another host, or a DHCP server, says; and of two that say they lease it the first has it.
func TestAddressesAreOnePorts(t *testing.T) {
	w := newWorld(t, 2, 3)
	m, b := w.m, w.m.board
	lease := func(i int, addresses ...string) {
		vm, _ := m.VMs.cache.Get(vmName(i))
		st := &v1.PortStatus{}
		for _, a := range addresses {
			st.Bindings = append(st.Bindings, &v1.Binding{Address: a, Source: bindingDHCP})
		}
		m.reportPorts(vm.Status.Owner, []*v1.PortReport{{Name: vmName(i) + "/n0", Uid: vm.Meta.Uid, Epoch: 1, Status: st}}, false)
	}
	registered := func(i int) []string {
		r, _ := b.regs.Get(registrationKey(5, macOf(i)))
		return r.GetAddresses()
	}
	conflict := func(i int) bool {
		p, _ := b.view.Get(vmName(i) + "/n0")
		return slices.ContainsFunc(p.GetStatus().GetConditions(), func(c *v1.Condition) bool { return c.Type == "ADDRESS_CONFLICT" })
	}
	want := func(what string, i int, faulty bool, addresses ...string) {
		t.Helper()
		if got := registered(i); !slices.Equal(got, addresses) {
			t.Errorf("%s: registered of %s: %v, want %v", what, vmName(i), got, addresses)
		}
		if conflict(i) != faulty {
			t.Errorf("%s: conflict told of %s: %v, want %v", what, vmName(i), conflict(i), faulty)
		}
	}
	// vm00000 claims vm00001's address, which is assigned, and one that nobody has.
	lease(0, "10.0.0.1", "10.9.9.9")
	want("assigned", 0, true, "10.0.0.0", "10.9.9.9")
	want("assigned", 1, false, "10.0.0.1")
	// A second one says that it leases the same.
	lease(1, "10.9.9.9")
	want("leased", 1, true, "10.0.0.1")
	want("leased", 0, true, "10.0.0.0", "10.9.9.9")
	// Once the first has it no more, it goes over.
	lease(0)
	want("given up", 0, false, "10.0.0.0")
	want("given up", 1, false, "10.0.0.1", "10.9.9.9")
	// What becomes assigned goes to whom it is assigned to, and back when that VM goes.
	views := b.view.Subscribe(b.view.Revision())
	if _, err := m.VMs.mutate(t.Context(), vmName(2), func(vm *v1.VM) error {
		vm.Spec.Nics[0].Addresses = []string{"10.9.9.9/8"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for !ok() {
			if _, err := views.Next(t.Context()); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	until("assigned now", func() bool { return conflict(1) && slices.Equal(registered(2), []string{"10.9.9.9"}) })
	want("assigned now", 1, true, "10.0.0.1")
	if err := m.VMs.remove(t.Context(), vmName(2), 0); err != nil {
		t.Fatal(err)
	}
	until("VM gone", func() bool { return !conflict(1) })
	want("VM gone", 1, false, "10.0.0.1", "10.9.9.9")
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.addresses) != 3 {
		t.Errorf("addresses known: %v", b.addresses)
	}
}
