package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"connectrpc.com/connect"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/backup/files"
	"drover/internal/resource"
)

// browsing is the restore points whose files are looked at. The zero value is ready.
type browsing struct {
	once sync.Once
	keep *files.Keeper
}

// session gives the open session of a point, or opens it. A session belongs to its grant: another grant is another session. release is called once.
func (n *node) session(ctx context.Context, q *v1.NodeBrowseRequest) (*files.Session, func(), error) {
	if q.GetPoint() == "" || q.GetSource() == nil {
		return nil, nil, pointError(q, resource.Invalid, "INCOMPLETE", errors.New("point and source must be set"))
	}
	b := &n.browsing
	b.once.Do(func() {
		b.keep = files.NewKeeper(n.a.life, 0, 0)
		// The API is closed before the actors are waited for, so this is counted in time.
		n.a.actors.Go(func() {
			<-n.a.life.Done()
			b.keep.Close()
		})
	})
	vault := q.GetSource().GetVault()
	key := strings.Join([]string{vault.GetRepository(), q.GetPoint(), vault.GetGrant(), q.GetHelperSha256()}, " ")
	s, release, err := b.keep.Get(ctx, key, n.a.clk.Now, func(ctx, life context.Context) (*files.Session, error) {
		return n.a.openFiles(ctx, life, q)
	})
	if errors.Is(err, files.ErrBusy) {
		err = pointError(q, resource.Exhausted, "TOO_MANY_OPEN", err)
	}
	return s, release, err
}

func (a *agent) openFiles(ctx, life context.Context, q *v1.NodeBrowseRequest) (_ *files.Session, err error) {
	img, err := a.helperImage(ctx, q.GetHelperSha256(), q.GetHelperSize())
	if err != nil {
		return nil, pointError(q, resource.Unavailable, "HELPER_IMAGE", fmt.Errorf("the helper's image: %w", err))
	}
	repo, closer, err := a.vault(life, q.GetSource())
	if err != nil {
		return nil, pointError(q, resource.Unavailable, "VAULT", err)
	}
	defer func() {
		if err != nil {
			closer()
		}
	}()
	p, err := repo.OpenPoint(life, q.GetPoint())
	if err != nil {
		return nil, err
	}
	uid := a.helperUser()
	s, err := files.Open(ctx, life, &closingPoint{p, closer}, files.Options{
		Image: img, QEMU: a.cfg.QEMU, Accel: a.accel.name, TSCKHz: a.accel.tscKHz, UID: uid, GID: uid, Dir: a.cfg.StateDir, Clock: a.clk, Log: a.log,
	})
	if err != nil {
		return nil, pointError(q, resource.Unavailable, "HELPER", err)
	}
	return s, nil
}

// helperUser is the numeric user of helpers: the last of this agent's block, which VMs get to when there are thousands.
func (a *agent) helperUser() uint32 {
	var block uint32
	for _, b := range []byte(a.tag())[:4] {
		block = block<<4 | uint32(b&0x0f)
	}
	return uint32(userBase) + block*userBlock + userBlock - 1
}

