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
	"drover/internal/task"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// largestUpload bounds one uploaded file, in bytes.
const largestUpload = 2 << 40

func (m *Manager) openImages() (err error) {
	if err := os.MkdirAll(m.cfg.path("uploads"), 0o700); err != nil {
		return err
	}
	m.images, err = library.Open(m.cfg.path("images"), library.Options{Log: m.log})
	return err
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

// importImage begins the task that makes an image ready.
func (m *Manager) importImage(ctx context.Context, name string) (*v1.Image, error) {
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
	return updateSimple(ctx, m.Images, i, mask, validateOnly, ignoreOld(resource.CheckImage), func(old, i *v1.Image) error {
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
	m.admission.Lock() // no VM may be made from it meanwhile
	defer m.admission.Unlock()
	i, err := deleteSimple(ctx, m.Images, name, revision, func(i *v1.Image) (users []string) {
		if t, ok := m.Tasks.cache.Get(i.GetStatus().GetTask()); ok && !task.Ended(t) {
			return []string{"task " + t.Meta.Name}
		}
		if force {
			return nil
		}
		return m.usersOf(name)
	})
	if err != nil {
		return nil, err
	}
	all, _ := m.Images.cache.List()
	same := slices.ContainsFunc(all, func(x *v1.Image) bool { return x.GetStatus().GetSha256() == i.GetStatus().GetSha256() })
	if file := fileOf(i); file != "" && !same {
		if err := m.images.Delete(file); err != nil && !errors.Is(err, library.ErrNotFound) {
			m.log.Warn("manager: delete image file", "image", name, "err", err)
		}
	}
	if err := os.Remove(m.upload(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Warn("manager: delete upload", "image", name, "err", err)
	}
	return i, nil
}

// fileOf is the name of an image's file in the library.
func fileOf(i *v1.Image) string { return i.GetMeta().GetAnnotations()[fileAnnotation] }

// fileAnnotation says which file of the library an image is.
const fileAnnotation = "drover/file"

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
	res, err := m.images.Import(ctx, req)
	if err != nil {
		return importError(name, err)
	}
	kind := kindOf(res.SourceFormat)
	if i.Spec.Kind != v1.ImageKind_IMAGE_KIND_UNSPECIFIED && i.Spec.Kind != kind {
		return &resource.Error{Code: resource.Invalid, Kind: resource.KindImage, Name: name, Field: "spec.kind", Reason: "IMAGE_KIND", Message: fmt.Sprintf("holds %s, which is of kind %s, not %s", res.SourceFormat, kindName(kind), kindName(i.Spec.Kind))}
	}
	_, err = m.Images.mutate(ctx, name, func(i *v1.Image) error {
		i.Spec.Kind = kind
		if i.Meta.Annotations == nil {
			i.Meta.Annotations = map[string]string{}
		}
		i.Meta.Annotations[fileAnnotation] = res.Name
		st := i.Status
		st.Phase, st.Message, st.Sha256, st.SizeBytes, st.VirtualSizeBytes = v1.ImagePhase_IMAGE_PHASE_READY, "", res.SHA256, res.Size, res.VirtualSize
		st.SourceSha256, st.SourceFormat = res.SourceSHA256, string(res.SourceFormat)
		return nil
	})
	if err != nil {
		return err
	}
	if err := os.Remove(m.upload(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.Log("delete the upload: %v", err)
	}
	m.event(v1.Severity_SEVERITY_INFO, resource.KindImage, name, "IMAGE_READY", fmt.Sprintf("imported in %v", m.cfg.Clock.Now().Sub(r.Task.Meta.CreateTime.AsTime()).Round(100*time.Millisecond)))
	return nil
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
		i.Status.Phase, i.Status.Message = v1.ImagePhase_IMAGE_PHASE_FAILED, "see: drover task log "+r.Task.Meta.Name
		return errors.Join(removeIfThere(m.upload(i)))
	})
	if resource.CodeOf(err) == resource.NotFound {
		return nil
	}
	return err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
