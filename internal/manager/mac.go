package manager

import (
	"context"
	"errors"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"
	"drover/internal/store"
)

// giveMACs gives addresses to NICs that have none: addresses that no NIC has.
func (m *Manager) giveMACs(s *v1.VMSpec) {
	given := map[string]bool{}
	for _, n := range s.Nics {
		given[n.Mac] = true
	}
	for _, n := range s.Nics {
		for n.Mac == "" {
			mac := resource.NewMAC()
			if _, taken := m.macs.cache.Get(claimOfMAC(mac)); !taken && !given[mac] {
				n.Mac, given[mac] = mac, true
			}
		}
	}
}

// freeMACs says which of a VM's addresses another one has.
func (m *Manager) freeMACs(ctx context.Context, vm *v1.VM) error {
	for _, n := range vm.GetSpec().GetNics() {
		claim, err := m.macs.coll.Get(ctx, claimOfMAC(n.Mac))
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return m.macs.translate(err, claimOfMAC(n.Mac))
		case claim.Vm != vm.Meta.Name:
			return m.macs.translate(store.ErrExists, claimOfMAC(n.Mac))
		}
	}
	return nil
}

// claimMACs are the changes to the reservations of MAC addresses when old becomes vm; either may be nil. Those that are given back
// are read from the store: a copy that is behind would leave them taken for ever.
func (m *Manager) claimMACs(ctx context.Context, old, vm *v1.VM) ([]store.Op, error) {
	var ops []store.Op
	had, has := map[string]bool{}, map[string]bool{}
	for _, n := range old.GetSpec().GetNics() {
		had[n.Mac] = true
	}
	for _, n := range vm.GetSpec().GetNics() {
		has[n.Mac] = true
		if !had[n.Mac] {
			had[n.Mac] = true
			ops = append(ops, m.macs.coll.CreateOp(&v1.MACClaim{Meta: &v1.Meta{Name: claimOfMAC(n.Mac), Uid: resource.NewUID()}, Vm: vm.Meta.Name}))
		}
	}
	for _, n := range old.GetSpec().GetNics() {
		if has[n.Mac] {
			continue
		}
		claim, err := m.macs.coll.Get(ctx, claimOfMAC(n.Mac))
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, m.macs.translate(err, claimOfMAC(n.Mac))
		}
		if claim.Vm == old.Meta.Name {
			ops = append(ops, m.macs.coll.DeleteOp(claim.Meta.Name, claim.Meta.Revision))
		}
	}
	return ops, nil
}
