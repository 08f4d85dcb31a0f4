package blob

import (
	"errors"
	"testing"
)

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	for location, want := range map[string]string{dir: dir, dir + "/x/../y": dir + "/y"} {
		st, err := Open(location, S3Options{})
		if err != nil || st.String() != want {
			t.Errorf("Open(%q) = %v, %v; want %s", location, st, err, want)
		}
	}
	st, err := Open("s3://bucket/a/b/", S3Options{Endpoint: "127.0.0.1:1", AccessKey: "a", SecretKey: "b", Region: "r"})
	if s, ok := As[*S3](st); err != nil || !ok || s.o.Bucket != "bucket" || s.o.Prefix != "a/b" {
		t.Errorf("Open of a bucket: %v, %v", st, err)
	}
	for _, bad := range []string{"", "backup", "./backup", "s3://", "s3:///x", "http://x"} {
		if _, err := Open(bad, S3Options{}); !errors.Is(err, ErrLocation) {
			t.Errorf("Open(%q): %v; want ErrLocation", bad, err)
		}
	}
}
