package host

import (
	v1 "drover/api/drover/v1"
	"drover/internal/qemu"
)

// incoming has a start take its memory from a snapshot that the VM was reverted to.
func (m *machine) incoming(_ *qemu.Spec, _ *qemu.Attach, _ *v1.VM) (func(), error) {
	return func() {}, nil
}
