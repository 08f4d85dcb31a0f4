package blob

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"drover/internal/clock"
)

// S3Options says where a bucket is and how to come in.
type S3Options struct {
	// Endpoint is HOST:PORT; empty: AWS.
	Endpoint string
	// Region is found out if empty.
	Region string
	Bucket string
	// Prefix is put before the names of objects, with a slash.
	Prefix string
	// AccessKey and SecretKey; if empty, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the environment.
	AccessKey, SecretKey string
	// Insecure is plain HTTP.
	Insecure bool
	// CA is the certificates, in PEM, that the server's is checked with; empty: the system's.
	CA string
	// HostStyle puts the bucket in the host's name with an Endpoint too; without it that is so with AWS alone.
	HostStyle bool
	// LockFor locks each object for this time when it is put (Object Lock). The bucket must have been made with it. 0: not locked.
	LockFor time.Duration
	// Governance locks so that those with a special right may still delete; otherwise nobody can (compliance mode).
	Governance bool
	// Uploads is how many parts of large objects are on their way at a time, in the whole store; 4 if 0.
	Uploads int
	Retry   RetryOptions
	Clock   clock.Clock // the machine's if nil
}

// S3 keeps objects in a bucket. It is a [Store] and a [Locker].
type S3 struct {
	o      S3Options
	core   *minio.Core
	prefix string // "" or ends with a slash
	slots  chan struct{}
	pool   *parts
	http   *http.Transport
}

// awsEndpoint is where AWS is asked; the library goes on to the region's own.
const awsEndpoint = "s3.amazonaws.com"

// OpenS3 makes a store of a bucket that is there. It asks the server nothing yet.
func OpenS3(o S3Options) (*S3, error) {
	if o.Bucket == "" {
		return nil, errors.New("S3: no bucket is given")
	}
	prefix := strings.Trim(o.Prefix, "/")
	if prefix != "" {
		if !ValidName(prefix) {
			return nil, fmt.Errorf("S3: prefix %q: want a path of a-z, 0-9, dot, underscore and hyphen", o.Prefix)
		}
		prefix += "/"
	}
	o.Prefix = strings.TrimSuffix(prefix, "/")
	if o.Uploads == 0 {
		o.Uploads = 4
	}
	if o.Clock == nil {
		o.Clock = clock.Real()
	}
	if o.Retry.Clock == nil {
		o.Retry.Clock = o.Clock
	}
	o.Retry = o.Retry.withDefaults()
	transport, err := minio.DefaultTransport(!o.Insecure)
	if err != nil {
		return nil, fmt.Errorf("S3: %w", err)
	}
	transport.MaxIdleConnsPerHost = 64
	if o.CA != "" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(o.CA)) {
			return nil, errors.New("S3: the CA holds no certificate in PEM")
		}
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	}
	creds := credentials.NewEnvAWS()
	if o.AccessKey != "" {
		creds = credentials.NewStaticV4(o.AccessKey, o.SecretKey, "")
	}
	endpoint, lookup := o.Endpoint, minio.BucketLookupPath
	if endpoint == "" {
		endpoint = awsEndpoint
	}
	if o.Endpoint == "" || o.HostStyle {
		lookup = minio.BucketLookupDNS
	}
	core, err := minio.NewCore(endpoint, &minio.Options{
		Creds: creds, Secure: !o.Insecure, Region: o.Region, BucketLookup: lookup, Transport: transport,
		MaxRetries: 1, // the library would repeat a conditional put and take its own object for another's
	})
	if err != nil {
		return nil, fmt.Errorf("S3 at %s: %w", endpoint, err)
	}
	return &S3{o: o, core: core, prefix: prefix, slots: make(chan struct{}, o.Uploads), pool: &parts{limit: o.Uploads}, http: transport}, nil
}

func (s *S3) String() string {
	host := ""
	if s.o.Endpoint != "" {
		host = " at " + s.o.Endpoint
	}
	return "s3://" + path.Join(s.o.Bucket, s.o.Prefix) + host
}

