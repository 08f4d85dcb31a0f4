package host

import (
	"errors"
	"fmt"
	"testing"

	"drover/internal/vswitch"
)

// What goes wrong with one port is that port's alone, and hides nothing that goes wrong with all.
func TestErrorsAreSorted(t *testing.T) {
	one, two := &vswitch.PortError{Ifindex: 1, Err: errors.New("full")}, &vswitch.PortError{Ifindex: 2, Err: errors.New("full")}
	other := errors.New("no memory")
	for what, x := range map[string]struct {
		err   error
		ports int
		rest  bool
	}{
		"nothing":          {nil, 0, false},
		"a port":           {one, 1, false},
		"two ports":        {errors.Join(errors.Join(one, two), nil), 2, false},
		"a port and all":   {errors.Join(one, other), 1, true},
		"all":              {other, 0, true},
		"all, in a phrase": {fmt.Errorf("load: %w", errors.Join(one, other)), 0, true},
	} {
		ports, rest := sortErrors(x.err)
		if len(ports) != x.ports || (rest != nil) != x.rest {
			t.Errorf("%s: %d ports, rest %v; want %d, %v", what, len(ports), rest, x.ports, x.rest)
		}
		if x.rest && !errors.Is(rest, other) {
			t.Errorf("%s: %v is lost", what, other)
		}
	}
}
