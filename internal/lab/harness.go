package lab

import (
	"context"
	"crypto/rand"
	"os"
	"strings"
	"time"
)

// T is what New needs of a test.
type T interface {
	Helper()
	Cleanup(func())
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// upTimeout bounds the making and the removal of a test's lab.
const upTimeout = 60 * time.Second

// New brings up a lab for a test and takes it down with it: also when the test's
// process is killed, then by the lab's daemon, or, if that was killed too, by the
// next New. An empty name gets a random one. The test's TestMain must call
// MaybeDaemon first, unless c.Daemon is set.
func New(t T, c Config) *Lab {
	t.Helper()
	if os.Getenv(readyEnv) != "" {
		t.Fatalf("this process was started as a lab's daemon: call lab.MaybeDaemon in TestMain")
	}
	if c.Name == "" {
		c.Name = "t" + strings.ToLower(rand.Text()[:9])
	}
	c.Owner = os.Getpid()
	ctx, cancel := context.WithTimeout(context.Background(), upTimeout)
	defer cancel()
	gone, err := Sweep(ctx, c.Root)
	if err != nil {
		t.Logf("sweep of labs left over: %v", err)
	}
	if len(gone) > 0 {
		t.Logf("took down labs left over: %v", gone)
	}
	l, err := Up(ctx, c)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), upTimeout)
		defer cancel()
		if err := l.Down(ctx); err != nil {
			t.Fatalf("lab: %v", err)
		}
	})
	return l
}
