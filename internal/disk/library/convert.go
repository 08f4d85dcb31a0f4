package library

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"drover/internal/disk/inspect"
	"drover/internal/disk/sandbox"
	"drover/internal/kernelimage"
)

// take unpacks, inspects, converts and files the source.
func (l *Library) take(ctx context.Context, r *Request, src *os.File) (Result, error) {
	info, err := look(src, r.Format)
	if err != nil {
		return Result{}, err
	}
	if info.Format.Compressed() {
		inner, err := l.unpack(ctx, r, src, info)
		if err != nil {
			return Result{}, fmt.Errorf("unpack the %s file: %w", info.Format, err)
		}
		defer inner.Close()
		src = inner
		want := r.Format
		if want.Compressed() {
			want = ""
		}
		if info, err = look(src, want); err != nil {
			return Result{}, err
		}
		if info.Format.Compressed() {
			return Result{}, &inspect.Refusal{Format: info.Format, Reason: "it is packed twice; unpack it once"}
		}
	}
	node := &sandbox.Node{Format: string(info.Format)}
	if info.Format == inspect.OVA {
		if r.Disk >= len(info.Disks) {
			return Result{}, &inspect.Refusal{Format: inspect.OVA, Reason: fmt.Sprintf("it has %d disks; disk %d doesn't exist (they count from 0)", len(info.Disks), r.Disk)}
		}
		d := info.Disks[r.Disk]
		if info, err = inspect.Inspect(io.NewSectionReader(src, d.Offset, d.Size), d.Size, inspect.Options{}); err != nil {
			return Result{}, fmt.Errorf("disk %s in the OVA: %w", d.Name, err)
		}
		if info.Format.Compressed() || info.Format == inspect.OVA || info.Format == inspect.ISO {
			return Result{}, &inspect.Refusal{Format: inspect.OVA, Reason: fmt.Sprintf("the disk %s is a %s file", d.Name, info.Format)}
		}
		if info.VirtualSize != d.Capacity {
			return Result{}, &inspect.Refusal{Format: inspect.OVA, Reason: fmt.Sprintf("the descriptor says that %s has %d bytes, the disk says %d", d.Name, d.Capacity, info.VirtualSize)}
		}
		node = &sandbox.Node{Format: string(info.Format), Offset: d.Offset, Size: d.Size}
	}
	out, err := l.temp(false)
	if err != nil {
		return Result{}, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	kind := "qcow2"
	switch info.Format {
	case inspect.ISO:
		kind = "iso"
		err = l.copyAsIs(ctx, r, src, out)
	case inspect.Kernel:
		kind = "kernel"
		if err = l.checkKernel(ctx, src); err == nil {
			err = l.copyAsIs(ctx, r, src, out)
		}
	default:
		err = l.convert(ctx, r, src, out, node, info)
	}
	if err != nil {
		return Result{}, err
	}
	return l.file(ctx, r, out, kind, info)
}

func look(f *os.File, want inspect.Format) (inspect.Info, error) {
	st, err := f.Stat()
	if err != nil {
		return inspect.Info{}, err
	}
	got, err := inspect.Detect(f, st.Size())
	// The caller's word may make a raw disk of anything, but a wrapper stays one.
	if err == nil && (want == "" || got.Compressed()) {
		want = got
	}
	return inspect.Inspect(f, st.Size(), inspect.Options{Format: want})
}

// unpack bounds what comes out by size and by ratio.
func (l *Library) unpack(ctx context.Context, r *Request, src *os.File, info inspect.Info) (*os.File, error) {
	out, err := l.temp(true)
	if err != nil {
		return nil, err
	}
	bound := func(n int64) error {
		if n > 1<<30 && n/l.opt.MaxRatio > info.FileSize {
			return fmt.Errorf("%w: %d bytes unpack to more than %d: that looks like a bomb", ErrTooBig, info.FileSize, n)
		}
		return l.tooBig(n)
	}
	packed := &watched{ctx: ctx, r: io.NewSectionReader(src, 0, info.FileSize), note: func(n int64) { r.Progress(Unpack, n, info.FileSize) }}
	var n int64
	switch info.Format {
	case inspect.Gzip:
		var z *gzip.Reader
		if z, err = gzip.NewReader(bufio.NewReaderSize(packed, 1<<20)); err == nil {
			n, err = copySparse(out, z, bound)
		}
	case inspect.Zstd:
		var z *zstd.Decoder
		if z, err = zstd.NewReader(packed, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderMaxMemory(1<<30), zstd.WithDecoderConcurrency(1)); err == nil {
			n, err = copySparse(out, z, bound)
			z.Close()
		}
	case inspect.XZ:
		n, err = l.unxz(ctx, src, out, bound)
	}
	if err == nil && n == 0 {
		err = errors.New("nothing is inside")
	}
	if err != nil {
		out.Close()
		if ctx.Err() == nil && !errors.Is(err, ErrTooBig) {
			err = &inspect.Refusal{Format: info.Format, Reason: fmt.Sprintf("it is corrupt or truncated: %v", err)}
		}
		return nil, err
	}
	return out, nil
}

// unxz uses xz in the sandbox: a block header may ask for a dictionary of 4 GiB, which only it refuses in time.
func (l *Library) unxz(ctx context.Context, src, out *os.File, bound func(int64) error) (int64, error) {
	pr, pw, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer pr.Close()
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		err := l.opt.Box.Run(ctx, sandbox.IO{In: src, Out: pw}, nil, "xz", "-dcq", "-T1", "--memlimit-decompress=512MiB")
		pw.Close()
		done <- err
	}()
	n, err := copySparse(out, pr, bound)
	if err != nil {
		cancel()
		<-done
		return n, err
	}
	return n, <-done
}