// helperImage has the helper's image laid out on this host. Other ones that are there go.
func (a *agent) helperImage(ctx context.Context, sum string, size int64) (files.Image, error) {
	if !shaForm.MatchString(sum) {
		return files.Image{}, fmt.Errorf("%q is not a SHA-256", sum)
	}
	done, err := a.flights.enter(ctx, "helper")
	if err != nil {
		return files.Image{}, err
	}
	defer done()
	all := filepath.Join(a.cfg.StateDir, "helpers")
	dir := filepath.Join(all, sum)
	img := files.Image{Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd")}
	line, err := os.ReadFile(filepath.Join(dir, kernelCmdline))
	if err == nil {
		img.Cmdline = string(line)
		return img, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return files.Image{}, err
	}
	// Sessions that run one of another version have it open; if their helper fails they begin anew with this one.
	if err := errors.Join(os.RemoveAll(all), os.MkdirAll(all, 0o700)); err != nil {
		return files.Image{}, err
	}
	file, tmp := dir+".image", dir+".tmp"
	f, err := a.fetchFile(ctx, sum, size, file, func(int64) {})
	if err != nil {
		return files.Image{}, err
	}
	defer os.Remove(file)
	if err := errors.Join(f.Close(), os.Mkdir(tmp, 0o700)); err != nil {
		return files.Image{}, err
	}
	x, err := files.OpenImage(ctx, file, tmp)
	if err != nil {
		return files.Image{}, errors.Join(err, os.RemoveAll(tmp))
	}
	// QEMU opens them again by descriptor, as its own user: what is in an image is no secret.
	for from, to := range map[string]string{x.Kernel: "kernel", x.Initrd: "initrd"} {
		if err := errors.Join(os.Chmod(from, 0o444), os.Rename(from, filepath.Join(tmp, to))); err != nil {
			return files.Image{}, err
		}
	}
	img.Cmdline = x.Cmdline
	if err := writeFile(filepath.Join(tmp, kernelCmdline), []byte(x.Cmdline), 0o444); err != nil {
		return files.Image{}, err
	}
	return img, errors.Join(os.Rename(tmp, dir), syncDir(all))
}

// Browse lists the volumes of a restore point, or a directory of one.
func (n *node) Browse(ctx context.Context, q *v1.NodeBrowseRequest) (*v1.BrowseResponse, error) {
	s, release, err := n.session(ctx, q)
	if err != nil {
		return nil, err
	}
	defer release()
	res := &v1.BrowseResponse{}
	if q.GetPath() == "" {
		vs, err := s.Volumes(ctx)
		if err != nil {
			return nil, browseError(q, err)
		}
		for _, v := range vs {
			res.Entries = append(res.Entries, v.Message())
		}
		return res, nil
	}
	p, err := files.ParsePath(q.GetPath())
	if err != nil {
		return nil, pointError(q, resource.Invalid, "BAD_PATH", err)
	}
	limit := int(q.GetLimit())
	if limit <= 0 || limit > browsePage {
		limit = browsePage
	}
	es, err := s.List(ctx, p, files.Bytes(q.GetAfter()), limit)
	if err != nil {
		return nil, browseError(q, err)
	}
	for _, e := range es {
		res.Entries = append(res.Entries, e.Message())
	}
	res.More = len(es) == limit
	return res, nil
}

// browsePage is the most entries that one answer has.
const browsePage = 10000

// Download sends files of a restore point: one as it is, several as an archive.
func (n *node) Download(ctx context.Context, d *v1.NodeDownloadRequest, st *connect.ServerStream[v1.DownloadResponse]) error {
	q := d.GetSession()
	var paths []files.Path
	for _, text := range d.GetPaths() {
		p, err := files.ParsePath(text)
		if err != nil {
			return pointError(q, resource.Invalid, "BAD_PATH", err)
		}
		paths = append(paths, p)
	}
	s, release, err := n.session(ctx, q)
	if err != nil {
		return err
	}
	defer release()
	err = s.Download(ctx, paths, sender{st}, func(raw bool, size int64) error { return st.Send(&v1.DownloadResponse{Raw: raw, Size: size}) })
	if err != nil {
		return browseError(q, err)
	}
	return nil
}

// sender makes messages of what is written.
type sender struct {
	st *connect.ServerStream[v1.DownloadResponse]
}

func (s sender) Write(b []byte) (int, error) {
	if err := s.st.Send(&v1.DownloadResponse{Data: b}); err != nil {
		return 0, err
	}
	return len(b), nil
}

func pointError(q *v1.NodeBrowseRequest, code resource.Code, reason string, err error) error {
	return &resource.Error{Code: code, Kind: resource.KindPoint, Name: q.GetPoint(), Reason: reason, Message: err.Error(), Err: err}
}

func browseError(q *v1.NodeBrowseRequest, err error) error {
	switch {
	case errors.Is(err, files.ErrNotFound):
		return pointError(q, resource.NotFound, "NO_SUCH_FILE", err)
	case errors.Is(err, files.ErrWrongType):
		return pointError(q, resource.Invalid, "WRONG_TYPE", err)
	case errors.Is(err, files.ErrDamaged):
		return pointError(q, resource.Precondition, "DAMAGED", err)
	case errors.Is(err, files.ErrUnsupported):
		return pointError(q, resource.Precondition, "CANNOT_BE_READ", err)
	case errors.Is(err, files.ErrHelper):
		return pointError(q, resource.Unavailable, "HELPER", err)
	}
	return err
}

// closingPoint ends the connections to its vault when it is closed.
type closingPoint struct {
	backup.PointReader
	closer func()
}

func (p *closingPoint) Close() error {
	defer p.closer()
	return p.PointReader.Close()
}
