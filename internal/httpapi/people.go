package httpapi

import (
	"context"
	"errors"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/manager"
	"drover/internal/resource"

	"connectrpc.com/connect"
)

type people struct{ m *manager.Manager }

func (s people) Login(ctx context.Context, req *v1.LoginRequest) (*v1.LoginResponse, error) {
	token, p, err := s.m.Auth().Login(ctx, req.User, req.Password, address(ctx))
	if err != nil {
		return nil, told(err)
	}
	t, err := s.m.Tokens.Get(p.TokenID)
	if err != nil {
		return nil, err
	}
	return &v1.LoginResponse{Token: token, ExpireTime: t.Spec.ExpireTime}, nil
}

func (s people) Logout(ctx context.Context, _ *v1.LogoutRequest) (*v1.LogoutResponse, error) {
	p, _ := auth.FromContext(ctx)
	if p.TokenID == "" {
		return &v1.LogoutResponse{}, nil // known by something that can't be given up, such as the Unix socket
	}
	return &v1.LogoutResponse{}, s.m.Auth().Revoke(ctx, p.TokenID)
}

func (s people) WhoAmI(ctx context.Context, _ *v1.WhoAmIRequest) (*v1.WhoAmIResponse, error) {
	p, _ := auth.FromContext(ctx)
	res := &v1.WhoAmIResponse{Kind: string(p.Kind), Name: p.Name, Source: p.Source}
	for _, g := range p.Roles {
		res.Roles = append(res.Roles, string(g.Role))
	}
	for _, sc := range p.Scopes {
		res.Scopes = append(res.Scopes, string(sc))
	}
	return res, nil
}

func (s people) ListUsers(_ context.Context, req *v1.ListRequest) (*v1.UserList, error) {
	l, err := s.m.Users.List(req)
	if err != nil {
		return nil, err
	}
	return &v1.UserList{Users: l.Items, NextPageToken: l.Next, Total: l.Total}, nil
}

func (s people) CreateUser(ctx context.Context, req *v1.CreateUserRequest) (*v1.CreateUserResponse, error) {
	return s.m.CreateUser(ctx, req)
}

func (s people) DeleteUser(ctx context.Context, req *v1.DeleteRequest) (*v1.User, error) {
	return s.m.DeleteUser(ctx, req.Name, req.Revision)
}

// SetPassword changes one's own password, for which the old one is needed, or as an administrator another's.
func (s people) SetPassword(ctx context.Context, req *v1.SetPasswordRequest) (*v1.SetPasswordResponse, error) {
	p, _ := auth.FromContext(ctx)
	name := req.Name
	if name == "" {
		name = p.Name
	}
	own := name == p.Name && (p.Kind == auth.KindUser || p.Kind == auth.KindToken)
	if !own {
		if err := may(ctx, auth.VerbUpdate, resource.KindUser); err != nil {
			return nil, err
		}
	} else {
		_, opened, err := s.m.Auth().Login(ctx, name, req.OldPassword, address(ctx))
		if err != nil {
			return nil, told(err)
		}
		if err := s.m.Auth().Revoke(ctx, opened.TokenID); err != nil {
			return nil, err
		}
	}
	return &v1.SetPasswordResponse{}, s.m.SetPassword(ctx, name, req.NewPassword)
}

// ListTokens shows one's own tokens; administrators see everybody's.
func (s people) ListTokens(ctx context.Context, req *v1.ListRequest) (*v1.TokenList, error) {
	p, _ := auth.FromContext(ctx)
	l, err := s.m.TokensFor(p, may(ctx, auth.VerbList, resource.KindToken) == nil, req)
	if err != nil {
		return nil, err
	}
	return &v1.TokenList{Tokens: l.Items, NextPageToken: l.Next, Total: l.Total}, nil
}

