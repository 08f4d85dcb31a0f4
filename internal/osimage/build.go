package osimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Options are common to all builds. The zero value works.
type Options struct {
	CacheDir string       // where packages and builds are kept; "" is drover/osimage in os.UserCacheDir
	Log      *slog.Logger // nil discards
	Progress func(Step)   // called before each step, from the building goroutine; nil is allowed
	Rebuild  bool         // build even if the cache has it
}

// Step is one part of a build.
type Step struct {
	N, Of int    // from 1
	Name  string // such as "download packages"
}

// Result is a finished build.
type Result struct {
	Path     string            // the image, in the cache: to be read, not changed
	Kind     string            // kernel (see package kernelimage) or disk (qcow2)
	Name     string            // tiny, debian-12
	Size     int64             // of the file
	SHA256   string            // of the file
	Packages map[string]string // what it was made from: package → version
	Cached   bool              // it was there already
	Took     time.Duration
}

// MissingError is a tool that is not installed, or a package that apt does not know.
type MissingError struct {
	What string // the tool or the package
	Fix  string // what to do, as a sentence
}

func (e *MissingError) Error() string { return e.What + " is missing: " + e.Fix }

// build is one build under way.
type build struct {
	opt  Options
	dir  string // CacheDir
	work string // scratch, removed at the end
	step int
	of   int
}

// recipe is all that decides what a build gives; its hash names the result.
type recipe struct {
	Kind, Name, Ext string
	Version         int // of the code here: raised when the same inputs give another image
	Inputs          map[string]string
	Packages        map[string]string
}

func (r *recipe) key() string {
	b, _ := json.Marshal(r) // maps are sorted; nothing in it can fail
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:8])
}

func newBuild(opt Options, steps int) (*build, error) {
	if opt.CacheDir == "" {
		d, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("image cache: %w; name a directory", err)
		}
		opt.CacheDir = filepath.Join(d, "drover", "osimage")
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []string{"packages", "images", "work"} {
		if err := os.MkdirAll(filepath.Join(opt.CacheDir, d), 0o755); err != nil {
			return nil, fmt.Errorf("image cache: %w", err)
		}
	}
	return &build{opt: opt, dir: opt.CacheDir, of: steps}, nil
}

func (b *build) next(name string) {
	b.step++
	b.opt.Log.Info("image build step", "step", b.step, "of", b.of, "name", name)
	if b.opt.Progress != nil {
		b.opt.Progress(Step{N: b.step, Of: b.of, Name: name})
	}
}

// run gives the cached result of r, or makes it: build writes the image to the path it is given, inside of b.work.
func (b *build) run(ctx context.Context, r *recipe, make func(ctx context.Context, out string) error) (*Result, error) {
	start := time.Now()
	path := filepath.Join(b.dir, "images", r.Name+"-"+r.key()+r.Ext)
	unlock, err := lock(ctx, filepath.Join(b.dir, "images", "."+r.Name+"-"+r.key()+".lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	res := &Result{Path: path, Kind: r.Kind, Name: r.Name, Packages: r.Packages}
	if !b.opt.Rebuild {
		if sum, err := os.ReadFile(path + ".sha256"); err == nil && len(sum) == 64 {
			if st, err := os.Stat(path); err == nil {
				res.Size, res.SHA256, res.Cached, res.Took = st.Size(), string(sum), true, time.Since(start)
				return res, nil
			}
		}
	}
	if b.work, err = os.MkdirTemp(filepath.Join(b.dir, "work"), r.Name+"-"); err != nil {
		return nil, fmt.Errorf("build %s: %w", r.Name, err)
	}
	defer os.RemoveAll(b.work)
	out := filepath.Join(b.work, "image"+r.Ext)
	if err := make(ctx, out); err != nil {
		return nil, fmt.Errorf("build %s: %w", r.Name, err)
	}
	b.next("check and keep")
	if res.SHA256, res.Size, err = sumFile(out); err != nil {
		return nil, fmt.Errorf("build %s: %w", r.Name, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("build %s: %w", r.Name, err)
	}
	if err := keep(out, path, res.SHA256); err != nil {
		return nil, fmt.Errorf("build %s: %w", r.Name, err)
	}
	res.Took = time.Since(start)
	return res, nil
}

// keep moves a finished image into place, its hash last: an image without a hash is not there.
func keep(from, to, sum string) error {
	if err := os.Remove(to + ".sha256"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Chmod(from, 0o444); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	tmp := from + ".sha256"
	if err := os.WriteFile(tmp, []byte(sum), 0o444); err != nil {
		return err
	}
	return os.Rename(tmp, to+".sha256")
}

func sumFile(path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// lock takes a file lock that other processes honour, so that one build serves all who want the same.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("image cache: %w", err)
	}
	got := make(chan error, 1)
	// After a cancel this goroutine goes on until the other build ends; flock cannot be interrupted otherwise.
	go func() {
		for {
			err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
			if !errors.Is(err, syscall.EINTR) {
				got <- err
				return
			}
		}
	}()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("image cache: lock %s: %w", path, err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() {
			<-got
			f.Close()
		}()
		return nil, ctx.Err()
	}
}
