package host

import (
	"testing"

	"golang.org/x/sys/unix"
)

// No more memory is offered than the file system for guests' memory holds.
func TestMemoryIsWhatGuestsCanHave(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("drover-test", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if got := readFacts(dir).memory; got != 64<<20 {
		t.Errorf("with 64 MiB for guests: %d bytes are offered", got)
	}
	total, _ := memory()
	if got := readFacts("/proc/self/no/such").memory; got != total {
		t.Errorf("where nothing is known: %d bytes are offered of %d", got, total)
	}
}
