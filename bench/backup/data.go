package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"drover/internal/chunkstore/keys"
	"drover/internal/chunkstore/pack"

	"golang.org/x/sys/unix"
)

const (
	blockSize = 64 << 10
	thinUnit  = 4 << 20
)

// data is what the images are made of.
type data struct {
	logical, allocated int64 // of day 1
	distinct           int64 // bytes of distinct blocks that are not zeros
	changed            int64 // bytes of blocks that are others on day 2
	web                int64 // bytes of the disk that is restored, without zeros
	lists              map[string]string
}

// measureData reads all images once. It also writes the lists of what changes.
func (b *bench) measureData() (*data, error) {
	if b.data != nil {
		return b.data, nil
	}
	d := &data{lists: map[string]string{}}
	hasher := keys.NewHasher(keys.BLAKE3, make([]byte, 32))
	seen := map[pack.ID]bool{}
	zero := make([]byte, blockSize)
	for _, vm := range vms {
		one, err := os.Open(b.image(vm, 1))
		if err != nil {
			return nil, fmt.Errorf("%w; scripts/bench-images makes the disks", err)
		}
		two, err := os.Open(b.image(vm, 2))
		if err != nil {
			return nil, errors.Join(err, one.Close())
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(one.Fd()), &st); err != nil {
			return nil, errors.Join(err, one.Close(), two.Close())
		}
		d.logical += st.Size
		d.allocated += st.Blocks * 512
		type extent struct {
			Offset int64 `json:"offset"`
			Length int64 `json:"length"`
		}
		list := []extent{}
		p, q := make([]byte, blockSize), make([]byte, blockSize)
		for off := int64(0); off < st.Size && err == nil; off += blockSize {
			if _, err = one.ReadAt(p, off); err == nil {
				_, err = two.ReadAt(q, off)
			}
			if !bytes.Equal(p, q) {
				d.changed += blockSize
				if n := len(list); n > 0 && list[n-1].Offset+list[n-1].Length == off {
					list[n-1].Length += blockSize
				} else {
					list = append(list, extent{off, blockSize})
				}
			}
			if bytes.Equal(p, zero) {
				continue
			}
			if vm == "web" {
				d.web += blockSize
			}
			if id := hasher.Block(p); !seen[id] {
				seen[id] = true
				d.distinct += blockSize
			}
		}
		if err = errors.Join(err, one.Close(), two.Close()); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		text, err := json.Marshal(list)
		if err != nil {
			return nil, err
		}
		d.lists[vm] = filepath.Join(b.work, vm+".changed.json")
		if err := os.WriteFile(d.lists[vm], text, 0o600); err != nil {
			return nil, err
		}
	}
	b.rep.Say("data: %.1f GB logical, %.1f GB allocated, %.1f GB of distinct blocks; %.0f MB of blocks change (%.1f %%)",
		float64(d.logical)/1e9, float64(d.allocated)/1e9, float64(d.distinct)/1e9, float64(d.changed)/1e6, 100*float64(d.changed)/float64(d.allocated))
	b.data = d
	return d, nil
}

// changes is the file that lists what changed in a disk.
func (b *bench) changes(vm string) (string, error) {
	d, err := b.measureData()
	if err != nil {
		return "", err
	}
	return d.lists[vm], nil
}

// thin makes a disk of which every other 4 MiB are gone.
func (b *bench) thin(vm string) error {
	if _, err := b.measureData(); err != nil {
		return err
	}
	path := b.image(vm, thinned)
	if out, err := exec.CommandContext(b.ctx, "cp", "--sparse=always", b.image(vm, 1), path).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", vm, err, out)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	for off := int64(0); err == nil && off < st.Size(); off += 2 * thinUnit {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, thinUnit)
	}
	return errors.Join(err, f.Sync(), f.Close())
}
