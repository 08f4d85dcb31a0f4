package blob_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"drover/internal/blob"
	"drover/internal/blob/blobtest"
)

func openS3(t *testing.T, o blob.S3Options) *blob.S3 {
	t.Helper()
	s, err := blob.OpenS3(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestS3Conforms(t *testing.T) {
	server := blobtest.StartServer(t)
	var n atomic.Int64
	for _, prefix := range []string{"", "backups/one"} {
		t.Run("prefix="+prefix, func(t *testing.T) {
			blobtest.Run(t, blobtest.Options{Open: func(t *testing.T) (blob.Store, func() blob.Store) {
				o := server.Bucket(t, fmt.Sprintf("bucket-%d", n.Add(1)), false)
				o.Prefix = prefix
				return openS3(t, o), func() blob.Store { return openS3(t, o) }
			}})
		})
	}
}
