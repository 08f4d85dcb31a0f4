package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// block is the unit of the pattern: each is a function of the seed and its own number alone, so that any part of a
// disk can be checked on its own.
const block = 4096

func pattern(b []byte, seed, number uint64) {
	x := seed*0x9e3779b97f4a7c15 + number*0xbf58476d1ce4e5b9 + 1
	for i := 0; i+8 <= len(b); i += 8 {
		// splitmix64
		x += 0x9e3779b97f4a7c15
		z := x
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(b[i:], z^z>>31)
	}
}

func listDisks() any {
	out := map[string]any{}
	dirs, _ := filepath.Glob("/sys/block/*")
	for _, d := range dirs {
		b, _ := os.ReadFile(d + "/size")
		n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
		if name := filepath.Base(d); n > 0 && !strings.HasPrefix(name, "loop") && !strings.HasPrefix(name, "ram") {
			serial, _ := os.ReadFile(d + "/serial")
			ro, _ := os.ReadFile(d + "/ro")
			out[name] = map[string]any{"size": n * 512, "serial": strings.TrimSpace(string(serial)), "readonly": strings.TrimSpace(string(ro)) == "1"}
		}
	}
	return out
}

// serveDisk writes, reads or verifies a part of a disk.
//
// Parameters: dev (vda), offset and size in bytes (multiples of 4096; size 0: to the end), seed. write puts the pattern there and
// flushes it; read gives the SHA-256 of what is there; verify compares with the pattern and tells the first wrong offset.
func serveDisk(op string, q query) (any, error) {
	dev := q.str("dev")
	if dev == "" || strings.ContainsAny(dev, "/.") {
		return nil, fmt.Errorf("dev=%q is not a disk's name, such as vda", dev)
	}
	var n [3]uint64
	for i, k := range []string{"offset", "size", "seed"} {
		v, err := q.num(k, 0)
		if err != nil {
			return nil, err
		}
		n[i] = v
	}
	offset, size, seed := n[0], n[1], n[2]
	mode := os.O_RDONLY
	if op == "write" {
		mode = os.O_RDWR
	}
	f, err := os.OpenFile("/dev/"+dev, mode, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if offset > uint64(end) {
		return nil, fmt.Errorf("offset %d is past the end, %d", offset, end)
	}
	if size == 0 {
		size = (uint64(end) - offset) / block * block
	}
	if offset%block != 0 || size%block != 0 || size > uint64(end)-offset {
		return nil, fmt.Errorf("offset %d and size %d must be multiples of %d inside of %d bytes", offset, size, block, end)
	}
	const blkFlsBuf = 0x1261 // linux/fs.h BLKFLSBUF: forget cached blocks, so that a read asks the device
	if op != "write" {
		syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), blkFlsBuf, 0)
	}
	sum := sha256.New()
	buf, want := make([]byte, 64*block), make([]byte, block)
	for at := offset; at < offset+size; {
		part := buf[:min(uint64(len(buf)), offset+size-at)]
		if op == "write" {
			for i := 0; i < len(part); i += block {
				pattern(part[i:i+block], seed, (at+uint64(i))/block)
			}
			if _, err := f.WriteAt(part, int64(at)); err != nil {
				return nil, err
			}
		} else if _, err := f.ReadAt(part, int64(at)); err != nil {
			return nil, err
		}
		if op == "verify" {
			for i := 0; i < len(part); i += block {
				if pattern(want, seed, (at+uint64(i))/block); string(want) != string(part[i:i+block]) {
					return map[string]any{"ok": false, "offset": at + uint64(i), "size": size}, nil
				}
			}
		}
		sum.Write(part)
		at += uint64(len(part))
	}
	if op == "write" {
		if err := f.Sync(); err != nil {
			return nil, err
		}
	}
	return map[string]any{"ok": true, "offset": offset, "size": size, "sha256": hex.EncodeToString(sum.Sum(nil))}, nil
}