// Close closes idle connections.
func (s *S3) Close() error {
	s.http.CloseIdleConnections()
	return nil
}

func (s *S3) key(name string) string { return s.prefix + name }

// ReadAt implements [Store].
func (s *S3) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	if len(p) == 0 {
		n, err := s.Size(ctx, name)
		if err == nil && off > n {
			err = s.short(name)
		}
		return err
	}
	var o minio.GetObjectOptions
	if err := o.SetRange(off, off+int64(len(p))-1); err != nil {
		return s.fail("read", name, permanent{err})
	}
	body, info, header, err := s.core.GetObject(ctx, s.o.Bucket, s.key(name), o)
	if err != nil {
		return s.fail("read", name, err)
	}
	defer body.Close()
	if want := fmt.Sprintf("bytes %d-", off); !strings.HasPrefix(header.Get("Content-Range"), want) {
		return s.fail("read", name, permanent{fmt.Errorf("the server answered a request for a range from %d with Content-Range %q", off, header.Get("Content-Range"))})
	}
	if info.Size >= 0 && info.Size < int64(len(p)) {
		return s.short(name)
	}
	_, err = io.ReadFull(body, p)
	return s.fail("read", name, err)
}

// short is the error of an object that is shorter than what is asked for. Whatever else ends early is the connection: see fail.
func (s *S3) short(name string) error {
	return fmt.Errorf("read %s of %s: %w", name, s, io.ErrUnexpectedEOF)
}

// Get implements [Store].
func (s *S3) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := begin(ctx, name); err != nil {
		return nil, err
	}
	body, info, _, err := s.core.GetObject(ctx, s.o.Bucket, s.key(name), minio.GetObjectOptions{})
	if err != nil {
		return nil, s.fail("read", name, err)
	}
	defer body.Close()
	if info.Size > limit {
		return nil, tooLong(name, info.Size, limit)
	}
	if info.Size < 0 {
		return nil, s.fail("read", name, errors.New("the server does not say how long it is"))
	}
	p := make([]byte, info.Size)
	if _, err := io.ReadFull(body, p); err != nil {
		return nil, s.fail("read", name, err)
	}
	return p, nil
}

// Size implements [Store].
func (s *S3) Size(ctx context.Context, name string) (int64, error) {
	if err := begin(ctx, name); err != nil {
		return 0, err
	}
	info, err := s.core.StatObject(ctx, s.o.Bucket, s.key(name), minio.StatObjectOptions{})
	return info.Size, s.fail("look at", name, err)
}

// List implements [Store].
func (s *S3) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := ctx.Err(); err != nil {
			yield(Info{}, err)
			return
		}
		o := minio.ListObjectsOptions{Prefix: s.key(prefix), Recursive: true, FetchOwner: new(bool)}
		if after != "" {
			o.StartAfter = s.key(after)
		}
		for i := range s.core.ListObjectsIter(ctx, s.o.Bucket, o) {
			if i.Err != nil {
				yield(Info{}, s.fail("list", prefix, i.Err))
				return
			}
			name, ok := strings.CutPrefix(i.Key, s.prefix)
			// Keys that end with a slash are how some tools draw directories.
			if !ok || !ValidName(name) || name <= after || !strings.HasPrefix(name, prefix) {
				continue
			}
			if !yield(Info{Name: name, Size: i.Size}, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(Info{}, err)
		}
	}
}

// Delete implements [Store]. Where objects are locked the bucket keeps versions: then the versions go, and none of them while its lock lasts.
func (s *S3) Delete(ctx context.Context, name string) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	if s.o.LockFor == 0 {
		err := s.fail("delete", name, s.core.RemoveObject(ctx, s.o.Bucket, s.key(name), minio.RemoveObjectOptions{}))
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	}
	o := minio.ListObjectsOptions{Prefix: s.key(name), Recursive: true, WithVersions: true}
	for i := range s.core.ListObjectsIter(ctx, s.o.Bucket, o) {
		if i.Err != nil {
			return s.fail("delete", name, i.Err)
		}
		if i.Key != s.key(name) {
			continue
		}
		err := s.core.RemoveObject(ctx, s.o.Bucket, i.Key, minio.RemoveObjectOptions{VersionID: i.VersionID})
		if err := s.fail("delete", name, err); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return ctx.Err()
}

