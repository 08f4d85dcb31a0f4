package manager

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Images are not fetched from the manager's own machine, nor from its link, by whatever name, and not by a redirect.
func TestImagesComeFromOutside(t *testing.T) {
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer srv.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(srv.URL, "http://"), ":")
	c := outbound()
	for _, host := range []string{"127.0.0.1", "127.9.9.9", "localhost", "0.0.0.0", "[::]", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "[fd00:ec2::254]", "[fe80::1%25lo]"} {
		res, err := c.Get("http://" + host + ":" + port + "/")
		if err == nil {
			res.Body.Close()
			t.Errorf("%s was asked", host)
		} else if !strings.Contains(err.Error(), "no image is fetched") {
			t.Errorf("%s: %v", host, err)
		}
	}
	if asked != 0 {
		t.Errorf("this machine was asked %d times", asked)
	}
	for address, ok := range map[string]bool{"192.0.2.1:80": true, "10.0.0.1:80": true, "[2001:db8::1]:443": true, "224.0.0.1:80": false, "nonsense": false} {
		if err := outside("tcp", address, nil); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}
