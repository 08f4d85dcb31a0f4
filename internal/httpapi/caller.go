package httpapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"drover/internal/auth"
	"drover/internal/pki"
	"drover/internal/resource"

	"connectrpc.com/connect"
)

// sourceKey is where a request came from, kept also for callers who are not known.
type sourceKey struct{}

func source(ctx context.Context) string {
	s, _ := ctx.Value(sourceKey{}).(string)
	return s
}

// address is the IP address that a request came from; of a Unix socket, none.
func address(ctx context.Context) netip.Addr {
	a, _ := netip.ParseAddr(source(ctx))
	return a
}

// wsProtocol carries a bearer token where a browser can set no header: as a websocket subprotocol.
const wsProtocol = "drover.bearer."

// identify puts the caller into the request's context. One with bad credentials is refused here; one with none goes on as nobody.
func (s *Server) identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := r.RemoteAddr
		if host, _, err := net.SplitHostPort(from); err == nil {
			from = host
		}
		ctx := r.Context()
		peer, local := auth.PeerFromContext(ctx)
		p, err := auth.Principal{}, error(nil)
		token := bearer(r)
		known := true
		switch {
		case token != "":
			p, err = s.m.Auth().Authenticate(ctx, token, from)
		case local:
			p, err = s.m.Local().Principal(peer)
			from = p.Source
		case r.TLS != nil && len(r.TLS.VerifiedChains) > 0:
			p, err = s.peer(r, from)
		default:
			known = false
		}
		ctx = context.WithValue(ctx, sourceKey{}, from)
		if err != nil {
			s.refuse(w, r, ctx, err)
			return
		}
		if known {
			ctx = auth.WithPrincipal(ctx, p)
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func bearer(r *http.Request) string {
	if t, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return strings.TrimSpace(t)
	}
	for _, p := range strings.Split(r.Header.Get("Sec-Websocket-Protocol"), ",") {
		if t, ok := strings.CutPrefix(strings.TrimSpace(p), wsProtocol); ok {
			return t
		}
	}
	return ""
}

// peer is the host behind a client certificate. It is asked for at every request: a removed host's connection is worth nothing.
func (s *Server) peer(r *http.Request, from string) (auth.Principal, error) {
	id, err := pki.FromState(*r.TLS)
	if err != nil {
		return auth.Principal{}, err
	}
	// The handshake looked at this; a connection can outlive its certificate.
	if leaf := r.TLS.VerifiedChains[0][0]; s.m.Config().Clock.Now().After(leaf.NotAfter) {
		return auth.Principal{}, &resource.Error{Code: resource.Anonymous, Kind: resource.KindHost, Name: id.Name, Reason: "CERTIFICATE_EXPIRED", Message: "its certificate has expired", Remedy: "connect anew with the renewed one"}
	}
	if id.Role != pki.RoleHost {
		return auth.Principal{}, &resource.Error{Code: resource.Denied, Reason: "ROLE_UNKNOWN", Message: "certificates of role " + string(id.Role) + " don't call this API"}
	}
	if _, err := s.m.HostOf(id.Name, id.UID); err != nil {
		return auth.Principal{}, err
	}
	return auth.HostPrincipal(id.Name, id.UID, from), nil
}

// permit says whether the caller may do what a procedure does.
func permit(ctx context.Context, procedure string) error {
	name, c, ok := lookup(procedure)
	if !ok {
		return &resource.Error{Code: resource.Denied, Reason: "PROCEDURE_UNKNOWN", Message: "procedure " + procedure + " is not served"}
	}
	if open[name] {
		return nil
	}
	return may(ctx, c.verb, c.kind)
}

func may(ctx context.Context, verb auth.Verb, kind string) error {
	p, ok := auth.FromContext(ctx)
	if !ok {
		return told(auth.ErrUnauthenticated)
	}
	return told(auth.Authorise(p, verb, kind, ""))
}

// told puts package auth's errors into the vocabulary of the API.
func told(err error) error {
	var wait *auth.RetryError
	var have *resource.Error
	switch {
	case err == nil || errors.As(err, &have):
		return err
	case errors.As(err, &wait):
		return &resource.Error{Code: resource.Exhausted, Reason: "TOO_MANY_LOGINS", Message: err.Error(), Err: err}
	case errors.Is(err, auth.ErrUnauthenticated):
		return &resource.Error{Code: resource.Anonymous, Reason: "UNAUTHENTICATED", Message: "nobody is logged in, or the token is not valid (any more)", Remedy: "log in: drover login; or give a valid token", Err: err}
	case errors.Is(err, auth.ErrWrongPassword):
		return &resource.Error{Code: resource.Anonymous, Reason: "PASSWORD_WRONG", Message: err.Error(), Err: err}
	case errors.Is(err, auth.ErrBusy):
		return &resource.Error{Code: resource.Unavailable, Reason: "LOGIN_BUSY", Message: err.Error(), Remedy: "try again in a moment", Err: err}
	case errors.Is(err, auth.ErrDenied):
		return &resource.Error{Code: resource.Denied, Reason: "PERMISSION_DENIED", Message: err.Error(), Err: err}
	}
	return err
}

// guard is the interceptor that asks permit before anything of a call is looked at.
type guard struct{}

func (guard) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := permit(ctx, req.Spec().Procedure); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

func (guard) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (guard) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := permit(ctx, conn.Spec().Procedure); err != nil {
			return err
		}
		return next(ctx, conn)
	}
}