// Lock implements [Locker].
func (s *S3) Lock() time.Duration { return s.o.LockFor }

func (s *S3) mode() minio.RetentionMode {
	if s.o.Governance {
		return minio.Governance
	}
	return minio.Compliance
}

// Extend implements [Locker].
func (s *S3) Extend(ctx context.Context, name string, until time.Time) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	// A lock is never shortened, not even on a server that would do it.
	info, err := s.core.StatObject(ctx, s.o.Bucket, s.key(name), minio.StatObjectOptions{})
	if err != nil {
		return s.fail("lock", name, err)
	}
	if now, err := time.Parse(time.RFC3339, info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date")); err == nil && !now.Before(until) {
		return nil
	}
	mode := s.mode()
	until = until.UTC()
	err = s.core.PutObjectRetention(ctx, s.o.Bucket, s.key(name), minio.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &until})
	return s.fail("lock", name, err)
}

// Space implements [Store]: nobody knows.
func (s *S3) Space(context.Context) (total, free int64, ok bool, err error) { return 0, 0, false, nil }

// again has the codes of status 400 and 409 that go away: another conditional put is on its way, or bytes were spoilt or lost on theirs.
var again = map[string]bool{"ConditionalRequestConflict": true, "OperationAborted": true, "BadDigest": true, "IncompleteBody": true, "RequestTimeout": true,
	"XAmzContentSHA256Mismatch": true, "RequestTimeTooSkewed": true, "InternalError": true, "SlowDown": true}

func (s *S3) fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = fmt.Errorf("the connection ended in the middle (%v)", err)
	}
	err = fmt.Errorf("%s %s of %s: %w", op, name, s, err)
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		return permanent{err}
	}
	var r minio.ErrorResponse
	if !errors.As(err, &r) {
		return err
	}
	kind := func(e error) error { return fmt.Errorf("%w: %w", e, err) }
	switch r.Code {
	case "NoSuchBucket", "InvalidBucketName":
		return permanent{fmt.Errorf("%w; make the bucket first", err)}
	case "NoSuchKey", "NoSuchVersion":
		return kind(ErrNotFound)
	case "PreconditionFailed":
		return kind(ErrExists)
	case "InvalidRange":
		return kind(io.ErrUnexpectedEOF)
	case "QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "XMinioAdminBucketQuotaExceeded":
		return kind(ErrFull)
	case "AccessDenied", "MethodNotAllowed", "ObjectLocked", "InvalidObjectState", "AllAccessDisabled":
		return kind(ErrReadOnly)
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchUpload", "NotImplemented":
		return permanent{err}
	}
	switch c := r.StatusCode; {
	case r.Code == "InvalidRequest" && strings.Contains(r.Message, "WORM"): // how MinIO says that an object is locked
		return kind(ErrReadOnly)
	case c == http.StatusNotFound:
		return kind(ErrNotFound)
	case c == http.StatusPreconditionFailed:
		return kind(ErrExists)
	case c == http.StatusRequestedRangeNotSatisfiable:
		return kind(io.ErrUnexpectedEOF)
	case c == http.StatusInsufficientStorage:
		return kind(ErrFull)
	case c == http.StatusForbidden, c == http.StatusMethodNotAllowed:
		return kind(ErrReadOnly)
	case c >= 400 && c < 500 && !again[r.Code] && c != http.StatusRequestTimeout && c != http.StatusTooManyRequests:
		return permanent{err} // a request that the server does not like is not liked the next time
	}
	return err
}
