package vault

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/blob"
	"drover/internal/chunkstore"
	"drover/internal/chunkstore/keys"
	"drover/internal/resource"
)

// minPassphrase is in characters: what is shorter is guessed.
const minPassphrase = 12

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// Open opens a repository, or makes it. One that is open takes the new spec. Its key and the storage's secret stay on this machine, so that the
// passphrase is needed once.
func (v *Vaults) Open(ctx context.Context, req *v1.VaultOpenRequest) (*v1.VaultOpenResponse, error) {
	if err := v.manager(ctx); err != nil {
		return nil, err
	}
	name, spec := req.GetRepository(), proto.CloneOf(req.GetSpec())
	if !nameForm.MatchString(name) {
		return nil, invalid("repository", "%q is no name of a repository", clip(name))
	}
	if spec == nil || spec.GetLocation() == "" {
		return nil, invalid("spec.location", "where the repository is must be said")
	}
	if n := len([]rune(req.GetPassphrase())); req.GetCreate() && n > 0 && n < minPassphrase {
		return nil, invalid("passphrase", "a passphrase has at least %d characters, not %d", minPassphrase, n)
	}
	x, err := v.slot(name)
	if err != nil {
		return nil, err
	}
	if err := x.take(ctx); err != nil {
		return nil, err
	}
	defer x.give()
	recovery, err := v.open(ctx, x, spec, req.GetPassphrase(), req.GetCreate())
	if err != nil {
		v.mu.Lock()
		if x.local == nil {
			x.wrong = err
		}
		v.mu.Unlock()
		return nil, told(name, fmt.Errorf("open it at %s: %w", spec.GetLocation(), err))
	}
	st, _, err := v.status(ctx, name)
	if err != nil {
		return nil, told(name, err)
	}
	return &v1.VaultOpenResponse{RecoveryKey: recovery, Status: st}, nil
}

// slot finds a repository's place, or makes it.
func (v *Vaults) slot(name string) (*vault, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, errClosed(name, nil)
	}
	x := v.vaults[name]
	if x == nil {
		x = &vault{name: name, turn: make(chan struct{}, 1), limit: backup.NewLimiter(v.o.Clock, 0)}
		v.vaults[name] = x
	}
	return x, nil
}

