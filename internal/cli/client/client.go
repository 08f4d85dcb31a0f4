package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"

	"drover/api/drover/v1/droverv1connect"
	"drover/internal/pki"
	"drover/internal/rpc"

	"connectrpc.com/connect"
)

// Client has a stub for every service of a manager.
type Client struct {
	Target Target

	VM         droverv1connect.VMServiceClient
	Disk       droverv1connect.DiskServiceClient
	NIC        droverv1connect.NICServiceClient
	Snapshot   droverv1connect.SnapshotServiceClient
	Site       droverv1connect.SiteServiceClient
	Host       droverv1connect.HostServiceClient
	Datastore  droverv1connect.DatastoreServiceClient
	Network    droverv1connect.NetworkServiceClient
	Profile    droverv1connect.PortProfileServiceClient
	Port       droverv1connect.PortServiceClient
	Switch     droverv1connect.SwitchServiceClient
	Repository droverv1connect.RepositoryServiceClient
	Backup     droverv1connect.BackupServiceClient
	Policy     droverv1connect.BackupPolicyServiceClient
	Protection droverv1connect.ProtectionServiceClient
	Image      droverv1connect.ImageServiceClient
	Task       droverv1connect.TaskServiceClient
	Event      droverv1connect.EventServiceClient
	Audit      droverv1connect.AuditServiceClient
	Metric     droverv1connect.MetricServiceClient
	Auth       droverv1connect.AuthServiceClient
	Manager    droverv1connect.ManagerServiceClient

	// HTTP and Base are for what is not an RPC: uploads, metrics.
	HTTP *http.Client
	Base string

	tls *tls.Config
}

// New makes the stubs. Nothing is dialled yet.
func New(t Target) (*Client, error) {
	c := &Client{Target: t}
	switch {
	case t.Socket != "":
		c.HTTP, c.Base = rpc.UnixClient(t.Socket), "http://drover"
	case t.CA == nil:
		return nil, errors.New("no CA is trusted for https://" + t.Server + ": log in first, or give --ca FILE")
	default:
		cfg, err := pki.ClientConfig(pki.ClientOptions{Trust: t.CA, Peer: pki.Identity{Role: pki.RoleManager}})
		if err != nil {
			return nil, fmt.Errorf("server %s: %w", t.Server, err)
		}
		c.tls = cfg
		c.HTTP, c.Base = rpc.TLSClient(cfg), "https://"+t.Server
	}
	if t.Token != "" {
		c.HTTP.Transport = bearer{c.HTTP.Transport, t.Token}
	}
	opts := connect.WithClientOptions(rpc.ClientOptions()...)
	c.VM = droverv1connect.NewVMServiceClient(c.HTTP, c.Base, opts)
	c.Disk = droverv1connect.NewDiskServiceClient(c.HTTP, c.Base, opts)
	c.NIC = droverv1connect.NewNICServiceClient(c.HTTP, c.Base, opts)
	c.Snapshot = droverv1connect.NewSnapshotServiceClient(c.HTTP, c.Base, opts)
	c.Site = droverv1connect.NewSiteServiceClient(c.HTTP, c.Base, opts)
	c.Host = droverv1connect.NewHostServiceClient(c.HTTP, c.Base, opts)
	c.Datastore = droverv1connect.NewDatastoreServiceClient(c.HTTP, c.Base, opts)
	c.Network = droverv1connect.NewNetworkServiceClient(c.HTTP, c.Base, opts)
	c.Profile = droverv1connect.NewPortProfileServiceClient(c.HTTP, c.Base, opts)
	c.Port = droverv1connect.NewPortServiceClient(c.HTTP, c.Base, opts)
	c.Switch = droverv1connect.NewSwitchServiceClient(c.HTTP, c.Base, opts)
	c.Repository = droverv1connect.NewRepositoryServiceClient(c.HTTP, c.Base, opts)
	c.Backup = droverv1connect.NewBackupServiceClient(c.HTTP, c.Base, opts)
	c.Policy = droverv1connect.NewBackupPolicyServiceClient(c.HTTP, c.Base, opts)
	c.Protection = droverv1connect.NewProtectionServiceClient(c.HTTP, c.Base, opts)
	c.Image = droverv1connect.NewImageServiceClient(c.HTTP, c.Base, opts)
	c.Task = droverv1connect.NewTaskServiceClient(c.HTTP, c.Base, opts)
	c.Event = droverv1connect.NewEventServiceClient(c.HTTP, c.Base, opts)
	c.Audit = droverv1connect.NewAuditServiceClient(c.HTTP, c.Base, opts)
	c.Metric = droverv1connect.NewMetricServiceClient(c.HTTP, c.Base, opts)
	c.Auth = droverv1connect.NewAuthServiceClient(c.HTTP, c.Base, opts)
	c.Manager = droverv1connect.NewManagerServiceClient(c.HTTP, c.Base, opts)
	return c, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.HTTP.CloseIdleConnections() }

// HTTP1 is a client for what needs HTTP/1.1: websockets.
func (c *Client) HTTP1() *http.Client {
	t := &http.Transport{}
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	if c.Target.Socket != "" {
		var d net.Dialer
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", c.Target.Socket)
		}
	} else {
		cfg := c.tls.Clone()
		cfg.NextProtos = []string{"http/1.1"}
		t.TLSClientConfig = cfg
	}
	var rt http.RoundTripper = t
	if c.Target.Token != "" {
		rt = bearer{t, c.Target.Token}
	}
	return &http.Client{Transport: rt}
}

// bearer adds the token to each request.
type bearer struct {
	next  http.RoundTripper
	token string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// CloseIdleConnections lets http.Client's method of that name through.
func (b bearer) CloseIdleConnections() {
	if c, ok := b.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
