package httpapi

import (
	"context"
	"errors"
	"net/http"

	"drover/internal/resource"

	"connectrpc.com/connect"
)

// errStopping is why streams end when the server does.
var errStopping = &resource.Error{Code: resource.Unavailable, Reason: "STOPPING", Message: "the manager stops", Remedy: "connect again when it is back"}

// until is a context that ends with ctx or when stopping is closed. The caller calls stop.
func until(ctx context.Context, stopping <-chan struct{}) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		select {
		case <-stopping:
			cancel(errStopping)
		case <-done:
		}
	}()
	return ctx, func() {
		close(done)
		cancel(nil)
	}
}

// whileServing gives a plain handler that lasts a context that ends when the server does.
func (s *Server) whileServing(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, stop := until(r.Context(), s.stopping)
		defer stop()
		h(w, r.WithContext(ctx))
	}
}

// ending is the interceptor that ends streams when the server does.
type ending struct{ stopping <-chan struct{} }

func (e ending) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc { return next }

func (e ending) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (e ending) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		ctx, stop := until(ctx, e.stopping)
		defer stop()
		err := next(ctx, conn)
		if err != nil && errors.Is(context.Cause(ctx), errStopping) {
			return errStopping
		}
		return err
	}
}
