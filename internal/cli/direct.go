package cli

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"drover/internal/backup"
	"drover/internal/blob"
	"drover/internal/chunkstore"

	"github.com/spf13/cobra"
)

// direct opens a repository by its location, without a manager.
type direct struct {
	s3    s3Flags
	pass  passphraseFlags
	cache string
}

const envCache = "DROVER_CACHE"

func (f *direct) add(cmd *cobra.Command) {
	f.s3.add(cmd)
	f.pass.add(cmd)
	cmd.Flags().StringVar(&f.cache, "cache", "", "`directory` of the index, which can be lost (default $"+envCache+", else ~/.cache/drover)")
}

// isLocation tells a location from a name of a repository: names have no slash.
func isLocation(s string) bool { return strings.Contains(s, "/") || s == "." || s == ".." }

func (f *direct) store(a *App, location string) (blob.Store, error) {
	if !strings.Contains(location, "://") {
		abs, err := filepath.Abs(location)
		if err != nil {
			return nil, err
		}
		location = abs
	}
	spec, err := f.s3.spec(a)
	if err != nil {
		return nil, err
	}
	return blob.Open(location, blob.S3Options{
		Endpoint: spec.GetEndpoint(), Region: spec.GetRegion(), AccessKey: spec.GetAccessKey(), SecretKey: spec.GetSecretKey(),
		Insecure: spec.GetInsecure(), CA: spec.GetCa(), LockFor: spec.GetObjectLock().AsDuration(),
	})
}

func (f *direct) options(a *App, readOnly bool) chunkstore.OpenOptions {
	o := chunkstore.OpenOptions{ReadOnly: readOnly, Log: slog.New(slog.DiscardHandler), Clock: a.Clock, Version: a.Version}
	dir := cmp.Or(f.cache, a.Getenv(envCache))
	if dir == "" {
		home, err := os.UserCacheDir()
		if err != nil {
			return o // a temporary index does as well
		}
		dir = filepath.Join(home, "drover")
	}
	o.Cache = dir
	return o
}

// open opens the repository at a location. The caller closes it.
func (f *direct) open(ctx context.Context, a *App, location string, readOnly bool) (*chunkstore.Repository, error) {
	st, err := f.store(a, location)
	if err != nil {
		return nil, err
	}
	o := f.options(a, readOnly)
	if o.Passphrase, err = f.pass.read(a, false); err != nil {
		return nil, err
	}
	o.Recovery = o.Passphrase
	r, err := chunkstore.Open(ctx, st, o)
	if _, ok := terminal(a.In); ok && o.Passphrase == "" && errors.Is(err, chunkstore.ErrWrongKey) {
		if o.Passphrase, err = a.secret("Passphrase or recovery key"); err != nil {
			return nil, err
		}
		o.Recovery = o.Passphrase
		r, err = chunkstore.Open(ctx, st, o)
	}
	return r, directError(err)
}

// pointOf finds a point by the beginning of its id, or the newest of a VM by its name or uid.
func pointOf(ctx context.Context, r backup.Repository, what string) (backup.Point, error) {
	all, err := r.Points(ctx, "")
	if err != nil {
		return backup.Point{}, err
	}
	var newest *backup.Point
	for i, p := range all {
		if p.VM == what || p.VMUID == what {
			newest = &all[i]
		}
	}
	if newest != nil {
		return *newest, nil
	}
	var found []backup.Point
	if _, err := hex.DecodeString(what + strings.Repeat("0", len(what)%2)); err == nil && len(what) >= 4 {
		for _, p := range all {
			if strings.HasPrefix(p.ID, what) {
				found = append(found, p)
			}
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		var names []string
		for _, p := range all {
			if !slices.Contains(names, p.VM) {
				names = append(names, p.VM)
			}
		}
		return backup.Point{}, &failure{code: exitNotFound, err: fmt.Errorf("no point and no VM %q is in the repository; it has %d points%s", what, len(all), listed(names))}
	}
	return backup.Point{}, usage("%q begins the ids of %d points; write more of it", what, len(found))
}
