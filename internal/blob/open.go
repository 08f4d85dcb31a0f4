package blob

import (
	"cmp"
	"errors"

	"drover/internal/vfs"
)

// ErrLocation: a location is neither an absolute path nor s3://BUCKET or s3://BUCKET/PREFIX.
var ErrLocation = errors.New("not a location (an absolute path of a directory, or s3://BUCKET/PREFIX)")

// Open opens the store at a location, as [Parse] reads it. What the location says of S3 goes before what o says, which has the keys;
// for a directory o means nothing. The caller closes the store with [Close].
func Open(location string, o S3Options) (Store, error) {
	l, err := Parse(location)
	if err != nil {
		return nil, err
	}
	if l.Dir != "" {
		return OpenDir(vfs.OS{}, l.Dir)
	}
	o.Bucket, o.Prefix = l.S3.Bucket, l.S3.Prefix
	o.Endpoint, o.Region = cmp.Or(l.S3.Endpoint, o.Endpoint), cmp.Or(l.S3.Region, o.Region)
	o.Insecure, o.HostStyle, o.Governance = o.Insecure || l.S3.Insecure, o.HostStyle || l.S3.HostStyle, o.Governance || l.S3.Governance
	o.LockFor = cmp.Or(l.S3.LockFor, o.LockFor)
	st, err := OpenS3(o)
	if err != nil {
		return nil, err
	}
	return NewRetry(st, st.o.Retry), nil
}
