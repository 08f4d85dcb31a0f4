package blob

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"drover/internal/vfs"
)

// ErrLocation: a location is neither an absolute path nor s3://BUCKET or s3://BUCKET/PREFIX.
var ErrLocation = errors.New("not a location: give an absolute path of a directory, or s3://BUCKET/PREFIX")

// Open opens the store at a location. Bucket and prefix of o are taken from it; for a directory o means nothing.
func Open(location string, o S3Options) (Store, error) {
	rest, s3 := strings.CutPrefix(location, "s3://")
	if !s3 {
		if !filepath.IsAbs(location) {
			return nil, fmt.Errorf("%q is %w", location, ErrLocation)
		}
		return OpenDir(vfs.OS{}, filepath.Clean(location))
	}
	if o.Bucket, o.Prefix, _ = strings.Cut(rest, "/"); o.Bucket == "" {
		return nil, fmt.Errorf("%q is %w", location, ErrLocation)
	}
	return OpenS3(o)
}
