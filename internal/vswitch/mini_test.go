package vswitch

import (
	"errors"
	"unsafe"

	"drover/internal/vswitch/table"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// miniBuild is a build of another datapath: a port's frames go to the device that its row names as mirror, and a port without a row passes nothing.
// What the loader promises is then tried without what the real rules would make of the frames. version makes the programs differ, room adds bytes to
// the rows of drops, which makes another layout of the maps.
func miniBuild(layout uint32, version int64, room uint32) build {
	portIn := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Mov.Imm(asm.R0, int32(version)),
		asm.LoadMem(asm.R2, asm.R1, skbIfindex*4, asm.Word),
		asm.StoreMem(asm.RFP, -4, asm.R2, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, 0).WithReference(datapathMapPorts),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.LoadMem(asm.R1, asm.R0, int16(unsafe.Offsetof(table.Port{}.MirrorIfindex)), asm.Word),
		asm.Mov.Imm(asm.R2, table.Mark),
		asm.StoreMem(asm.R6, skbMark*4, asm.R2, asm.Word),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcShot).WithSymbol("drop"),
		asm.Return(),
	}
	return build{
		layout: layout,
		spec: func() (*ebpf.CollectionSpec, error) {
			spec, err := loadDatapath()
			if err != nil {
				return nil, err
			}
			for name, p := range spec.Programs {
				ins := asm.Instructions{asm.Mov.Imm(asm.R0, int32(version)), asm.Mov.Imm(asm.R0, tcShot), asm.Return()}
				switch name {
				case datapathProgPortIn:
					ins = portIn
				case datapathProgPortOut:
					continue
				}
				p.Instructions = ins
			}
			roomier(spec, room)
			return spec, nil
		},
	}
}

// realBuild has the real programs, with another layout.
func realBuild(layout uint32, room uint32) build {
	return build{layout: layout, spec: func() (*ebpf.CollectionSpec, error) {
		spec, err := loadDatapath()
		if err == nil {
			roomier(spec, room)
		}
		return spec, err
	}}
}

func roomier(spec *ebpf.CollectionSpec, room uint32) {
	m := spec.Maps[datapathMapDrops]
	m.ValueSize += room
	m.Key, m.Value = nil, nil
}

// roomy is a row of drops of a miniBuild with 8 bytes of room.
type roomy struct {
	table.DropCount
	Room uint64
}

// readRoomy is the converter from such a build.
func readRoomy(dir string) (*learnt, error) {
	l := newLearnt()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, err
	}
	return l, errors.Join(l.readBindings(dir), l.readCounters(dir), withPinned(dir, datapathMapDrops, func(m *ebpf.Map) error {
		return each(m, datapathMapDrops, cpus, func(k table.DropKey, n []roomy) error {
			for _, r := range n {
				l.drops[k] = append(l.drops[k], r.DropCount)
			}
			return nil
		})
	}))
}
