package manager

import (
	"testing"

	v1 "drover/api/drover/v1"
)

// What a host says of a generation that only a revert has told it of yet counts once the manager has stored it; nothing else
// that is ahead does.
func TestReportAheadOfAGeneration(t *testing.T) {
	for busy, want := range map[string]int64{"": 3, "task": 4} {
		vm := &v1.VM{Meta: &v1.Meta{Generation: 3}, Status: &v1.VMStatus{Busy: busy}}
		for _, says := range []int64{2, 4, 9} {
			mergeStatus(vm, &v1.VMStatus{ObservedGeneration: says})
			if got := vm.Status.ObservedGeneration; got != min(says, want) {
				t.Errorf("busy %q: a report of generation %d of 3 is taken as %d, want %d", busy, says, got, min(says, want))
			}
		}
	}
}
