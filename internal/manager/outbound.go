package manager

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"
)

// outbound is the client that fetches images from addresses that people give. What it fetches can be read by booting it,
// so it must not reach what only this machine can: its own services, and the metadata service of a cloud, which hands out
// credentials. What is asked is the address that is dialled, after names and redirects. A proxy of the environment is
// the administrator's own and dialled wherever it is; what lies behind it is for it to refuse.
func outbound() *http.Client {
	var proxies sync.Map // "host:port"
	strict := &net.Dialer{Timeout: 30 * time.Second, Control: outside}
	plain := &net.Dialer{Timeout: 30 * time.Second}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = func(r *http.Request) (*url.URL, error) {
		u, err := http.ProxyFromEnvironment(r)
		if err == nil && u != nil {
			port := u.Port()
			if port == "" {
				port = map[string]string{"https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
			}
			if port == "" {
				port = "80"
			}
			proxies.Store(net.JoinHostPort(u.Hostname(), port), true)
		}
		return u, err
	}
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if _, ok := proxies.Load(address); ok {
			return plain.DialContext(ctx, network, address)
		}
		return strict.DialContext(ctx, network, address)
	}
	return &http.Client{Transport: t}
}

// awsMetadata is the one metadata service that is not on a link-local address.
var awsMetadata = netip.MustParseAddr("fd00:ec2::254")

// outside refuses to connect to this machine and to its link.
func outside(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast() || a == awsMetadata {
		return fmt.Errorf("%s is the manager's own machine or link, from which no image is fetched; upload the file instead: drover image import FILE", a)
	}
	return nil
}
