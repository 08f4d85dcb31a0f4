package kernelimage

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Format and Version are what image.json must say.
const (
	Format  = "drover-kernel-image"
	Version = 1
)

// Limits on what an image may hold; a manager takes images from people.
const (
	MaxManifest = 64 << 10
	MaxCmdline  = 2048 // COMMAND_LINE_SIZE on x86
	MaxKernel   = 1 << 30
	MaxInitrd   = 4 << 30
)

// ErrInvalid is in the chain of every error about the content of an image.
var ErrInvalid = errors.New("not a valid kernel image")

// Manifest is image.json.
type Manifest struct {
	Format        string            `json:"format"`
	Version       int               `json:"version"`
	Name          string            `json:"name"`
	Arch          string            `json:"arch"`          // as in `uname -m`: x86_64
	KernelRelease string            `json:"kernelRelease"` // as in `uname -r`
	KernelFormat  string            `json:"kernelFormat"`  // elf (an ELF file with a PVH note) or bzImage
	Drivers       []string          `json:"drivers"`       // modules in the initramfs, sorted
	Packages      map[string]string `json:"packages"`      // package → version it was made from
	Kernel        File              `json:"kernel"`
	Initrd        File              `json:"initrd"`
}

// File is the size and SHA-256 (lower-case hexadecimal) of a member.
type File struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Validate tells the first thing that is wrong.
func (m *Manifest) Validate() error {
	switch {
	case m.Format != Format:
		return fmt.Errorf("%w: image.json: format is %q, want %q", ErrInvalid, m.Format, Format)
	case m.Version < 1:
		return fmt.Errorf("%w: image.json: version %d", ErrInvalid, m.Version)
	case m.Version > Version:
		return fmt.Errorf("%w: image.json: version %d is newer than this drover knows (%d); upgrade drover", ErrInvalid, m.Version, Version)
	case m.Arch != "x86_64":
		return fmt.Errorf("%w: image.json: arch %q is not supported", ErrInvalid, m.Arch)
	case m.KernelFormat != "elf" && m.KernelFormat != "bzImage":
		return fmt.Errorf("%w: image.json: kernelFormat %q is neither elf nor bzImage", ErrInvalid, m.KernelFormat)
	}
	if err := m.Kernel.validate("kernel", MaxKernel); err != nil {
		return err
	}
	return m.Initrd.validate("initrd", MaxInitrd)
}

func (f File) validate(name string, limit int64) error {
	if f.Size < 1 || f.Size > limit {
		return fmt.Errorf("%w: image.json: %s has %d bytes, want 1 to %d", ErrInvalid, name, f.Size, limit)
	}
	if len(f.SHA256) != 64 || strings.Trim(f.SHA256, "0123456789abcdef") != "" {
		return fmt.Errorf("%w: image.json: %s: sha256 is not 64 hexadecimal digits", ErrInvalid, name)
	}
	return nil
}

func parseManifest(b []byte) (*Manifest, error) {
	m := &Manifest{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%w: image.json: %w", ErrInvalid, err)
	}
	return m, m.Validate()
}

// checkCmdline refuses what would not reach the kernel as it stands.
func checkCmdline(s string) error {
	if len(s) > MaxCmdline {
		return fmt.Errorf("%w: cmdline has %d bytes, at most %d", ErrInvalid, len(s), MaxCmdline)
	}
	for _, r := range s {
		if r < ' ' || r > '~' {
			return fmt.Errorf("%w: cmdline holds the character %q", ErrInvalid, r)
		}
	}
	return nil
}
