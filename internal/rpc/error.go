package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"

	"connectrpc.com/connect"
)

var codes = map[resource.Code]connect.Code{
	resource.Internal:      connect.CodeInternal,
	resource.Invalid:       connect.CodeInvalidArgument,
	resource.NotFound:      connect.CodeNotFound,
	resource.Exists:        connect.CodeAlreadyExists,
	resource.Conflict:      connect.CodeAborted,
	resource.Precondition:  connect.CodeFailedPrecondition,
	resource.Denied:        connect.CodePermissionDenied,
	resource.Anonymous:     connect.CodeUnauthenticated,
	resource.Exhausted:     connect.CodeResourceExhausted,
	resource.Unavailable:   connect.CodeUnavailable,
	resource.Unimplemented: connect.CodeUnimplemented,
}

// Error is err as the other side gets it. What isn't meant for people is logged and told as an internal fault.
func Error(ctx context.Context, log *slog.Logger, err error) *connect.Error {
	var ce *connect.Error
	var re *resource.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &re):
		ce = connect.NewError(codes[re.Code], errors.New(strings.ToValidUTF8(err.Error(), "\ufffd")))
		// A name that is no UTF-8 can't be in a message.
		detail := &v1.ErrorDetail{Kind: re.Kind, Name: strings.ToValidUTF8(re.Name, "\ufffd"), Field: re.Field, Reason: re.Reason, Remedy: strings.ToValidUTF8(re.Remedy, "\ufffd")}
		if d, derr := connect.NewErrorDetail(detail); derr == nil {
			ce.AddDetail(d)
		}
		if re.Code == resource.Internal && !errors.Is(err, context.Canceled) {
			log.ErrorContext(ctx, "api: internal fault", "err", err, "cause", re.Err)
		}
		return ce
	case errors.As(err, &ce):
		return ce
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, errors.New("the caller went away, or the server stops"))
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New("took longer than the deadline allows; the operation may still be under way"))
	}
	log.ErrorContext(ctx, "api: internal fault", "err", err)
	return connect.NewError(connect.CodeInternal, errors.New("an internal fault; the log of the server says more"))
}

// CodeOf is the code that Error gives err; 0 for nil.
func CodeOf(ctx context.Context, err error) connect.Code {
	if err == nil {
		return 0
	}
	return Error(ctx, slog.New(slog.DiscardHandler), err).Code()
}

// FromError is what Error made, as a resource.Error again; other errors come back as they are.
func FromError(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	if ce.Code() == connect.CodeCanceled {
		return fmt.Errorf("%w: %s", context.Canceled, ce.Message())
	}
	e := &resource.Error{Message: ce.Message(), Err: err}
	for rc, cc := range codes {
		if cc == ce.Code() {
			e.Code = rc
		}
	}
	if ce.Code() == connect.CodeDeadlineExceeded {
		e.Code = resource.Unavailable
	}
	for _, d := range ce.Details() {
		v, derr := d.Value()
		if ed, ok := v.(*v1.ErrorDetail); ok && derr == nil {
			e.Reason = ed.Reason
			return &told{err: e, detail: ed}
		}
	}
	return e
}

// told is an error that the other side has already put into words, object and remedy included.
type told struct {
	err    *resource.Error
	detail *v1.ErrorDetail
}

func (t *told) Error() string { return t.err.Message }
func (t *told) Unwrap() error { return t.err }

// Detail is the detail that came with an error; nil if none did.
func Detail(err error) *v1.ErrorDetail {
	var t *told
	if errors.As(err, &t) {
		return t.detail
	}
	return nil
}

// Errors is an interceptor that passes what handlers return through Error.
func Errors(log *slog.Logger) connect.Interceptor { return errorInterceptor{log} }

type errorInterceptor struct{ log *slog.Logger }

func (i errorInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := known(req.Any()); err != nil {
			return nil, Error(ctx, i.log, err)
		}
		res, err := next(ctx, req)
		if err != nil {
			return nil, Error(ctx, i.log, fmt.Errorf("%w", err))
		}
		return res, nil
	}
}

func (i errorInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (i errorInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, strict{conn}); err != nil {
			return Error(ctx, i.log, err)
		}
		return nil
	}
}

// strict refuses messages of a stream that have fields which this version does not know.
type strict struct{ connect.StreamingHandlerConn }

func (s strict) Receive(m any) error {
	if err := s.StreamingHandlerConn.Receive(m); err != nil {
		return err
	}
	return known(m)
}
