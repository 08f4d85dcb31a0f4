package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseServer(t *testing.T) {
	for in, want := range map[string]string{
		"https://m.example": "m.example:7443", "https://m.example:1/": "m.example:1", "10.0.0.1": "10.0.0.1:7443", "[::1]:9": "[::1]:9", "m:8": "m:8",
	} {
		if got, err := ParseServer(in); err != nil || got != want {
			t.Errorf("ParseServer(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "http://m", "https://", "https://u:p@m", "https://m/path", "https://m?x", "m:port", "a b"} {
		if got, err := ParseServer(in); err == nil {
			t.Errorf("ParseServer(%q) = %q; want an error", in, got)
		}
	}
}

func TestParseFingerprint(t *testing.T) {
	want := strings.Repeat("ab", 32)
	for _, in := range []string{want, "sha256:" + want, " SHA256:" + strings.ToUpper(want), strings.TrimSuffix(strings.Repeat("ab:", 32), ":")} {
		if f, err := ParseFingerprint(in); err != nil || f.String() != "sha256:"+want {
			t.Errorf("ParseFingerprint(%q) = %v, %v", in, f, err)
		}
	}
	for _, in := range []string{"", "sha256:", want[2:], want + "00", "zz" + want[2:]} {
		if _, err := ParseFingerprint(in); err == nil {
			t.Errorf("ParseFingerprint(%q) succeeded", in)
		}
	}
}

func TestConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "config.yaml")
	c, err := LoadConfig(path)
	if err != nil || len(c.Contexts) != 0 {
		t.Fatalf("no file: %+v, %v", c, err)
	}
	c.Put(Context{Name: "a", Server: "a:1", Token: "t", CA: "-----\nx\n", Expires: time.Unix(5, 0).UTC()})
	c.Put(Context{Name: "b", Server: "b:1"})
	c.Put(Context{Name: "b", Server: "b:2"})
	c.Current = "a"
	if err := c.Save(path); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	got, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c, got); d != "" {
		t.Error(d)
	}
	if got.ByServer("b:2") == nil || got.ByServer("b:1") != nil || got.Find("c") != nil {
		t.Error("a context is not found by its server")
	}
	got.Remove("a")
	if got.Current != "" || got.Find("a") != nil {
		t.Errorf("after Remove: %+v", got)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".config-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if err := os.WriteFile(path, []byte("surprise: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(path); err == nil || !strings.Contains(err.Error(), "surprise") {
		t.Errorf("unknown field: %v", err)
	}
}

func TestPath(t *testing.T) {
	env := map[string]string{"HOME": "/home/x"}
	get := func(k string) string { return env[k] }
	if p, err := Path(get); err != nil || p != "/home/x/.config/drover/config.yaml" {
		t.Errorf("%q, %v", p, err)
	}
	env["XDG_CONFIG_HOME"] = "/cfg"
	if p, _ := Path(get); p != "/cfg/drover/config.yaml" {
		t.Errorf("%q", p)
	}
	env = nil
	if _, err := Path(get); err == nil {
		t.Error("no home and no error")
	}
}
