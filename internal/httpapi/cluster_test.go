package httpapi

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/store/storetest"
)

func TestMain(m *testing.M) {
	storetest.MaybeMember()
	os.Exit(m.Run())
}

// On an etcd cluster of the user's own, VMs are created and deleted on while a member is killed and comes back; what was
// acknowledged is there, in a manager that starts anew, too.
func TestExternalClusterLosesAMember(t *testing.T) {
	const vms = 24
	members := storetest.StartCluster(t, 3)
	dir, address := t.TempDir(), freeAddress(t)
	r := startAt(t, dir, address, filepath.Join(dir, "m.sock"), members[0].URL, members[1].URL, members[2].URL)
	h := r.join(t, "h1")
	var wg, beats sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	// The host is heard meanwhile, as a real one: an election may take longer than a host may be silent.
	beats.Go(func() {
		for ctx.Err() == nil {
			_, _ = h.api.Report(ctx, &v1.ReportRequest{}) // the manager may have no state to answer from
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
	half := make(chan struct{})
	made := make([]string, 0, vms)
	wg.Go(func() {
		for i := range vms {
			if i == vms/3 {
				close(half)
			}
			name := fmt.Sprintf("vm%d", i)
			_, err := r.vms().Create(t.Context(), &v1.CreateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: name}, Spec: &v1.VMSpec{MemoryBytes: 16 << 20}}})
			if err != nil {
				t.Logf("create %s: %v", name, err) // not acknowledged: it may be there or not
				continue
			}
			made = append(made, name)
		}
	})
	<-half
	members[0].Kill(t)
	wg.Wait()
	stop()
	beats.Wait()
	members[0].Start(t)
	members[0].Ready(t)
	// One call may meet the dead member and end in an error; that all of them do would be an outage.
	if len(made) < vms-4 {
		t.Errorf("only %d of %d VMs could be created with one of three members dead", len(made), vms)
	}
	check := func(r *rig) {
		t.Helper()
		for _, name := range made {
			if _, err := r.vms().Get(t.Context(), &v1.GetRequest{Name: name}); err != nil {
				t.Errorf("acknowledged, and gone: %v", err)
			}
		}
	}
	check(r)
	r.stop()
	members[1].Kill(t)
	check(startAt(t, dir, address, filepath.Join(dir, "m.sock"), members[0].URL, members[1].URL, members[2].URL))
}
