package auth

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Peer is the process at the other end of a Unix socket, as the kernel saw it
// when it connected.
type Peer struct {
	PID int32
	UID uint32
	GID uint32
}

// PeerOf asks the kernel (SO_PEERCRED, unix(7)) who connected.
func PeerOf(conn *net.UnixConn) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(cerr, err); err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	return Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}, nil
}

type peerKey struct{}

// ConnContext fits http.Server.ConnContext: requests over a Unix socket carry
// their peer, others nothing.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	peer, err := PeerOf(conn)
	if err != nil {
		// Without a peer the request is nobody's, and is refused as such.
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

// PeerFromContext returns the peer that ConnContext put there.
func PeerFromContext(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// Local says which users of this machine may use the socket.
type Local struct {
	// OwnerUID is the manager's own user, an administrator, as root is.
	OwnerUID uint32
	// AdminGroup, if not empty, is the group whose members are administrators.
	AdminGroup string
	// ViewerGroup, if not empty, is the group whose members may look.
	ViewerGroup string
}

// Principal returns the caller behind a peer, or [ErrUnauthenticated].
func (l Local) Principal(peer Peer) (Principal, error) {
	p := Principal{
		Kind: KindLocal, Name: strconv.FormatUint(uint64(peer.UID), 10),
		Scopes: []Scope{ScopeAdmin}, Source: fmt.Sprintf("unix:pid=%d", peer.PID),
	}
	u, err := user.LookupId(p.Name)
	if err == nil {
		p.Name = u.Username
	}
	role := RoleAdmin
	switch {
	case peer.UID == 0 || peer.UID == l.OwnerUID:
	case member(u, peer, l.AdminGroup):
	case member(u, peer, l.ViewerGroup):
		role = RoleViewer
	default:
		return Principal{}, fmt.Errorf("user %s of this machine: use sudo, or join the group %q: %w", p.Name, l.AdminGroup, ErrUnauthenticated)
	}
	p.Roles = []Grant{{Role: role}}
	return p, nil
}

// member reports whether a peer is in a group, by its process's group or by
// the group database. A group that does not exist has no members.
func member(u *user.User, peer Peer, name string) bool {
	if name == "" {
		return false
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return false
	}
	if strconv.FormatUint(uint64(peer.GID), 10) == g.Gid {
		return true
	}
	if u == nil {
		return false
	}
	ids, err := u.GroupIds()
	return err == nil && slices.Contains(ids, g.Gid)
}