func (s people) CreateToken(ctx context.Context, req *v1.CreateTokenRequest) (*v1.CreateTokenResponse, error) {
	p, _ := auth.FromContext(ctx)
	if !resource.ValidName(req.Name) {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindToken, Name: req.Name, Field: "name", Reason: "NAME_INVALID", Message: "must have 1 to 63 characters of a-z, 0-9 and '-', and not begin or end with '-'"}
	}
	title := req.Name
	if req.Description != "" {
		title += ": " + req.Description
	}
	o := auth.TokenOptions{User: s.m.UserFor(p), Title: title, Source: source(ctx), Lifetime: req.Lifetime.AsDuration()}
	if o.User == "" {
		return nil, &resource.Error{Code: resource.Denied, Kind: resource.KindToken, Name: req.Name, Reason: "NOT_A_USER", Message: p.Name + " of this machine is no user, so no token can act for them", Remedy: "log in as a user: drover login"}
	}
	for _, sc := range req.Scopes {
		o.Scopes = append(o.Scopes, auth.Scope(sc))
	}
	if d := o.Lifetime; d < 0 || d > manager.LongestToken {
		return nil, &resource.Error{Code: resource.Invalid, Kind: resource.KindToken, Name: req.Name, Field: "lifetime", Reason: "OUT_OF_RANGE", Message: "must be more than 0 and at most 2 years"}
	}
	if p.Kind == auth.KindToken {
		// A token makes none that outlives it: who was lent it for a day must not keep what it could do for two years.
		own, err := s.m.Tokens.Get(p.TokenID)
		if err != nil {
			return nil, err
		}
		if end := own.Spec.ExpireTime; end != nil {
			left := time.Until(end.AsTime())
			if o.Lifetime == 0 || o.Lifetime > left {
				o.Lifetime = left
			}
		}
	}
	secret, t, err := s.m.Auth().CreateToken(ctx, p, o)
	if err != nil {
		var re *resource.Error
		if err = told(err); !errors.As(err, &re) {
			err = &resource.Error{Code: resource.Invalid, Kind: resource.KindToken, Name: req.Name, Reason: "TOKEN_INVALID", Message: err.Error(), Err: err}
		}
		return nil, err
	}
	made, err := s.m.Tokens.Get(t.ID)
	return &v1.CreateTokenResponse{Token: made, Secret: secret}, err
}

// DeleteToken ends one's own token; administrators end anybody's.
func (s people) DeleteToken(ctx context.Context, req *v1.DeleteRequest) (*v1.Token, error) {
	p, _ := auth.FromContext(ctx)
	t, err := s.m.Tokens.Get(req.Name)
	if err != nil {
		return nil, err
	}
	if t.Spec.User != s.m.UserFor(p) {
		if err := may(ctx, auth.VerbDelete, resource.KindToken); err != nil {
			return nil, err
		}
	}
	return t, s.m.Auth().Revoke(ctx, req.Name)
}

type install struct{ m *manager.Manager }

func (s install) GetInfo(context.Context, *v1.InfoRequest) (*v1.Info, error) { return s.m.Info(), nil }

func (s install) Backup(ctx context.Context, _ *v1.BackupStateRequest, st *connect.ServerStream[v1.BackupStateResponse]) error {
	return s.m.Backup(ctx, writerFunc(func(b []byte) error { return st.Send(&v1.BackupStateResponse{Data: b}) }))
}

type writerFunc func([]byte) error

func (f writerFunc) Write(b []byte) (int, error) { return len(b), f(b) }

type events struct{ m *manager.Manager }

func (s events) List(ctx context.Context, req *v1.ListEventsRequest) (*v1.EventList, error) {
	return s.m.ListEvents(ctx, req)
}

func (s events) Watch(ctx context.Context, req *v1.WatchEventsRequest, st *connect.ServerStream[v1.Event]) error {
	return s.m.WatchEvents(ctx, req, st.Send)
}

type audits struct{ m *manager.Manager }

func (s audits) List(ctx context.Context, req *v1.ListAuditRequest) (*v1.AuditList, error) {
	return s.m.ListAudit(ctx, req)
}

type measurements struct{ m *manager.Manager }

func (s measurements) Query(ctx context.Context, req *v1.QueryMetricsRequest) (*v1.QueryMetricsResponse, error) {
	return s.m.QueryMetrics(ctx, req)
}

type agents struct{ m *manager.Manager }

func (s agents) host(ctx context.Context) (*v1.Host, error) {
	p, _ := auth.FromContext(ctx)
	return s.m.HostOf(p.Name, p.UID)
}

func (s agents) Enroll(ctx context.Context, req *v1.EnrollRequest) (*v1.EnrollResponse, error) {
	return s.m.Enroll(ctx, req)
}

func (s agents) Renew(ctx context.Context, req *v1.RenewRequest) (*v1.RenewResponse, error) {
	h, err := s.host(ctx)
	if err != nil {
		return nil, err
	}
	return s.m.Renew(h, req.Csr)
}

func (s agents) Watch(ctx context.Context, _ *v1.AgentWatchRequest, st *connect.ServerStream[v1.AgentChange]) error {
	h, err := s.host(ctx)
	if err != nil {
		return err
	}
	return s.m.WatchFor(ctx, h.Meta.Name, st.Send)
}

func (s agents) Report(ctx context.Context, req *v1.ReportRequest) (*v1.ReportResponse, error) {
	h, err := s.host(ctx)
	if err != nil {
		return nil, err
	}
	return s.m.Report(ctx, h, req)
}
