package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/kernelimage"
)

var shaForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// stallTimeout is how long a download may stand still.
const stallTimeout = 30 * time.Second

// flights lets only one of several VMs that need the same file fetch it.
type flights struct {
	mu   sync.Mutex
	busy map[string]chan struct{}
}

// enter waits until nobody else works on key. The returned function ends the work.
func (f *flights) enter(ctx context.Context, key string) (func(), error) {
	for {
		f.mu.Lock()
		c := f.busy[key]
		if c == nil {
			if f.busy == nil {
				f.busy = map[string]chan struct{}{}
			}
			c = make(chan struct{})
			f.busy[key] = c
			f.mu.Unlock()
			return func() {
				f.mu.Lock()
				delete(f.busy, key)
				f.mu.Unlock()
				close(c)
			}, nil
		}
		f.mu.Unlock()
		select {
		case <-c:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// fetch writes an image's bytes from offset at on to w. Whether they are right is the caller's to check.
func (a *agent) fetch(ctx context.Context, sum string, at, size int64, w io.Writer, progress func(done int64)) error {
	if !shaForm.MatchString(sum) {
		return fmt.Errorf("image with SHA-256 %q: not a SHA-256", sum)
	}
	if size > 0 && at == size {
		return nil
	}
	if err := a.download(ctx, sum, at, size, w, progress); err != nil {
		return fmt.Errorf("fetch image %s from the manager: %w", sum[:12], &waitError{err})
	}
	return nil
}

func (a *agent) download(ctx context.Context, sum string, at, size int64, w io.Writer, progress func(int64)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+a.id.Manager+"/images/"+sum, nil)
	if err != nil {
		return err
	}
	if at > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(at, 10)+"-")
	}
	stall := time.AfterFunc(stallTimeout, func() { cancel(errors.New("nothing came for " + stallTimeout.String())) })
	defer stall.Stop()
	res, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusPartialContent && strings.HasPrefix(res.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", at)):
	case res.StatusCode == http.StatusOK:
		if _, err := io.CopyN(io.Discard, res.Body, at); err != nil {
			return err
		}
	default:
		return fmt.Errorf("the manager answers %s", res.Status)
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := res.Body.Read(buf)
		if n > 0 {
			stall.Reset(stallTimeout)
			if at += int64(n); size > 0 && at > size {
				return fmt.Errorf("more than the %d bytes that it should have", size)
			}
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			if progress != nil {
				progress(at)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

// fetchFile downloads to a file; one that was cut goes on. The file stays until the caller removes it.
func (a *agent) fetchFile(ctx context.Context, sum string, size int64, path string, progress func(int64)) (_ *os.File, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if err := a.fetch(ctx, sum, at, size, f, progress); err != nil {
		return nil, err
	}
	h := sha256.New()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return nil, errors.Join(notYet("image %s: what came has the SHA-256 %s; it is fetched anew", sum[:12], got[:12]), os.Remove(path))
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

// imageOf finds an image that the manager has told of and that is ready.
func (a *agent) imageOf(name string) (*v1.Image, error) {
	img := a.world.image(name)
	if img == nil {
		return nil, notYet("image %s: the manager has not told of it", name)
	}
	if !shaForm.MatchString(img.GetStatus().GetSha256()) {
		return nil, notYet("image %s is not ready", name)
	}
	return img, nil
}

// kernelDir is where a kernel image's parts are.
func (a *agent) kernelDir(sum string) string { return filepath.Join(a.cfg.StateDir, "kernels", sum) }

const kernelCmdline = "cmdline"

// ensureKernel has a kernel image unpacked on this host.
func (a *agent) ensureKernel(ctx context.Context, name string, progress func(int64)) error {
	img, err := a.imageOf(name)
	if err != nil {
		return err
	}
	sum := img.GetStatus().GetSha256()
	done, err := a.flights.enter(ctx, "kernel/"+sum)
	if err != nil {
		return err
	}
	defer done()
	dir := a.kernelDir(sum)
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	file := dir + ".image"
	f, err := a.fetchFile(ctx, sum, img.GetStatus().GetSizeBytes(), file, progress)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	defer f.Close()
	tmp := dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	x, err := kernelimage.Extract(ctx, f, tmp)
	if err != nil {
		return errors.Join(fmt.Errorf("unpack kernel image %s: %w", name, err), os.RemoveAll(tmp))
	}
	// QEMU opens them again by descriptor, as its own user: what is in an image is no secret.
	for from, to := range map[string]string{x.Kernel: "kernel", x.Initrd: "initrd"} {
		if err := errors.Join(os.Chmod(from, 0o444), os.Rename(from, filepath.Join(tmp, to))); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(tmp, kernelCmdline), []byte(x.Cmdline), 0o444); err != nil {
		return err
	}
	return errors.Join(os.Rename(tmp, dir), syncDir(filepath.Dir(dir)))
}

// hasKernel says that a kernel image is here.
func (a *agent) hasKernel(name string) bool {
	img, err := a.imageOf(name)
	if err != nil {
		return false
	}
	_, err = os.Stat(a.kernelDir(img.GetStatus().GetSha256()))
	return !errors.Is(err, fs.ErrNotExist)
}
