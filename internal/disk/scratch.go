package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/disk/sandbox"
)

// Scratch makes a file without a name: it takes room in the datastore until the last who has it open is gone.
func (s *Store) Scratch() (*os.File, error) {
	name := "tmp/scratch-" + newID()
	f, err := s.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a scratch file: %w", err)
	}
	if err := s.root.Remove(name); err != nil {
		return nil, fmt.Errorf("make a scratch file: %w", errors.Join(err, f.Close()))
	}
	return f, nil
}

// ScratchDisk is Scratch, and the file is an empty qcow2 of size bytes.
func (s *Store) ScratchDisk(size int64) (*os.File, error) {
	f, err := s.Scratch()
	if err != nil {
		return nil, err
	}
	if err := writeBlank(f, size); err != nil {
		return nil, fmt.Errorf("make a scratch disk: %w", errors.Join(err, f.Close()))
	}
	return f, nil
}

// Free is how many bytes the datastore has room for.
func (s *Store) Free() (int64, error) {
	d, err := s.root.Open(".")
	if err != nil {
		return 0, err
	}
	defer d.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", s.root.Name(), err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Lend are the options of LendDisk.
type Lend struct {
	Socket  *os.File // listens
	Export  string
	Write   bool     // to the active layer
	Bitmaps []string // of the active layer, shown as meta contexts
	Timeout time.Duration
}

// LendDisk serves the disk of a VM that is off over NBD, by a confined process, until ctx ends. The caller sees to it that the VM
// stays off.
func (s *Store) LendDisk(ctx context.Context, vm, disk string, o Lend) error {
	chain, err := s.Chain(vm, disk)
	if err != nil {
		return err
	}
	files := []*os.File{o.Socket}
	defer func() {
		for _, f := range files[1:] {
			f.Close()
		}
	}()
	var top, above *sandbox.Node
	for i, l := range chain {
		f, err := s.OpenLayer(l, o.Write && i == 0)
		if err != nil {
			return err
		}
		files = append(files, f)
		if _, err := inspectFile(f, l.Format); err != nil {
			return fmt.Errorf("layer %s of VM %s: %w", l.ID, l.VM, err)
		}
		n := &sandbox.Node{File: i + 1, Format: l.Format}
		if above == nil {
			top = n
		} else {
			above.Backing = n
		}
		above = n
	}
	// The process is the first of its own space of pids, and finds its socket as systemd would hand it over (sd_listen_fds(3)).
	args := []string{"env", "LISTEN_PID=1", "LISTEN_FDS=1", "qemu-nbd", "--persistent", "--shared=16", "--export-name=" + o.Export}
	if o.Write {
		args = append(args, "--discard=unmap")
	} else {
		args = append(args, "--read-only")
	}
	for _, b := range o.Bitmaps {
		args = append(args, "--bitmap="+b)
	}
	box := s.opt.Box
	box.Timeout, box.CPU, box.Gentle = o.Timeout, o.Timeout, true
	if err := box.Run(ctx, sandbox.IO{}, files, append(args, top.Filename())...); err != nil {
		return fmt.Errorf("lend disk %s of VM %s: %w", disk, vm, err)
	}
	return nil
}

// SetBitmaps makes and removes bitmaps in the active layer of a VM that is off. Those to remove may be missing. A raw layer has none: it is an error.
func (s *Store) SetBitmaps(ctx context.Context, vm, disk string, add string, remove ...string) error {
	leave, err := s.begin(ctx, vm)
	if err != nil {
		return err
	}
	defer leave()
	chain, err := s.Chain(vm, disk)
	if err != nil {
		return err
	}
	top := chain[0]
	if top.Format != "qcow2" {
		return fmt.Errorf("disk %s of VM %s: %w: a raw image keeps no bitmaps", disk, vm, ErrInvalid)
	}
	f, err := s.OpenLayer(top, true)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := inspectFile(f, top.Format); err != nil {
		return fmt.Errorf("layer %s of VM %s: %w", top.ID, vm, err)
	}
	name := (&sandbox.Node{Format: top.Format}).Filename()
	for _, b := range remove {
		// That it is not there and that it can't be removed are not told apart; neither does harm.
		_ = s.qemuImg(ctx, top.Size, []*os.File{f}, "bitmap", "--remove", name, b)
	}
	if add == "" {
		return nil
	}
	if err := s.qemuImg(ctx, top.Size, []*os.File{f}, "bitmap", "--add", "-g", "65536", name, add); err != nil {
		return fmt.Errorf("track changes of disk %s of VM %s: %w", disk, vm, err)
	}
	return f.Sync()
}
