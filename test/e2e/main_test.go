package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"

	"drover/internal/lab"
)

// drover is the program under test, built from this tree.
var drover []string

func TestMain(m *testing.M) {
	lab.MaybeDaemon()
	argv, remove, err := lab.BuildDrover(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	drover = argv
	code := m.Run()
	remove()
	os.Exit(code)
}
