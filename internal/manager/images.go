package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/disk/inspect"
	"drover/internal/disk/library"
	"drover/internal/resource"
	"drover/internal/store"
	"drover/internal/task"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// largestUpload bounds one uploaded file, in bytes.
const largestUpload = 2 << 40

func (m *Manager) openImages() (err error) {
	if err := os.MkdirAll(m.cfg.path("uploads"), 0o700); err != nil {
		return err
	}
	m.images, err = library.Open(m.cfg.path("images"), library.Options{Log: m.log, HTTP: outbound()})
	return err
}

// checkImages says of images whose file is not in the library that they have to be imported again: after a restore of the state, which
// holds no files.
func (m *Manager) checkImages(ctx context.Context) error {
	files, err := m.images.Files()
	if err != nil {
		return err
	}
	all, _ := m.Images.cache.List()
	for _, i := range all {
		if i.GetStatus().GetPhase() != v1.ImagePhase_IMAGE_PHASE_READY || slices.Contains(files, fileOf(i)) {
			continue
		}
		_, err := m.Images.mutate(ctx, i.Meta.Name, func(i *v1.Image) error {
			i.Status.Phase, i.Status.Message = v1.ImagePhase_IMAGE_PHASE_FAILED, "its file is not in the library; delete the image and import it again"
			return nil
		})
		if err != nil && resource.CodeOf(err) != resource.NotFound {
			return err
		}
		m.event(v1.Severity_SEVERITY_ERROR, resource.KindImage, i.Meta.Name, "IMAGE_LOST", "its file is not in the library")
	}
	return nil
}

// ImageFile opens the file that hosts fetch, by its SHA-256. The caller closes it.
func (m *Manager) ImageFile(sha256 string) (*os.File, error) {
	all, _ := m.Images.cache.List()
	for _, i := range all {
		if i.GetStatus().GetSha256() == sha256 && sha256 != "" {
			return m.images.File(fileOf(i))
		}
	}
	return nil, &resource.Error{Code: resource.NotFound, Kind: resource.KindImage, Reason: "NOT_FOUND", Message: "there is no image with SHA-256 " + sha256}
}

// CreateImage stores an image and begins to import it, or waits for its upload.
func (m *Manager) CreateImage(ctx context.Context, i *v1.Image, validateOnly bool) (*v1.Image, error) {
	made, err := createSimple(ctx, m, m.Images, i, validateOnly, func(i *v1.Image) {
		if i.Spec == nil {
			i.Spec = &v1.ImageSpec{}
		}
		i.Status = &v1.ImageStatus{Phase: v1.ImagePhase_IMAGE_PHASE_WAITING, Message: "waits for its upload"}
		if i.Spec.Url != "" {
			i.Status = &v1.ImageStatus{Phase: v1.ImagePhase_IMAGE_PHASE_IMPORTING}
		}
	}, resource.CheckImage)
	if err != nil || validateOnly || made.Spec.Url == "" {
		return made, err
	}
	return m.importImage(ctx, made.Meta.Name)
}

// importImage begins the task that makes an image ready, unless there is one or it has ended.
func (m *Manager) importImage(ctx context.Context, name string) (*v1.Image, error) {
	m.imports.Lock()
	defer m.imports.Unlock()
	i, err := m.Images.lookup(name)
	if err != nil {
		return nil, err
	}
	if i.GetStatus().GetPhase() > v1.ImagePhase_IMAGE_PHASE_IMPORTING || m.worked(resource.KindImage, name) {
		return m.Images.seen(i), nil
	}
	t, err := m.submit(ctx, taskImageImport, resource.KindImage, name)
	if err != nil {
		return nil, err
	}
	return m.Images.mutate(ctx, name, func(i *v1.Image) error {
		i.Status.Task = t.Meta.Name
		if i.Status.Phase == v1.ImagePhase_IMAGE_PHASE_WAITING {
			i.Status.Phase, i.Status.Message = v1.ImagePhase_IMAGE_PHASE_IMPORTING, ""
		}
		return nil
	})
}

