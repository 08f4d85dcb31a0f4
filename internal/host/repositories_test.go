package host_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/host"
	"drover/internal/pki"
	"drover/internal/rpc"
)

// TestRepositoriesOnly: a host without VMs has neither QEMU nor datastores nor a switch; it serves repositories, and again after a restart.
func TestRepositoriesOnly(t *testing.T) {
	dir := t.TempDir()
	m := newManager(t, dir)
	run := func() (stop func() error) {
		cfg := agentConfig(dir, m.token.Text(), t.Output())
		cfg.RepositoriesOnly, cfg.QEMU, cfg.ShmDir = true, "/no/such/qemu", filepath.Join(dir, "shm")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		m.mu.Lock()
		m.hostSt = nil
		m.mu.Unlock()
		go func() { done <- host.Run(ctx, cfg) }()
		m.until("heartbeat of the agent", 20*time.Second, m.eventText, func() bool { return m.hostSt != nil })
		return func() error { cancel(); return <-done }
	}
	vaultAt := func() droverv1connect.VaultServiceClient {
		conf, err := pki.ClientConfig(pki.ClientOptions{Credential: m.cred, Trust: m.ca.Trust(), Peer: pki.Identity{Role: pki.RoleHost, Name: m.host, UID: m.uid}})
		if err != nil {
			t.Fatal(err)
		}
		c := rpc.TLSClient(conf)
		t.Cleanup(c.CloseIdleConnections)
		return droverv1connect.NewVaultServiceClient(c, "https://"+m.hostAddress(), rpc.ClientOptions()...)
	}

	stop := run()
	m.mu.Lock()
	st := m.hostSt
	m.mu.Unlock()
	if !st.GetRepositoriesOnly() || st.GetAccelerator() != nil || st.GetCpus() == 0 || len(st.GetNetworks()) > 0 {
		t.Errorf("it says of itself: %v", st)
	}
	if _, err := m.node(st.GetAddress()).Reset(t.Context(), &v1.NodeVMRequest{}); connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Errorf("a host without VMs takes orders about VMs: %v", err)
	}
	location := filepath.Join(dir, "repo")
	spec := &v1.RepositorySpec{Location: location}
	if _, err := vaultAt().Open(t.Context(), &v1.VaultOpenRequest{Repository: "east", Spec: spec, Create: true}); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, made := range []string{"shm", "state/datastore", "state/switch"} {
		if _, err := os.Stat(filepath.Join(dir, made)); err == nil {
			t.Errorf("it made %s", made)
		}
	}

	stop = run()
	deadline := time.Now().Add(10 * time.Second)
	for v := vaultAt(); ; {
		res, err := v.Status(t.Context(), &v1.VaultStatusRequest{Repository: "east"})
		if err == nil && res.GetStatus().GetPhase() == v1.RepositoryPhase_REPOSITORY_PHASE_READY {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not open after a restart: %v %v", res, err)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	// The state of a host with VMs is left alone.
	if err := os.MkdirAll(filepath.Join(dir, "state", "vms", m.uid), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := agentConfig(dir, "", t.Output())
	cfg.RepositoriesOnly = true
	if err := host.Run(t.Context(), cfg); !errors.Is(err, host.ErrConfig) || !strings.Contains(err.Error(), "holds VMs (1)") {
		t.Errorf("with a VM in its state: %v", err)
	}
}
