package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
)

// Context is a manager that somebody logged in to.
type Context struct {
	Name   string `yaml:"name"`
	Server string `yaml:"server"`
	User   string `yaml:"user,omitempty"`
	// Token is the session's or tool's secret.
	Token   string    `yaml:"token,omitempty"`
	Expires time.Time `yaml:"expires,omitempty"`
	// CA is the PEM of the CA that was trusted at login.
	CA string `yaml:"ca"`
}

// Config is what is remembered between commands.
type Config struct {
	// Current is the context that is used when none is named; empty: the manager on this machine.
	Current  string    `yaml:"current,omitempty"`
	Contexts []Context `yaml:"contexts,omitempty"`
}

// Path is the file of contexts by the XDG base directories; getenv is os.Getenv but in tests.
func Path(getenv func(string) string) (string, error) {
	if p := getenv("DROVER_CONFIG"); p != "" {
		return p, nil
	}
	if d := getenv("XDG_CONFIG_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "drover", "config.yaml"), nil
	}
	home := getenv("HOME")
	if home == "" {
		return "", errors.New("configuration: neither XDG_CONFIG_HOME nor HOME is set")
	}
	return filepath.Join(home, ".config", "drover", "config.yaml"), nil
}

// LoadConfig reads the file; that there is none is an empty Config.
func LoadConfig(path string) (*Config, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Config{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return parseConfig(path, b)
}

func parseConfig(path string, b []byte) (*Config, error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	c := &Config{}
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("configuration %s: %w; mend or remove it", path, err)
	}
	return c, nil
}

// Save writes the file in one step, for its owner alone.
func (c *Config) Save(path string) (err error) {
	b, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".config-*") // mode 0600
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("configuration: %w", err), os.Remove(f.Name()))
		}
	}()
	_, werr := f.Write(b)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Find is the context of a name, or nil.
func (c *Config) Find(name string) *Context {
	if i := slices.IndexFunc(c.Contexts, func(x Context) bool { return x.Name == name }); i >= 0 {
		return &c.Contexts[i]
	}
	return nil
}

// ByServer is the context of a server's address, the current one first; nil if there is none.
func (c *Config) ByServer(server string) *Context {
	if x := c.Find(c.Current); x != nil && x.Server == server {
		return x
	}
	if i := slices.IndexFunc(c.Contexts, func(x Context) bool { return x.Server == server }); i >= 0 {
		return &c.Contexts[i]
	}
	return nil
}

// Put adds a context or replaces the one of its name.
func (c *Config) Put(x Context) {
	if old := c.Find(x.Name); old != nil {
		*old = x
		return
	}
	c.Contexts = append(c.Contexts, x)
}

// Remove forgets a context.
func (c *Config) Remove(name string) {
	c.Contexts = slices.DeleteFunc(c.Contexts, func(x Context) bool { return x.Name == name })
	if c.Current == name {
		c.Current = ""
	}
}