// UpdateImage changes an image's description, OS and labels.
func (m *Manager) UpdateImage(ctx context.Context, i *v1.Image, mask *fieldmaskpb.FieldMask, validateOnly bool) (*v1.Image, error) {
	return updateSimple(ctx, m, m.Images, i, mask, validateOnly, ignoreOld(resource.CheckImage), func(old, i *v1.Image) error {
		f := resource.FaultsOf(resource.KindImage, i.Meta.Name)
		if old.Spec.Kind != i.Spec.Kind || old.Spec.Url != i.Spec.Url || old.Spec.Sha256 != i.Spec.Sha256 {
			f.Add("spec", "FIELD_IMMUTABLE", "kind, url and sha256 never change; import another image")
		}
		return f.Err()
	})
}

// DeleteImage forgets an image and, if no other has the same content, its file. Disks that started from it live on:
// their hosts keep what they need.
func (m *Manager) DeleteImage(ctx context.Context, name string, revision int64, force bool) (*v1.Image, error) {
	ctx, done, err := m.exclusive(ctx) // no VM may be made from it meanwhile
	if err != nil {
		return nil, err
	}
	defer done()
	i, err := deleteSimple(ctx, m.Images, name, revision, func(i *v1.Image) (users []string) {
		if phase := i.GetStatus().GetPhase(); phase <= v1.ImagePhase_IMAGE_PHASE_IMPORTING && m.worked(resource.KindImage, name) {
			return []string{"the task that imports it, " + i.GetStatus().GetTask()}
		}
		if force {
			return m.startersOf(name)
		}
		return m.usersOf(name)
	})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(m.dropFile(fileOf(i)), removeIfThere(m.upload(i))); err != nil {
		m.log.Warn("manager: delete image file", "image", name, "err", err)
	}
	return i, nil
}

// fileOf is the name of a ready image's file in the library: its SHA-256, and what it is.
func fileOf(i *v1.Image) string {
	sum, ext := i.GetStatus().GetSha256(), ".qcow2"
	switch i.GetSpec().GetKind() {
	case v1.ImageKind_IMAGE_KIND_ISO:
		ext = ".iso"
	case v1.ImageKind_IMAGE_KIND_KERNEL:
		ext = ".kernel"
	}
	if sum == "" {
		return ""
	}
	return sum + ext
}

// dropFile deletes a file of the library that no image is made of. admission is held.
func (m *Manager) dropFile(file string) error {
	all, _ := m.Images.cache.List()
	if file == "" || slices.ContainsFunc(all, func(i *v1.Image) bool { return fileOf(i) == file }) {
		return nil
	}
	return m.images.Delete(file)
}

// sweepFiles deletes, before tasks are begun, what a killed manager left of imports and uploads without an image.
func (m *Manager) sweepFiles(ctx context.Context) error {
	_, done, err := m.exclusive(ctx)
	if err != nil {
		return err
	}
	defer done()
	files, err := m.images.Files()
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		errs = append(errs, m.dropFile(f))
	}
	all, _ := m.Images.cache.List()
	uploads, err := os.ReadDir(m.cfg.path("uploads"))
	for _, u := range uploads {
		if !slices.ContainsFunc(all, func(i *v1.Image) bool {
			return i.Meta.Uid == u.Name() && i.Status.Phase != v1.ImagePhase_IMAGE_PHASE_READY
		}) {
			errs = append(errs, removeIfThere(filepath.Join(m.cfg.path("uploads"), u.Name())))
		}
	}
	return errors.Join(append(errs, err)...)
}

// upload is where an image's upload is collected. Its uid is in the name: another image of the same name begins anew.
func (m *Manager) upload(i *v1.Image) string {
	return filepath.Join(m.cfg.path("uploads"), i.Meta.Uid)
}

