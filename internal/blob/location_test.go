package blob_test

import (
	"strings"
	"testing"
	"time"

	"drover/internal/blob"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]blob.Location{
		"/srv/backup/":      {Dir: "/srv/backup"},
		"file:///srv/a b":   {Dir: "/srv/a b"},
		"s3://bucket":       {S3: blob.S3Options{Bucket: "bucket"}},
		"s3://bucket/a/b/":  {S3: blob.S3Options{Bucket: "bucket", Prefix: "a/b"}},
		"s3://b/p?region=r": {S3: blob.S3Options{Bucket: "b", Prefix: "p", Region: "r"}},
		"s3://b/?endpoint=h:9000&insecure=true&host-style=1&lock=720h&governance": {S3: blob.S3Options{Bucket: "b", Endpoint: "h:9000", Insecure: true, HostStyle: true,
			LockFor: 720 * time.Hour, Governance: true}},
	} {
		got, err := blob.Parse(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got.Dir != want.Dir || got.S3.Bucket != want.S3.Bucket || got.String() != want.String() {
			t.Errorf("%s: %+v, want %+v", in, got, want)
		}
		again, err := blob.Parse(got.String())
		if err != nil || again.String() != got.String() {
			t.Errorf("%s comes back as %s, %v", got, again, err)
		}
	}
	for _, in := range []string{"", "relative", "./x", "s3://", "s3:///p", "s3://key:secret@bucket/p", "ftp://x/y", "s3://b/UPPER", "s3://b/../x", "s3://b?what=1", "s3://b?lock=soon",
		"s3://b?insecure=maybe", "file://host/x", "s3://b/a%00", "s3://b?%zz", "\x7f://"} {
		if l, err := blob.Parse(in); err == nil {
			t.Errorf("%q was taken: %+v", in, l)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"/a", "s3://b/p?endpoint=h&lock=1h", "file:///x", "s3://k:s@b", "%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := blob.Parse(s)
		if err != nil {
			return
		}
		if again, err := blob.Parse(l.String()); err != nil || again.String() != l.String() {
			t.Fatalf("%q: %s comes back as %s, %v", s, l, again, err)
		}
	})
}
