package lab

import (
	"context"
	"testing"
	"time"
)

// TestSetUplink pulls one of two cables and puts it back: the host sees that uplink's carrier go and come, and no other's.
func TestSetUplink(t *testing.T) {
	l := New(t, Config{Root: testRoot(t), Sites: []Site{{Name: "solo", Hosts: []Host{{Name: "a"}, {Name: "b"}}}}})
	n, err := l.Net("b")
	must(t, err)
	defer n.Close()
	carrier := func(link string, want bool) {
		t.Helper()
		deadline := time.Now().Add(5 * time.Second)
		for {
			got, err := n.Link(link)
			must(t, err)
			if got.Carrier == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("carrier of %s is %v, want %v", link, got.Carrier, want)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	carrier("up0", true)
	carrier("up1", true)
	must(t, l.SetUplink("b", "up1", false))
	carrier("up1", false)
	carrier("up0", true)
	must(t, l.SetUplink("b", "up1", true))
	carrier("up1", true)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	must(t, n.WaitUp(ctx, "up0", "up1"))
	for _, bad := range [][2]string{{"b", "up2"}, {"b", "mgmt0"}, {"solo-sw", "up0"}, {"nobody", "up0"}} {
		if err := l.SetUplink(bad[0], bad[1], false); err == nil {
			t.Errorf("an uplink %s of %s was cut", bad[1], bad[0])
		}
	}
}
