package rpc

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"
)

// The limits of one message, in bytes. The largest real one is a VM with its user data, far below.
const maxMessage = 16 << 20

// HandlerOptions are what every handler of the API is made with.
func HandlerOptions(interceptors ...connect.Interceptor) []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithCodec(JSON{}),
		connect.WithReadMaxBytes(maxMessage),
		connect.WithInterceptors(interceptors...),
	}
}

// ClientOptions are what every client of the API is made with. What comes back needs no compression on a LAN; over a
// WAN the messages are small.
func ClientOptions(interceptors ...connect.Interceptor) []connect.ClientOption {
	return []connect.ClientOption{
		connect.WithReadMaxBytes(maxMessage),
		connect.WithAcceptCompression("gzip", nil, nil),
		connect.WithInterceptors(interceptors...),
	}
}

// keepalive settings: a peer that is gone is noticed within about half a minute.
const (
	pingAfter   = 15 * time.Second
	pingTimeout = 10 * time.Second
	dialTimeout = 10 * time.Second
)

// UnixClient speaks HTTP/2 without TLS over a Unix socket. Use it with the base URL "http://drover".
func UnixClient(path string) *http.Client {
	var d net.Dialer
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
		HTTP2:       &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	t.Protocols = new(http.Protocols)
	t.Protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: t}
}

// TLSClient speaks HTTP/2 over TLS.
func TLSClient(cfg *tls.Config) *http.Client {
	d := net.Dialer{Timeout: dialTimeout}
	t := &http.Transport{
		DialContext:         d.DialContext,
		TLSClientConfig:     cfg,
		TLSHandshakeTimeout: dialTimeout,
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	return &http.Client{Transport: t}
}

// ServerProtocols are what servers of the API speak: HTTP/1.1, HTTP/2, and HTTP/2 without TLS on Unix sockets.
func ServerProtocols(unencrypted bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetHTTP2(!unencrypted)
	p.SetUnencryptedHTTP2(unencrypted)
	return p
}
