package blob

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
)

// partSize is the size of all parts of a large object but the last. S3 takes parts from 5 MiB.
const partSize = 8 << 20

// abortTimeout bounds the request that tells the server to drop the parts.
const abortTimeout = 10 * time.Second

// parts keeps the buffers of parts.
type parts struct {
	limit int

	mu   sync.Mutex
	free [][]byte
}

func (p *parts) get() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b
	}
	return nil
}

func (p *parts) put(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cap(b) >= partSize && len(p.free) < p.limit {
		p.free = append(p.free, b[:0])
	}
}

// putOptions are the condition and the lock of each object.
func (s *S3) putOptions() minio.PutObjectOptions {
	// A pack is read back in ranges by whoever made it; nothing is for browsers.
	o := minio.PutObjectOptions{ContentType: "application/octet-stream", DisableContentSha256: !s.o.Insecure}
	if s.o.LockFor > 0 {
		o.Mode, o.RetainUntilDate = s.mode(), s.o.Clock.Now().Add(s.o.LockFor).UTC()
	}
	return o
}

// sum is what the server checks the bytes with. MD5 is what every server knows, and what Object Lock demands; it guards against accidents alone.
func sum(p []byte) string {
	h := md5.Sum(p)
	return base64.StdEncoding.EncodeToString(h[:])
}

// Put implements [Store].
func (s *S3) Put(ctx context.Context, name string, data []byte) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	digest := sum(data)
	return s.o.Retry.put(ctx, func() error {
		o := s.putOptions()
		o.SetMatchETagExcept("*")
		_, err := s.core.PutObject(ctx, s.o.Bucket, s.key(name), bytes.NewReader(data), int64(len(data)), digest, "", o)
		return s.fail("write", name, err)
	}, func() (bool, error) { return holds(ctx, s, name, data) })
}

// Create implements [Store].
func (s *S3) Create(ctx context.Context, name string) (Writer, error) {
	if err := begin(ctx, name); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	return &s3Writer{s: s, ctx: ctx, cancel: cancel, name: name}, nil
}

// s3Writer collects parts and sends a few at a time. An object that fits in one is put at once.
type s3Writer struct {
	s      *S3
	ctx    context.Context // of the whole writing
	cancel context.CancelFunc
	name   string
	buf    []byte
	size   int64
	upload string // id of the multipart upload; empty: none yet
	done   bool
	wg     sync.WaitGroup // of parts on their way

	mu   sync.Mutex
	sent []sentPart
	err  error
}

type sentPart struct {
	etag string
	md5  string
	off  int64
	size int64
}

func (w *s3Writer) fault() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *s3Writer) usable() error {
	if w.done {
		return errEnded
	}
	if err := w.ctx.Err(); err != nil {
		return errors.Join(err, w.fault())
	}
	return w.fault()
}

// Write implements [Writer].
func (w *s3Writer) Write(p []byte) (int, error) {
	if err := w.usable(); err != nil {
		return 0, err
	}
	n := len(p)
	for len(p) > 0 {
		if w.buf == nil {
			w.buf = w.s.pool.get()
		}
		k := min(len(p), partSize-len(w.buf))
		if need := len(w.buf) + k; need > cap(w.buf) {
			w.buf = slices.Grow(w.buf, min(partSize, max(2*cap(w.buf), need))-len(w.buf))
		}
		w.buf = append(w.buf, p[:k]...)
		p = p[k:]
		w.size += int64(k)
		if len(w.buf) == partSize && len(p) > 0 {
			if err := w.send(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// send puts the buffer on its way. It waits while too many are.
func (w *s3Writer) send() error {
	if w.upload == "" {
		err := w.s.o.Retry.do(w.ctx, func() error {
			id, err := w.s.core.NewMultipartUpload(w.ctx, w.s.o.Bucket, w.s.key(w.name), w.s.putOptions())
			w.upload = id
			return w.s.fail("write", w.name, err)
		})
		if err != nil {
			return err
		}
	}
	select {
	case w.s.slots <- struct{}{}:
	case <-w.ctx.Done():
		return errors.Join(w.ctx.Err(), w.fault())
	}
	p := w.buf
	w.buf = nil
	w.mu.Lock()
	i := len(w.sent)
	w.sent = append(w.sent, sentPart{off: w.size - int64(len(p)), size: int64(len(p))})
	w.mu.Unlock()
	w.wg.Go(func() {
		defer func() { <-w.s.slots }()
		digest, etag := sum(p), ""
		err := w.s.o.Retry.do(w.ctx, func() error {
			part, err := w.s.core.PutObjectPart(w.ctx, w.s.o.Bucket, w.s.key(w.name), w.upload, i+1, bytes.NewReader(p), int64(len(p)),
				minio.PutObjectPartOptions{Md5Base64: digest, DisableContentSha256: !w.s.o.Insecure})
			etag = part.ETag
			return w.s.fail("write", w.name, err)
		})
		w.s.pool.put(p)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.sent[i].etag, w.sent[i].md5 = etag, digest
		if err != nil && w.err == nil {
			w.err = err
			w.cancel() // no use in sending the others
		}
	})
	return nil
}

// Commit implements [Writer].
func (w *s3Writer) Commit() error {
	if err := w.usable(); err != nil {
		return err
	}
	defer w.Abort()
	if w.upload == "" {
		return w.s.Put(w.ctx, w.name, w.buf)
	}
	// The first write past a part sends it, so what is left is never empty here.
	if err := w.send(); err != nil {
		return err
	}
	w.wg.Wait()
	if err := w.fault(); err != nil {
		return err
	}
	list := make([]minio.CompletePart, len(w.sent))
	for i, p := range w.sent {
		list[i] = minio.CompletePart{PartNumber: i + 1, ETag: p.etag}
	}
	tries := 0
	err := w.s.o.Retry.put(w.ctx, func() error {
		tries++
		var o minio.PutObjectOptions
		o.SetMatchETagExcept("*")
		_, err := w.s.core.CompleteMultipartUpload(w.ctx, w.s.o.Bucket, w.s.key(w.name), w.upload, list, o)
		var r minio.ErrorResponse
		if errors.As(err, &r) && r.Code == "NoSuchUpload" && tries > 1 {
			// An attempt before this one has ended the upload: the object tells how.
			err = fmt.Errorf("%w: %w", ErrExists, err)
		}
		return w.s.fail("write", w.name, err)
	}, func() (bool, error) { return w.same() })
	if err == nil {
		w.upload = "" // nothing to abort
	}
	return err
}

// same reports whether the object is what was sent, part by part.
func (w *s3Writer) same() (bool, error) {
	n, err := w.s.Size(w.ctx, w.name)
	if err != nil || n != w.size {
		return false, err
	}
	buf := make([]byte, partSize)
	for _, p := range w.sent {
		if err := w.s.ReadAt(w.ctx, w.name, buf[:p.size], p.off); err != nil {
			return false, err
		}
		if sum(buf[:p.size]) != p.md5 {
			return false, nil
		}
	}
	return true, nil
}

// Abort implements [Writer].
func (w *s3Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	w.cancel()
	w.wg.Wait()
	w.s.pool.put(w.buf)
	w.buf = nil
	if w.upload != "" {
		// What cannot be told to the server is left to its rule for unfinished uploads.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), abortTimeout)
		defer cancel()
		_ = w.s.core.AbortMultipartUpload(ctx, w.s.o.Bucket, w.s.key(w.name), w.upload)
	}
}
