package httpapi

import (
	"context"
	"errors"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/resource"
	"drover/internal/rpc"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// auditor is the interceptor that writes down every call that changes something, allowed or not.
type auditor struct{ s *Server }

func (a auditor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		name, c, ok := lookup(req.Spec().Procedure)
		if !ok || !c.changes() {
			return next(ctx, req)
		}
		msg, _ := req.Any().(proto.Message)
		if trial(msg) {
			return next(ctx, req)
		}
		rec := a.begin(ctx, name, c, msg)
		res, err := next(ctx, req)
		if err == nil {
			rec.After = after(c, msg, res.Any())
		}
		a.end(ctx, rec, err)
		return res, err
	}
}

func (a auditor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (a auditor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		name, c, ok := lookup(conn.Spec().Procedure)
		if !ok || !c.changes() {
			return next(ctx, conn)
		}
		first := &firstMessage{StreamingHandlerConn: conn, note: func(m proto.Message) {
			a.end(ctx, a.begin(ctx, name, c, m), nil)
		}}
		err := next(ctx, first)
		if err != nil && !first.seen {
			a.end(ctx, a.begin(ctx, name, c, nil), err)
		}
		return err
	}
}

// trial reports whether a request only asks what would be.
func trial(msg proto.Message) bool {
	v, ok := msg.(interface{ GetValidateOnly() bool })
	return ok && v.GetValidateOnly()
}

// after is what the audit log keeps of an answer: the resource, but nothing of what a guest said or showed.
func after(c call, req proto.Message, res any) string {
	if c.verb == auth.VerbConsole {
		if x, ok := req.(*v1.ExecRequest); ok {
			return asJSON(&v1.ExecRequest{Name: x.Name, Path: x.Path})
		}
		return ""
	}
	m, _ := res.(proto.Message)
	return asJSON(m)
}

// firstMessage notes what a stream is opened with.
type firstMessage struct {
	connect.StreamingHandlerConn
	seen bool
	note func(proto.Message)
}

func (f *firstMessage) Receive(m any) error {
	err := f.StreamingHandlerConn.Receive(m)
	if err == nil && !f.seen {
		f.seen = true
		pm, _ := m.(proto.Message)
		f.note(pm)
	}
	return err
}

func (a auditor) begin(ctx context.Context, name string, c call, msg proto.Message) *v1.AuditRecord {
	rec := &v1.AuditRecord{Method: "drover.v1." + name, Kind: c.kind, Source: source(ctx), Principal: nobody}
	p, known := auth.FromContext(ctx)
	if known {
		rec.Principal = p.String()
	}
	if msg != nil {
		rec.Name = clip(target(msg.ProtoReflect()))
	}
	if login, ok := msg.(*v1.LoginRequest); ok {
		rec.Principal, rec.Name = "user:"+clip(login.User), clip(login.User)
	}
	if known && rec.Name != "" && c.verb != auth.VerbCreate {
		rec.Before = asJSON(a.s.m.Object(c.kind, rec.Name))
	}
	return rec
}

func (a auditor) end(ctx context.Context, rec *v1.AuditRecord, err error) {
	if rec.Principal == nobody {
		return // anybody could fill the log; such calls change nothing, and are counted in the metrics
	}
	rec.Code = "ok"
	if err != nil {
		err = told(err)
		rec.Code, rec.Message = rpc.CodeOf(ctx, err).String(), text(err.Error(), longestMessage)
		var re *resource.Error
		if errors.As(err, &re) && re.Name != "" && rec.Name == "" {
			rec.Name = clip(re.Name)
		}
	}
	if werr := a.s.m.Audit(context.WithoutCancel(ctx), rec); werr != nil {
		a.s.log.Error("api: write the audit log", "err", werr, "principal", rec.Principal, "method", rec.Method, "name", rec.Name)
	}
}

// nobody is the principal of a caller who isn't known.
const nobody = "nobody"

// longestMessage bounds what is kept of an error, in bytes.
const longestMessage = 4 << 10

// clip is a name that somebody gave, short enough to be kept.
func clip(s string) string { return text(s, 130) }

// text is at most n bytes of s, as valid UTF-8: nothing else can be in an answer.
func text(s string, n int) string { return strings.ToValidUTF8(s[:min(len(s), n)], "") }

// target is the name of what a request is about: its name, VM or resource.
func target(m protoreflect.Message) string {
	fields := m.Descriptor().Fields()
	for _, f := range []protoreflect.Name{"name", "vm"} {
		if fd := fields.ByName(f); fd != nil && fd.Kind() == protoreflect.StringKind {
			if s := m.Get(fd).String(); s != "" {
				return s
			}
		}
	}
	for i := range fields.Len() {
		fd := fields.Get(i)
		if fd.Message() == nil || fd.IsList() || fd.IsMap() {
			continue
		}
		if meta := fd.Message().Fields().ByName("meta"); meta != nil {
			return m.Get(fd).Message().Get(meta).Message().Interface().(*v1.Meta).GetName()
		}
	}
	return ""
}

// secrets are fields that are never written down.
var secrets = map[protoreflect.Name]bool{"password": true, "old_password": true, "new_password": true, "secret": true, "token": true, "password_hash": true, "secret_hash": true, "user_data": true,
	"passphrase": true, "recovery_key": true, "secret_key": true, "webhook_secret": true}

// asJSON is a message as the audit log keeps it: without secrets.
func asJSON(m proto.Message) string {
	if m == nil || !m.ProtoReflect().IsValid() {
		return ""
	}
	m = proto.Clone(m)
	redact(m.ProtoReflect())
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(string(b), "\u00a0", " ")
}

func redact(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case secrets[fd.Name()] && fd.Message() == nil:
			if fd.Kind() == protoreflect.StringKind && !fd.IsList() {
				m.Set(fd, protoreflect.ValueOfString("(left out)"))
			} else {
				m.Clear(fd)
			}
		case fd.Message() == nil || fd.IsMap():
		case fd.IsList():
			for i := range v.List().Len() {
				redact(v.List().Get(i).Message())
			}
		default:
			redact(v.Message())
		}
		return true
	})
}

// done writes down a plain HTTP request that changed something, or failed to.
func (a auditor) done(ctx context.Context, method, kind, name string, err error) {
	name = clip(name)
	a.end(ctx, a.begin(ctx, method, call{kind: kind}, &v1.GetRequest{Name: name}), err)
}

// streamed writes down that somebody opened a VM's screen.
func (a auditor) streamed(ctx context.Context, method, vm string) {
	a.done(ctx, method, resource.KindVM, vm, nil)
}