// waiting is an image that takes an upload.
func (m *Manager) waiting(name string) (*v1.Image, error) {
	i, err := m.Images.lookup(name)
	if err != nil {
		return nil, err
	}
	if i.GetStatus().GetPhase() != v1.ImagePhase_IMAGE_PHASE_WAITING {
		return nil, &resource.Error{Code: resource.Precondition, Kind: resource.KindImage, Name: name, Reason: "NOT_WAITING", Message: "takes no upload: it is " + phaseName(i.GetStatus().GetPhase())}
	}
	return i, nil
}

// Uploaded is how many bytes of an image's upload are there.
func (m *Manager) Uploaded(name string) (int64, error) {
	i, err := m.waiting(name)
	if err != nil {
		return 0, err
	}
	st, err := os.Stat(m.upload(i))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Upload appends to an image's upload at offset, which must be where it ends. With last, the upload is whole and the import begins.
// What was received stays when the sender is cut off.
func (m *Manager) Upload(ctx context.Context, name string, offset int64, from io.Reader, last bool) (*v1.Image, error) {
	i, err := m.waiting(name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(m.upload(i), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if !lockFile(f) {
		return nil, &resource.Error{Code: resource.Conflict, Kind: resource.KindImage, Name: name, Reason: "UPLOAD_BUSY", Message: "someone else is uploading it", Remedy: "wait, or import under another name"}
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if end != offset {
		return nil, &resource.Error{Code: resource.Conflict, Kind: resource.KindImage, Name: name, Reason: "OFFSET_WRONG", Message: fmt.Sprintf("has %d bytes of its upload, these begin at %d", end, offset), Remedy: "ask with HEAD where to go on"}
	}
	n, err := io.Copy(f, io.LimitReader(from, largestUpload-offset+1))
	if offset+n > largestUpload {
		return nil, errors.Join(f.Truncate(0), &resource.Error{Code: resource.Invalid, Kind: resource.KindImage, Name: name, Reason: "TOO_LARGE", Message: "is larger than 2 TiB"})
	}
	if err = errors.Join(err, f.Sync()); err != nil {
		return nil, &resource.Error{Code: resource.Unavailable, Kind: resource.KindImage, Name: name, Reason: "UPLOAD_CUT", Message: fmt.Sprintf("the upload was cut at %d bytes: %v", offset+n, err), Remedy: "go on from there", Err: err}
	}
	if !last {
		return m.Images.seen(i), nil
	}
	if end+n == 0 {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindImage, Name: name, Reason: "UPLOAD_EMPTY", Message: "an upload of no bytes is no image", Remedy: "upload the file, and say last with its last piece"}
	}
	return m.importImage(ctx, name)
}

// weights of the phases of an import, as shares of the whole.
var importParts = map[library.Phase][2]float64{
	library.Download: {0, 0.5}, library.Check: {0.5, 0.6}, library.Unpack: {0.6, 0.7}, library.Convert: {0.7, 0.95}, library.Finish: {0.95, 1},
}

func (m *Manager) doImport(ctx context.Context, r *task.Run) error {
	name := r.Task.Spec.Target
	i, err := m.Images.lookup(name)
	if err != nil {
		return err
	}
	if i.GetStatus().GetPhase() == v1.ImagePhase_IMAGE_PHASE_READY {
		return nil // an earlier run finished it
	}
	var phase library.Phase
	req := library.Request{URL: i.Spec.Url, SHA256: i.Spec.Sha256, Progress: func(p library.Phase, done, total int64) {
		if p != phase {
			phase = p
			r.Log("%s", p)
		}
		part := importParts[p]
		if total > 0 {
			r.Progress(ctx, part[0]+(part[1]-part[0])*float64(done)/float64(total))
		}
	}}
	if i.Spec.Url == "" {
		req.Path = m.upload(i)
	}
	for range changeTries {
		res, err := m.images.Import(ctx, req)
		if err != nil {
			return importError(name, err)
		}
		switch took, err := m.takeImport(ctx, name, res); {
		case err != nil:
			return err
		case took:
			if err := removeIfThere(m.upload(i)); err != nil {
				r.Log("delete the upload: %v", err)
			}
			m.event(v1.Severity_SEVERITY_INFO, resource.KindImage, name, "IMAGE_READY", fmt.Sprintf("imported in %v", m.cfg.Clock.Now().Sub(r.Task.Meta.CreateTime.AsTime()).Round(100*time.Millisecond)))
			return nil
		}
	}
	return &resource.Error{Code: resource.Unavailable, Kind: resource.KindImage, Name: name, Reason: "IMPORT_BUSY", Message: "images of the same content come and go", Remedy: "import it again"}
}

// takeImport makes an image of a file that was imported. It is false when the file went meanwhile with another image of the same content.
func (m *Manager) takeImport(ctx context.Context, name string, res library.Result) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err // cancelled: the sweep of the next start finds the file if nobody has it
	}
	kind := kindOf(res.SourceFormat)
	own, done, err := m.exclusive(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	f, err := m.images.File(res.Name)
	if errors.Is(err, library.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	f.Close()
	_, err = m.Images.mutate(own, name, func(i *v1.Image) error {
		if i.Spec.Kind != v1.ImageKind_IMAGE_KIND_UNSPECIFIED && i.Spec.Kind != kind {
			return &resource.Error{Code: resource.Invalid, Kind: resource.KindImage, Name: name, Field: "spec.kind", Reason: "IMAGE_KIND", Message: fmt.Sprintf("holds %s, which is of kind %s, not %s", res.SourceFormat, kindName(kind), kindName(i.Spec.Kind))}
		}
		i.Spec.Kind = kind
		st := i.Status
		st.Phase, st.Message, st.Sha256, st.SizeBytes, st.VirtualSizeBytes = v1.ImagePhase_IMAGE_PHASE_READY, "", res.SHA256, res.Size, res.VirtualSize
		st.SourceSha256, st.SourceFormat = res.SourceSHA256, string(res.SourceFormat)
		return nil
	})
	if err != nil && !errors.Is(err, store.ErrUnavailable) {
		err = errors.Join(err, m.dropFile(res.Name))
	}
	return err == nil, err
}

func importError(name string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	e := &resource.Error{Code: resource.Invalid, Kind: resource.KindImage, Name: name, Reason: "IMAGE_REFUSED", Message: err.Error(), Err: err}
	switch {
	case errors.Is(err, library.ErrChecksum):
		e.Reason = "CHECKSUM_WRONG"
	case errors.Is(err, library.ErrTooBig):
		e.Reason = "TOO_LARGE"
	case errors.Is(err, library.ErrBusy):
		e.Code, e.Reason = resource.Precondition, "IMPORT_BUSY"
	}
	return e
}

func kindOf(f inspect.Format) v1.ImageKind {
	switch f {
	case inspect.ISO:
		return v1.ImageKind_IMAGE_KIND_ISO
	case inspect.Kernel:
		return v1.ImageKind_IMAGE_KIND_KERNEL
	}
	return v1.ImageKind_IMAGE_KIND_DISK
}

// undoImport says why an import failed. The image stays, so that its reason can be read, until it is deleted.
func (m *Manager) undoImport(ctx context.Context, r *task.Run) error {
	_, err := m.Images.mutate(ctx, r.Task.Spec.Target, func(i *v1.Image) error {
		if i.Status.Phase == v1.ImagePhase_IMAGE_PHASE_READY {
			return errSame
		}
		i.Status.Phase, i.Status.Message = v1.ImagePhase_IMAGE_PHASE_FAILED, failure(r)
		return removeIfThere(m.upload(i))
	})
	if resource.CodeOf(err) == resource.NotFound {
		return nil
	}
	return err
}

// failure is why a task is undone, for the status of what it was to make.
func failure(r *task.Run) string {
	return fmt.Sprintf("%v; see: drover task log %s", r.Failure(), r.Task.Meta.Name)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
