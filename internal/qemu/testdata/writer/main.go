// Command writer runs in the guest of the latency tests: it writes blocks of 4 KiB and tells how long each took.
package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// Usage: writer DEVICE COUNT REGION STRIDE FSYNC. REGION is in MiB. STRIDE, in bytes, is from one write to the next, round and round; 0
// writes at random. After every FSYNC writes comes an fsync that counts with the write before it; 0: none.
func main() {
	var n [4]int64
	for i := range n {
		n[i], _ = strconv.ParseInt(os.Args[2+i], 10, 64)
	}
	count, region, stride, sync := n[0], n[1]<<20, n[2], n[3]
	f, err := os.OpenFile(os.Args[1], os.O_WRONLY|syscall.O_DIRECT, 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	raw := make([]byte, 8192)
	buf := raw[4096-int(uintptr(unsafe.Pointer(&raw[0]))%4096):][:4096]
	took := make([]time.Duration, 0, count)
	seed, at := uint64(time.Now().UnixNano())|1, int64(0)
	for i := range count {
		seed ^= seed << 13
		seed ^= seed >> 7
		seed ^= seed << 17
		if at += stride; stride == 0 {
			at = int64(seed>>12) &^ 4095
		}
		for j := 0; j < len(buf); j += 8 {
			buf[j] = byte(seed >> (j / 8 % 48))
		}
		began := time.Now()
		if _, err := f.WriteAt(buf, at%region&^4095); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if sync > 0 && i%sync == sync-1 {
			err = f.Sync()
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		took = append(took, time.Since(began))
		// A guest does something between its writes, too.
		time.Sleep(500 * time.Microsecond)
	}
	slices.Sort(took)
	fmt.Println(took[len(took)/2].Microseconds(), took[len(took)*99/100].Microseconds(), took[len(took)-1].Microseconds())
}
