package auth

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

func TestPeerOverRealSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan Peer, 1)
	srv := &http.Server{
		ConnContext: ConnContext,
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			p, _ := PeerFromContext(r.Context())
			got <- p
		}),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	defer func() {
		srv.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	want := Peer{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	if p := <-got; p != want {
		t.Errorf("peer %+v, want %+v", p, want)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, ok := PeerFromContext(ConnContext(t.Context(), a)); ok {
		t.Error("a connection that is no Unix socket has a peer")
	}
}

func TestLocalPrincipal(t *testing.T) {
	const nobody, stranger = 65534, 3999999999
	for _, tt := range []struct {
		name  string
		local Local
		peer  Peer
		role  Role
	}{
		{"root", Local{OwnerUID: 7}, Peer{PID: 3}, RoleAdmin},
		{"owner", Local{OwnerUID: nobody}, Peer{UID: nobody, GID: nobody}, RoleAdmin},
		{"stranger", Local{}, Peer{UID: nobody, GID: nobody}, ""},
		{"uid without a name", Local{}, Peer{UID: stranger, GID: stranger}, ""},
		{"group does not exist", Local{AdminGroup: "no-such-group-here"}, Peer{UID: nobody, GID: nobody}, ""},
		{"by the process's group", Local{AdminGroup: "root"}, Peer{UID: stranger, GID: 0}, RoleAdmin},
		{"by the group database", Local{ViewerGroup: "nogroup"}, Peer{UID: nobody, GID: stranger}, RoleViewer},
	} {
		p, err := tt.local.Principal(tt.peer)
		if tt.role == "" {
			if !errors.Is(err, ErrUnauthenticated) {
				t.Errorf("%s: %v, %v; want ErrUnauthenticated", tt.name, p, err)
			}
			continue
		}
		if err != nil || len(p.Roles) != 1 || p.Roles[0].Role != tt.role || p.Kind != KindLocal {
			t.Errorf("%s: %+v, %v; want role %s", tt.name, p, err, tt.role)
		}
	}
}
