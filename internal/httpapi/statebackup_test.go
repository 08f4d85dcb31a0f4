package httpapi

import (
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/rpc"
)

// A manager whose state was restored knows its repositories and has no key to them: they say LOCKED, and attaching one by its passphrase brings its points back.
func TestRepositoryInRestoredState(t *testing.T) {
	r := start(t)
	r.join(t, "h1")
	r.repository(t, "main")
	r.vm(t, "a")
	r.await(t, "a", "off", isPhase(v1.VMPhase_VM_PHASE_OFF))
	p := r.backUp(t, "a", "main")
	s, err := droverv1connect.NewManagerServiceClient(rpc.UnixClient(r.socket), base, rpc.ClientOptions()...).Backup(t.Context(), &v1.BackupStateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var state []byte
	for s.Receive() {
		state = append(state, s.Msg().GetData()...)
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r = startIn(t, restoreInto(t, state), r.address)
	main := r.awaitRepository(t, "main", v1.RepositoryPhase_REPOSITORY_PHASE_LOCKED)
	if _, err := r.repositories().Create(t.Context(), &v1.CreateRepositoryRequest{
		Repository: &v1.Repository{Meta: &v1.Meta{Name: "main"}, Spec: &v1.RepositorySpec{Location: main.Spec.Location}}, Passphrase: "a long passphrase", Attach: true,
	}); err != nil {
		t.Fatal(err)
	}
	r.awaitRepository(t, "main", v1.RepositoryPhase_REPOSITORY_PHASE_READY)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		l, err := r.backups().List(t.Context(), &v1.ListRequest{})
		if err == nil && len(l.Points) == 1 && l.Points[0].Meta.Name == p.Meta.Name {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("points after the state was restored: %v, %v", l, err)
		}
	}
}
