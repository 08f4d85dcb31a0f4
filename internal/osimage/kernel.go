package osimage

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

const maxKernel = 512 << 20

// unpackKernel takes the ELF kernel out of a bzImage (Documentation/arch/x86/boot.rst: payload_offset, payload_length). QEMU starts it through
// its PVH note, which saves the guest from unpacking it: about half a second without KVM.
func (bu *build) unpackKernel(ctx context.Context, b []byte) ([]byte, error) {
	if len(b) < 0x250 || string(b[0x202:0x206]) != "HdrS" {
		return nil, errors.New("kernel is not a bzImage")
	}
	sectors := int64(b[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(b[0x248:]))
	end := start + int64(binary.LittleEndian.Uint32(b[0x24c:]))
	if start >= end || end > int64(len(b)) || end-start < 8 {
		return nil, errors.New("kernel's header points outside of the file")
	}
	p := b[start:end]
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(p, []byte{0x02, 0x21, 0x4c, 0x18}): // lz4, legacy frame; the unpacked size follows it
		r = lz4.NewReader(bytes.NewReader(p[:len(p)-4]))
	case bytes.HasPrefix(p, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		// Kernels use xz's x86 filter, which no Go package knows.
		return bu.unxz(ctx, p)
	case bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		r, err = zstd.NewReader(bytes.NewReader(p))
	default:
		return nil, fmt.Errorf("kernel is compressed in an unknown way (% x)", p[:6])
	}
	if err != nil {
		return nil, fmt.Errorf("unpack kernel: %w", err)
	}
	var out bytes.Buffer
	_, err = io.Copy(&out, io.LimitReader(r, maxKernel))
	if bytes.HasPrefix(out.Bytes(), []byte(elf.ELFMAG)) && elfWhole(out.Bytes()) {
		return out.Bytes(), nil
	}
	if err == nil {
		err = errors.New("it holds no ELF file")
	}
	return nil, fmt.Errorf("unpack kernel: %w", err)
}

func (bu *build) unxz(ctx context.Context, p []byte) ([]byte, error) {
	if err := needTools("xz"); err != nil {
		return nil, err
	}
	packed := filepath.Join(bu.work, "kernel.xz")
	if err := os.WriteFile(packed, p, 0o644); err != nil {
		return nil, err
	}
	// --single-stream: the unpacked size stands after the stream.
	out, err := bu.command(ctx, nil, "", "xz", "-dc", "--single-stream", packed)
	if err != nil {
		return nil, fmt.Errorf("unpack kernel: %w", err)
	}
	if !elfWhole([]byte(out)) {
		return nil, errors.New("unpack kernel: it holds no ELF file")
	}
	return []byte(out), nil
}

func elfWhole(b []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return false
	}
	for _, p := range f.Progs {
		if p.Off+p.Filesz > uint64(len(b)) {
			return false
		}
	}
	return true
}

// kmod is a kernel module as an image carries it.
type kmod struct {
	name    string
	deps    []string
	aliases []string
	data    []byte
}

// collectModules reads the wanted modules and all that they need from a tree of .ko files. Wanted ones that do not exist there, as they are
// built in or not made for this kernel, are left out.
func collectModules(root string, wanted []string) ([]*kmod, error) {
	paths := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if n, ok := strings.CutSuffix(filepath.Base(p), ".ko"); ok && err == nil {
			paths[strings.ReplaceAll(n, "-", "_")] = p
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	got := map[string]*kmod{}
	var add func(name string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if got[name] != nil || paths[name] == "" {
			return nil
		}
		k, err := readModule(name, paths[name])
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		got[name] = k
		for _, d := range k.deps {
			if err := add(d); err != nil {
				return err
			}
		}
		return nil
	}
	for _, w := range wanted {
		if err := add(w); err != nil {
			return nil, err
		}
	}
	var out []*kmod
	for _, k := range got {
		out = append(out, k)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].name < out[j].name })
	return out, nil
}

func readModule(name, path string) (*kmod, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	k := &kmod{name: name, data: unsign(b)}
	for _, e := range strings.Split(string(info), "\x00") {
		key, v, _ := strings.Cut(e, "=")
		switch {
		case key == "alias" && !strings.ContainsAny(v, " \t?"):
			k.aliases = append(k.aliases, v)
		case key == "depends" && v != "":
			for _, d := range strings.Split(v, ",") {
				k.deps = append(k.deps, strings.ReplaceAll(d, "-", "_"))
			}
		}
	}
	return k, nil
}

// unsign takes a module's signature off: Debian's kernel only notes its absence, and checking it costs some 10 ms a
// module without KVM. The trailer is linux/module_signature.h.
func unsign(b []byte) []byte {
	const marker = "~Module signature appended~\n"
	if !bytes.HasSuffix(b, []byte(marker)) || len(b) < len(marker)+12 {
		return b
	}
	body := b[:len(b)-len(marker)]
	n := int(binary.BigEndian.Uint32(body[len(body)-4:])) + 12
	if n > len(body) {
		return b
	}
	return body[:len(body)-n]
}
