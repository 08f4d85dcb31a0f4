package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/unit"
	"drover/internal/rpc"

	"connectrpc.com/connect"
)

// uploadAnnotation says what file an upload is of, so that one is never continued with another.
const uploadAnnotation = "cli/upload"

// uploadTries bounds how often an upload that got further is taken up again.
const uploadTries = 10

// upload sends a file as the content of an image that it makes, or goes on with one that was begun.
func (a *App) upload(ctx context.Context, c *client.Client, img *v1.Image, file string) (*v1.Image, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, usageError{err: err}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() == 0 {
		return nil, usage("%s: is not a file with something in it", file)
	}
	mark := fmt.Sprintf("%d bytes of %s", st.Size(), st.ModTime().UTC().Format(time.RFC3339))
	img.Meta.Annotations = map[string]string{uploadAnnotation: mark}
	made, err := c.Image.Create(ctx, &v1.CreateImageRequest{Image: img})
	if isCode(err, connect.CodeAlreadyExists) {
		made, err = resumable(ctx, c, img.GetMeta().GetName(), mark, err)
	}
	if err != nil {
		return nil, err
	}
	name := made.GetMeta().GetName()
	p := a.progress("image " + name)
	defer p.end()
	before := int64(-1)
	for range uploadTries {
		offset, err := uploadOffset(ctx, c, name)
		if err != nil {
			return nil, err
		}
		if offset > st.Size() {
			return nil, &failure{code: exitConflict, err: fmt.Errorf("image %q: more was uploaded than %s holds", name, file), hint: "begin anew: drover image rm " + name}
		}
		body := &counted{r: io.NewSectionReader(f, offset, st.Size()-offset), n: offset, report: func(n int64) {
			p.set("uploading "+unit.Size(n)+" of "+unit.Size(st.Size()), float64(n)/float64(st.Size()))
		}}
		got, err := putUpload(ctx, c, name, offset, st.Size()-offset, body)
		if err == nil || ctx.Err() != nil || !isCode(err, connect.CodeUnavailable) || offset == before {
			return got, err
		}
		before = offset
	}
	return nil, &failure{code: exitUnavailable, err: fmt.Errorf("image %q: the upload was cut %d times", name, uploadTries), hint: "the same command goes on where it was"}
}

// resumable is an image that exists and waits for the rest of the same file; else exists is returned.
func resumable(ctx context.Context, c *client.Client, name, mark string, exists error) (*v1.Image, error) {
	old, err := c.Image.Get(ctx, &v1.GetRequest{Name: name})
	if err != nil {
		return nil, err
	}
	if old.GetStatus().GetPhase() != v1.ImagePhase_IMAGE_PHASE_WAITING {
		return nil, exists
	}
	if got := old.GetMeta().GetAnnotations()[uploadAnnotation]; got != mark {
		return nil, &failure{code: exitConflict, err: fmt.Errorf("image %q: waits for the rest of another file (%s)", name, got), hint: "delete it first, drover image rm " + name + ", or choose another --name"}
	}
	return old, nil
}

func uploadURL(c *client.Client, name string) string {
	return c.Base + "/upload/images/" + url.PathEscape(name)
}

func uploadOffset(ctx context.Context, c *client.Client, name string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, uploadURL(c, name), nil)
	if err != nil {
		return 0, err
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		return 0, unavailable(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return 0, httpError(res)
	}
	n, err := strconv.ParseInt(res.Header.Get("Upload-Offset"), 10, 64)
	if err != nil || n < 0 {
		return 0, errNoReply
	}
	return n, nil
}

func putUpload(ctx context.Context, c *client.Client, name string, offset, size int64, body io.Reader) (*v1.Image, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, uploadURL(c, name)+"?last=1&offset="+strconv.FormatInt(offset, 10), body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/octet-stream")
	if size == 0 {
		req.Body = http.NoBody
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		return nil, unavailable(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, httpError(res)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, unavailable(err)
	}
	img := &v1.Image{}
	return img, rpc.JSON{}.Unmarshal(b, img)
}

// unavailable is an error of a connection in the terms of the API.
func unavailable(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return connect.NewError(connect.CodeUnavailable, err)
}

// counted tells how far a reader is.
type counted struct {
	r      io.Reader
	n      int64
	report func(int64)
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	c.report(c.n)
	return n, err
}
