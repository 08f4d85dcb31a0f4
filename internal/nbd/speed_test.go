package nbd

import (
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// pull reads all of an export, a MiB at a time, with several at once.
func pull(b *testing.B, c *Client) {
	var at atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			p := make([]byte, 1<<20)
			for {
				off := at.Add(1<<20) - 1<<20
				if off >= c.Size() {
					return
				}
				if err := c.ReadAt(b.Context(), p, off); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkRead compares our client with nbdcopy on one and the same export of nbdkit's, and our server with nbdkit.
func BenchmarkRead(b *testing.B) {
	const size = 2 << 30
	need(b, "nbdkit")
	need(b, "nbdcopy")
	kit := filepath.Join(b.TempDir(), "kit")
	start(b, "nbdkit", "-f", "-U", kit, "pattern", "2G")
	listening(b, kit)
	l, own := unixListener(b)
	r := &ram{b: make([]byte, 256<<20)}
	for i := range r.b {
		r.b[i] = byte(i>>12) | 1
	}
	serve(b, l, ServerOptions{}, map[string]Export{"": ReadOnly(wide{r, size})})
	for _, x := range []struct{ server, path string }{{"nbdkit", kit}, {"ours", own}} {
		for _, conns := range []int{1, 2, 4} {
			b.Run("from="+x.server+"/by=ours/connections="+string(rune('0'+conns)), func(b *testing.B) {
				c := dialTest(b, x.path, Options{Connections: conns})
				b.SetBytes(size)
				for b.Loop() {
					pull(b, c)
				}
			})
		}
		b.Run("from="+x.server+"/by=nbdcopy", func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				if out, err := exec.Command("nbdcopy", "nbd+unix:///?socket="+x.path, "null:").CombinedOutput(); err != nil {
					b.Fatalf("%v %s", err, out)
				}
			}
		})
	}
}