func (x *vault) take(ctx context.Context) error {
	select {
	case x.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (x *vault) give() { <-x.turn }

func (v *Vaults) open(ctx context.Context, x *vault, spec *v1.RepositorySpec, passphrase string, create bool) (recovery string, err error) {
	kept, err := v.readSpec(x.name)
	if err != nil {
		return "", err
	}
	if kept != nil {
		if kept.GetLocation() != spec.GetLocation() {
			return "", &resource.Error{Code: resource.Exists, Kind: resource.KindRepository, Name: x.name, Reason: "VAULT_TAKEN", Message: "this machine serves a repository of this name at " + kept.GetLocation(), Remedy: "let go of that one first"}
		}
		if spec.GetS3() != nil && spec.GetS3().GetSecretKey() == "" {
			spec.S3.SecretKey = kept.GetS3().GetSecretKey()
		}
	}
	v.mu.Lock()
	isOpen := x.local != nil
	v.mu.Unlock()
	if isOpen && !create && passphrase == "" && sameStorage(kept, spec) {
		if err := v.writeSpec(x.name, spec); err != nil {
			return "", err
		}
		v.mu.Lock()
		x.spec = spec
		v.setLimit(x, v.o.Clock.Now())
		v.mu.Unlock()
		return "", nil
	}
	if isOpen {
		if create {
			return "", fmt.Errorf("%w: it is open", blob.ErrExists)
		}
		if err := v.shut(ctx, x.name); err != nil {
			return "", err
		}
	}
	store, err := v.storage(ctx, spec)
	if err != nil {
		return "", err
	}
	r, recovery, err := v.chunks(ctx, x.name, store, spec, passphrase, create)
	if err != nil {
		return "", errors.Join(err, blob.Close(store))
	}
	if !spec.GetReadOnly() && strings.HasPrefix(spec.GetLocation(), "s3://") {
		// Servers change. One that replaces objects lets two writers believe that each has won.
		if err := blob.CheckConditional(ctx, store, configObject); err != nil {
			return "", errors.Join(err, r.Close(), blob.Close(store))
		}
	}
	// The key first: a spec that stands without it can't be opened.
	err = writeSecret(v.keyFile(x.name), []byte(hex.EncodeToString(r.Master())+"\n"))
	if err == nil {
		err = v.writeSpec(x.name, spec)
	}
	if err != nil {
		return "", errors.Join(err, r.Close(), blob.Close(store))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	x.spec, x.store, x.local, x.wrong = spec, store, backup.NewLocal(r), nil
	x.life, x.end = context.WithCancel(v.life)
	v.setLimit(x, v.o.Clock.Now())
	v.o.Log.Info("repository open", "repository", x.name, "location", spec.GetLocation(), "id", r.ID())
	return recovery, nil
}

// sameStorage reports whether what is open serves the new spec as well.
func sameStorage(a, b *v1.RepositorySpec) bool {
	return a.GetLocation() == b.GetLocation() && proto.Equal(a.GetS3(), b.GetS3()) && a.GetReadOnly() == b.GetReadOnly()
}

func (v *Vaults) storage(ctx context.Context, spec *v1.RepositorySpec) (blob.Store, error) {
	if v.o.Storage != nil {
		return v.o.Storage(ctx, spec)
	}
	s3 := spec.GetS3()
	return blob.Open(spec.GetLocation(), blob.S3Options{Endpoint: s3.GetEndpoint(), Region: s3.GetRegion(), AccessKey: s3.GetAccessKey(), SecretKey: s3.GetSecretKey(),
		Insecure: s3.GetInsecure(), CA: s3.GetCa(), LockFor: s3.GetObjectLock().AsDuration(), Clock: v.o.Clock})
}

// configObject is there in every repository.
const configObject = "config"

// chunks makes the repository, or opens it with what there is: the key of this machine, else the passphrase, which may be the recovery key too.
func (v *Vaults) chunks(ctx context.Context, name string, store blob.Store, spec *v1.RepositorySpec, passphrase string, create bool) (*chunkstore.Repository, string, error) {
	o := chunkstore.OpenOptions{Passphrase: passphrase, Cache: filepath.Join(v.o.CacheDir, name), Log: v.o.Log, Clock: v.o.Clock, Version: v.o.Version, ReadOnly: spec.GetReadOnly() && !create}
	if err := os.MkdirAll(o.Cache, 0o700); err != nil {
		return nil, "", err
	}
	if create {
		f := spec.GetFormat()
		c := chunkstore.CreateOptions{BlockSize: int(f.GetBlockSize()), Hash: keys.BLAKE3, Unencrypted: f.GetUnencrypted(), Parity: f.GetParity(), Passphrase: passphrase, Open: o}
		if f.GetSha256() {
			c.Hash = keys.SHA256
		}
		return chunkstore.Create(ctx, store, c)
	}
	if passphrase == "" {
		text, err := os.ReadFile(v.keyFile(name))
		switch {
		case err == nil:
			if o.Master, err = hex.DecodeString(strings.TrimSpace(string(text))); err != nil {
				return nil, "", fmt.Errorf("%s holds no key: %w", v.keyFile(name), err)
			}
		case !errors.Is(err, fs.ErrNotExist):
			return nil, "", err
		}
	}
	r, err := chunkstore.Open(ctx, store, o)
	if err != nil && passphrase != "" && errors.Is(err, chunkstore.ErrWrongKey) {
		o.Passphrase, o.Recovery = "", passphrase
		var rerr error
		if r, rerr = chunkstore.Open(ctx, store, o); rerr == nil {
			return r, "", nil
		}
	}
	return r, "", err
}

// Reopen opens all that was open before a restart. What can't be is left closed, with its reason in Status; Open tries again.
func (v *Vaults) Reopen(ctx context.Context) error {
	names, err := filepath.Glob(filepath.Join(v.o.StateDir, "*.json"))
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, file := range names {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		if !nameForm.MatchString(name) {
			continue
		}
		x, err := v.slot(name)
		if err != nil {
			return err
		}
		if err := x.take(ctx); err != nil {
			return err
		}
		spec, err := v.readSpec(name)
		if err == nil && spec != nil {
			_, err = v.open(ctx, x, spec, "", false)
		}
		x.give()
		if err != nil {
			v.o.Log.Warn("repository not open", "repository", name, "err", err)
			v.mu.Lock()
			x.wrong = err
			if x.spec == nil {
				x.spec = spec
			}
			v.mu.Unlock()
		}
	}
	return nil
}

// CloseRepository is the call Close.
func (v *Vaults) closeRepository(ctx context.Context, req *v1.VaultCloseRequest) (*v1.VaultCloseResponse, error) {
	if err := v.manager(ctx); err != nil {
		return nil, err
	}
	name := req.GetRepository()
	if !nameForm.MatchString(name) {
		return nil, invalid("repository", "%q is no name of a repository", clip(name))
	}
	x, err := v.slot(name)
	if err != nil {
		return nil, err
	}
	if err := x.take(ctx); err != nil {
		return nil, err
	}
	defer x.give()
	if err := v.shut(ctx, name); err != nil {
		return nil, told(name, err)
	}
	v.mu.Lock()
	delete(v.vaults, name)
	for k, g := range v.grants {
		if g.repository == name {
			delete(v.grants, k)
		}
	}
	v.mu.Unlock()
	if !req.GetForget() {
		return &v1.VaultCloseResponse{}, nil
	}
	return &v1.VaultCloseResponse{}, errors.Join(remove(v.specFile(name)), remove(v.keyFile(name)), os.RemoveAll(filepath.Join(v.o.CacheDir, name)))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// shut ends a repository's sessions, waits for calls under way and closes it.
func (v *Vaults) shut(ctx context.Context, name string) error {
	v.mu.Lock()
	x := v.vaults[name]
	if x == nil || x.local == nil {
		v.mu.Unlock()
		return nil
	}
	local, store := x.local, x.store
	x.local, x.store, x.wrong = nil, nil, nil
	x.end()
	var list []*session
	for _, s := range v.sessions {
		if s.vault == x {
			list = append(list, s)
		}
	}
	v.mu.Unlock()
	var errs []error
	for _, s := range list {
		errs = append(errs, v.finish(ctx, s))
	}
	x.uses.Wait()
	return errors.Join(append(errs, local.Chunks().Close(), blob.Close(store))...)
}

func (v *Vaults) readSpec(name string) (*v1.RepositorySpec, error) {
	b, err := os.ReadFile(v.specFile(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	spec := &v1.RepositorySpec{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, spec); err != nil {
		return nil, fmt.Errorf("%s: %w", v.specFile(name), err)
	}
	return spec, nil
}

func (v *Vaults) writeSpec(name string, spec *v1.RepositorySpec) error {
	b, err := protojson.Marshal(spec)
	if err != nil {
		return err
	}
	// protobuf varies its spacing; a file need not.
	var plain json.RawMessage = b
	if b, err = json.MarshalIndent(plain, "", "  "); err != nil {
		return err
	}
	return writeSecret(v.specFile(name), append(b, '\n'))
}

// writeSecret replaces a file of mode 0600, durably and at one moment.
func writeSecret(path string, data []byte) (err error) {
	// CreateTemp makes the file 0600.
	f, err := os.CreateTemp(filepath.Dir(path), ".new.*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, remove(f.Name()))
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
