package blob

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// Location is where a repository is, without secrets: a directory, or a bucket and a prefix in it.
type Location struct {
	// Dir is an absolute path; empty: S3.
	Dir string
	// S3 has Bucket and Prefix, and of the rest what the location said.
	S3 S3Options
}

// Parse reads a location: an absolute path, file:///PATH, or s3://BUCKET/PREFIX with, if need be,
// ?endpoint=HOST:PORT&region=R&insecure=true&host-style=true&lock=720h&governance=true. A location never holds keys.
func Parse(s string) (Location, error) {
	bad := func(format string, a ...any) (Location, error) {
		return Location{}, fmt.Errorf("%q is %w: %w", redact(s), ErrLocation, fmt.Errorf(format, a...))
	}
	if filepath.IsAbs(s) && !strings.Contains(s, "\x00") {
		return Location{Dir: filepath.Clean(s)}, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return Location{}, ErrLocation
	}
	if u.User != nil {
		return bad("keys do not belong here; give them apart")
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return bad("want file:///PATH")
		}
		return Location{Dir: filepath.Clean(u.Path)}, nil
	case "s3":
	default:
		return bad("want an absolute path, or s3://BUCKET/PREFIX")
	}
	l := Location{S3: S3Options{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}}
	if u.Host == "" {
		return bad("no bucket; want s3://BUCKET/PREFIX")
	}
	if l.S3.Prefix != "" && !ValidName(l.S3.Prefix) {
		return bad("a prefix is a path of a-z, 0-9, dot, underscore and hyphen")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("what follows the question mark can't be read")
	}
	for key, values := range query {
		v := values[len(values)-1]
		flag := func(to *bool) error {
			switch v {
			case "true", "1", "":
				*to = true
			case "false", "0":
			default:
				return fmt.Errorf("%s: want true or false", key)
			}
			return nil
		}
		var err error
		switch key {
		case "endpoint":
			l.S3.Endpoint = v
		case "region":
			l.S3.Region = v
		case "insecure":
			err = flag(&l.S3.Insecure)
		case "host-style":
			err = flag(&l.S3.HostStyle)
		case "governance":
			err = flag(&l.S3.Governance)
		case "lock":
			l.S3.LockFor, err = time.ParseDuration(v)
			if err != nil || l.S3.LockFor < 0 {
				err = errors.New("lock: want a duration like 720h")
			}
		default:
			err = fmt.Errorf("%s is not known; there are endpoint, region, insecure, host-style, lock and governance", key)
		}
		if err != nil {
			return bad("%w", err)
		}
	}
	return l, nil
}

// redact keeps keys that somebody wrote into a URL out of messages.
func redact(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "…"
	}
	if u.User != nil {
		u.User = url.User("…")
	}
	return u.Redacted()
}

// String is the location as Parse reads it.
func (l Location) String() string {
	if l.Dir != "" {
		return l.Dir
	}
	u := url.URL{Scheme: "s3", Host: l.S3.Bucket, Path: "/" + l.S3.Prefix}
	q := url.Values{}
	set := func(key, v string) {
		if v != "" {
			q.Set(key, v)
		}
	}
	flag := func(key string, v bool) {
		if v {
			q.Set(key, "true")
		}
	}
	set("endpoint", l.S3.Endpoint)
	set("region", l.S3.Region)
	flag("insecure", l.S3.Insecure)
	flag("host-style", l.S3.HostStyle)
	flag("governance", l.S3.Governance)
	if l.S3.LockFor > 0 {
		set("lock", l.S3.LockFor.String())
	}
	u.RawQuery = q.Encode()
	return u.String()
}
