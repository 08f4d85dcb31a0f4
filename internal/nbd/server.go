package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

// ServerOptions are for NewServer. Lookup must be set.
type ServerOptions struct {
	// Lookup opens the export of a name for one peer; release is called once when the peer has gone. Names are secrets: a
	// Lookup that compares must do it in constant time. An error that is ErrNoExport is told to the peer as such, any other
	// as refused.
	Lookup func(ctx context.Context, name string, p Peer) (x Export, release func(), err error)
	// TLS is wanted of each peer but those on a unix socket; nil: nobody may or must. A listener that is neither a unix
	// socket nor on the loopback is refused without it.
	TLS *tls.Config
	// Connections is how many peers are served at once; more are turned away. 0 is 64.
	Connections int
	// InFlight is how many requests of one connection are carried out at once; 0 is 16.
	InFlight int
	// Memory bounds the buffers of all requests under way, in bytes; 0 is 64 MiB. A request waits for room.
	Memory int64
	// Handshake bounds the time until a peer has its export, and Stall the time in which a peer takes an answer or ends a
	// request that it began. 0 is 10 seconds, and a minute.
	Handshake, Stall time.Duration
	Log              *slog.Logger // nil discards
}

// Peer is who asks for an export.
type Peer struct {
	Addr net.Addr
	// TLS is nil on a connection in the clear.
	TLS *tls.ConnectionState
}

// Server serves exports. Serve may be called for several listeners at once.
type Server struct {
	o      ServerOptions
	places chan struct{}
	memory *budget
	bufs   sync.Pool // *[]byte of poolSize
}

// NewServer makes a server; it has nothing to close.
func NewServer(o ServerOptions) *Server {
	if o.Connections <= 0 {
		o.Connections = 64
	}
	if o.InFlight <= 0 {
		o.InFlight = defaultInFlight
	}
	if o.Memory <= 0 {
		o.Memory = 64 << 20
	}
	o.Memory = max(o.Memory, 2*maxPayload)
	if o.Handshake <= 0 {
		o.Handshake = 10 * time.Second
	}
	if o.Stall <= 0 {
		o.Stall = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{o: o, places: make(chan struct{}, o.Connections), memory: newBudget(o.Memory)}
}

// Serve takes peers until ctx ends or the listener fails, closes the listener and all connections, and returns when
// nothing of them is left. An end by ctx is no error.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if err := s.guarded(l.Addr()); err != nil {
		return errors.Join(err, l.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for {
		nc, err := l.Accept()
		if ctx.Err() != nil {
			if nc != nil {
				nc.Close()
			}
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case s.places <- struct{}{}:
		default:
			s.o.Log.Warn("a peer was turned away: too many connections", "peer", nc.RemoteAddr(), "limit", s.o.Connections)
			nc.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-s.places }()
			s.ServeConn(ctx, nc)
		})
	}
}

func (s *Server) guarded(a net.Addr) error {
	if s.o.TLS != nil || a.Network() == "unix" {
		return nil
	}
	if t, ok := a.(*net.TCPAddr); ok && t.IP.IsLoopback() {
		return nil
	}
	return errors.New("nbd: a server without TLS listens on unix sockets and the loopback only, not on " + a.String())
}

// ServeConn serves one peer until it goes or ctx ends, and closes the connection.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	widen(nc)
	h := &greeter{s: s, nc: nc, peer: Peer{Addr: nc.RemoteAddr()}}
	defer h.leave()
	timer := time.AfterFunc(s.o.Handshake, func() { nc.Close() })
	err := h.run(ctx)
	if !timer.Stop() && err == nil {
		err = errors.New("the handshake took too long")
	}
	if err != nil {
		if !errors.Is(err, errBye) && ctx.Err() == nil {
			s.o.Log.Info("an NBD handshake failed", "peer", h.peer.Addr, "err", err)
		}
		return
	}
	if err := newSession(s, h).run(ctx); err != nil && ctx.Err() == nil {
		s.o.Log.Info("an NBD connection ended", "peer", h.peer.Addr, "err", err)
	}
}

// budget is a number of bytes that many share, first come first served.
type budget struct {
	mu    sync.Mutex // guards the fields below
	free  int64
	queue []claim
}

type claim struct {
	n    int64
	have chan struct{}
}

func newBudget(n int64) *budget { return &budget{free: n} }

// take waits for n bytes, which give gives back.
func (b *budget) take(ctx context.Context, n int64) error {
	b.mu.Lock()
	if len(b.queue) == 0 && b.free >= n {
		b.free -= n
		b.mu.Unlock()
		return nil
	}
	c := claim{n, make(chan struct{})}
	b.queue = append(b.queue, c)
	b.mu.Unlock()
	select {
	case <-c.have:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	for i := range b.queue {
		if b.queue[i].have == c.have {
			b.queue = append(b.queue[:i], b.queue[i+1:]...)
			b.mu.Unlock()
			b.give(0)
			return ctx.Err()
		}
	}
	b.mu.Unlock()
	b.give(n) // it was granted meanwhile
	return ctx.Err()
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	for len(b.queue) > 0 && b.queue[0].n <= b.free {
		b.free -= b.queue[0].n
		close(b.queue[0].have)
		b.queue = b.queue[1:]
	}
}
