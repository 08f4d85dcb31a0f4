package vswitch

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// ErrShortFrame says that the kernel runs no program on a frame without an Ethernet header.
var ErrShortFrame = errors.New("vswitch: a frame of less than 14 bytes can't be tried")

// skb is struct __sk_buff of linux/bpf.h as BPF_PROG_TEST_RUN takes it: 48 words. Most must be zero.
type skb [48]uint32

// Words of skb.
const (
	skbMark           = 2
	skbIngressIfindex = 9
	skbIfindex        = 10
	skbGSOSize        = 44
)

// Try runs a program on a frame without sending anything that is not flooded, and returns the action and the frame as it left. For traces and tests.
// Meters, counters and events see the frame as any other.
func (d *Datapath) Try(kind Kind, ifindex int, frame []byte) (action uint32, out []byte, err error) {
	prog := d.program(kind, false)
	if prog == nil {
		return 0, nil, fmt.Errorf("try a frame: %v is no kind of device", kind)
	}
	return d.run(prog, ifindex, skb{skbIngressIfindex: uint32(ifindex)}, frame)
}

func (d *Datapath) run(prog *ebpf.Program, ifindex int, ctx skb, frame []byte) (action uint32, out []byte, err error) {
	if len(frame) < 14 {
		return 0, nil, ErrShortFrame
	}
	done, err := d.use()
	if err != nil {
		return 0, nil, err
	}
	defer done()
	ctx[skbIfindex] = uint32(ifindex)
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: &ctx}
	err = d.net.Do(func() (err error) {
		action, err = prog.Run(&opts)
		return err
	})
	if err != nil {
		return 0, nil, fmt.Errorf("try a frame of %d bytes on device %d: %w", len(frame), ifindex, err)
	}
	return action, opts.DataOut, nil
}