// copySparse copies until EOF and leaves holes for zeros; bound may stop it.
func copySparse(out *os.File, in io.Reader, bound func(int64) error) (int64, error) {
	buf := make([]byte, 1<<20)
	var at int64
	for {
		n, err := fill(in, buf)
		if n > 0 {
			if berr := bound(at + int64(n)); berr != nil {
				return at, berr
			}
			for i := 0; i < n; i += 64 << 10 {
				b := buf[i:min(i+64<<10, n)]
				if zero(b) {
					continue
				}
				if _, werr := out.WriteAt(b, at+int64(i)); werr != nil {
					return at, werr
				}
			}
			at += int64(n)
		}
		if err == io.EOF {
			return at, out.Truncate(at)
		}
		if err != nil {
			return at, err
		}
	}
}

// fill is io.ReadFull that keeps a decoder's ErrUnexpectedEOF (its input is cut) apart from the end.
func fill(in io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var k int
		k, err = in.Read(buf[n:])
		n += k
	}
	return n, err
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// copyAsIs takes over what needs no conversion.
func (l *Library) copyAsIs(ctx context.Context, r *Request, src, out *os.File) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	in := &watched{ctx: ctx, r: io.NewSectionReader(src, 0, st.Size()), note: func(n int64) { r.Progress(Convert, n, st.Size()) }}
	_, err = copySparse(out, in, l.tooBig)
	return err
}

// checkKernel reads a kernel image to its end, as its hosts will.
func (l *Library) checkKernel(ctx context.Context, src *os.File) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Join(l.dir, "tmp"), "kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if _, err := kernelimage.Extract(ctx, io.NewSectionReader(src, 0, st.Size()), dir); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &inspect.Refusal{Format: inspect.Kernel, Reason: err.Error()}
	}
	return nil
}

// convert makes a plain qcow2 of the image: whole, 64 KiB clusters, not compressed.
func (l *Library) convert(ctx context.Context, r *Request, src, out *os.File, node *sandbox.Node, info inspect.Info) error {
	if err := l.tooBig(info.VirtualSize); err != nil {
		return err
	}
	if err := l.opt.Box.Share(src, false); err != nil {
		return err
	}
	if err := l.opt.Box.Share(out, true); err != nil {
		return err
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	defer pr.Close()
	percents := make(chan struct{})
	go func() {
		defer close(percents)
		readPercents(pr, func(p float64) { r.Progress(Convert, int64(p*float64(info.VirtualSize)/100), info.VirtualSize) })
	}()
	box := l.opt.Box
	// Data, plus L2 and refcount tables (under 1/1000 each at 64 KiB clusters), plus headers.
	box.MaxFile = info.VirtualSize + info.VirtualSize/256 + 64<<20
	node.File = 0
	err = box.Run(ctx, sandbox.IO{Out: pw}, []*os.File{src, out},
		"qemu-img", "convert", "-p", "-O", "qcow2", "-o", "cluster_size=65536,compat=1.1,lazy_refcounts=off",
		node.Filename(), sandbox.FD(1))
	pw.Close()
	<-percents
	if err != nil {
		return fmt.Errorf("convert the %s image: %w", info.Format, err)
	}
	got, err := look(out, inspect.QCOW2)
	if err != nil {
		return fmt.Errorf("check the converted image: %w", err)
	}
	if got.VirtualSize != info.VirtualSize {
		return &inspect.Refusal{Format: info.Format, Reason: fmt.Sprintf("it claims %d bytes but converts to %d", info.VirtualSize, got.VirtualSize)}
	}
	return nil
}

// readPercents reads qemu-img's "    (12.34/100%)\r".
func readPercents(r io.Reader, f func(float64)) {
	br := bufio.NewReaderSize(r, 4096)
	for {
		s, err := br.ReadSlice('\r')
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			io.Copy(io.Discard, r) // a tool must not block on what nobody reads
			return
		}
		num, _, _ := strings.Cut(strings.Trim(string(s), " (\r\n"), "/")
		if p, err := strconv.ParseFloat(num, 64); err == nil && p >= 0 && p <= 100 {
			f(p)
		}
	}
}

// file puts the result in its place: owned by root, read-only, synced, named by its bytes.
func (l *Library) file(ctx context.Context, r *Request, out *os.File, kind string, info inspect.Info) (Result, error) {
	if err := out.Chown(os.Geteuid(), os.Getegid()); err != nil {
		return Result{}, err
	}
	if err := out.Chmod(0o444); err != nil {
		return Result{}, err
	}
	if err := out.Sync(); err != nil {
		return Result{}, fmt.Errorf("sync the image: %w", err)
	}
	sum, err := hashFile(ctx, out, func(n, total int64) { r.Progress(Finish, n, total) })
	if err != nil {
		return Result{}, fmt.Errorf("read back the image: %w", err)
	}
	st, err := out.Stat()
	if err != nil {
		return Result{}, err
	}
	res := Result{Name: sum + "." + kind, SHA256: sum, Size: st.Size(), VirtualSize: info.VirtualSize, SourceFormat: info.Format}
	// The same bytes may be there already: replacing them by themselves is harmless.
	if err := os.Rename(out.Name(), filepath.Join(l.dir, res.Name)); err != nil {
		return Result{}, fmt.Errorf("put the image in place: %w", err)
	}
	return res, syncDir(l.dir)
}
