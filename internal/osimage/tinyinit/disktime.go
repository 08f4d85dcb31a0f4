package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// timeWrites writes single blocks past the page cache, one after the other at places all over a part of a disk, and tells how long they took.
//
// Parameters: dev (vda), offset and size in bytes (multiples of 4096), ms (for how long), seed. The answer is in microseconds.
func timeWrites(q query) (any, error) {
	dev := q.str("dev")
	if dev == "" || strings.ContainsAny(dev, "/.") {
		return nil, fmt.Errorf("dev=%q is not a disk's name, such as vda", dev)
	}
	n := map[string]uint64{"offset": 0, "size": 0, "ms": 1000, "seed": 1}
	for k, def := range n {
		v, err := q.num(k, def)
		if err != nil {
			return nil, err
		}
		n[k] = v
	}
	blocks := n["size"] / block
	if blocks == 0 || n["size"]%block != 0 || n["offset"]%block != 0 || n["ms"] > 60_000 {
		return nil, fmt.Errorf("offset %d and size %d must be multiples of %d, and ms at most 60000", n["offset"], n["size"], block)
	}
	f, err := os.OpenFile("/dev/"+dev, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	room := make([]byte, 2*block) // O_DIRECT takes aligned memory alone
	buf := room[block-int(addressOf(room)%block):][:block]
	var took []int64
	x := n["seed"]
	for end := time.Now().Add(time.Duration(n["ms"]) * time.Millisecond); time.Now().Before(end); {
		x = x*6364136223846793005 + 1442695040888963407
		number := n["offset"]/block + (x>>33)%blocks
		pattern(buf, n["seed"], number)
		began := time.Now()
		if _, err := f.WriteAt(buf, int64(number*block)); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began).Microseconds())
	}
	slices.Sort(took)
	at := func(share float64) int64 { return took[int(share*float64(len(took)-1))] }
	return map[string]any{"writes": len(took), "p50": at(0.5), "p99": at(0.99), "max": at(1)}, nil
}

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }
