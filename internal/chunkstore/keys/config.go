package keys

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Names of what a config may ask for.
const (
	Format  = "drover-repository"
	Version = 1

	BLAKE3 = "blake3"
	SHA256 = "sha256"

	AES256GCM  = "aes-256-gcm"
	NoCipher   = "none"
	Parity20p2 = "20+2"

	DefaultBlockSize = 64 << 10
	MinBlockSize     = 4 << 10
	MaxBlockSize     = 4 << 20
)

// Errors that callers branch on.
var (
	// ErrNewer: a program newer than this one made it.
	ErrNewer = errors.New("made by a newer version of Drover")
	// ErrForeign: this is no repository.
	ErrForeign = errors.New("not a repository of Drover")
	// ErrWrongKey: neither passphrase nor recovery key opens it.
	ErrWrongKey = errors.New("wrong passphrase or recovery key")
)

// Config is the object `config`.
type Config struct {
	Format    string    `json:"format"`
	Version   int       `json:"version"`
	ID        string    `json:"id"`
	BlockSize int       `json:"blockSize"`
	Hash      string    `json:"hash"`
	Cipher    string    `json:"cipher"`
	Parity    string    `json:"parity"`
	Created   time.Time `json:"created"`
}

// NewID makes a repository's id from random (nil: the system's).
func NewID(random io.Reader) (string, error) {
	if random == nil {
		random = rand.Reader
	}
	var id [16]byte
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(id[:]), nil
}

// Encrypted reports whether payloads are sealed.
func (c *Config) Encrypted() bool { return c.Cipher != NoCipher }

// RawID is the id's bytes.
func (c *Config) RawID() [16]byte {
	var id [16]byte
	b, err := hex.DecodeString(c.ID)
	if err != nil || len(b) != len(id) {
		return id
	}
	return [16]byte(b)
}

// Validate refuses what this version can not work with.
func (c *Config) Validate() error {
	switch {
	case c.Format != Format:
		return fmt.Errorf("%w: its config says format %q", ErrForeign, short(c.Format))
	case c.Version > Version:
		return fmt.Errorf("%w: the repository has version %d, this program reads %d", ErrNewer, c.Version, Version)
	case c.Version < 1:
		return fmt.Errorf("%w: version %d", ErrForeign, c.Version)
	case c.BlockSize < MinBlockSize || c.BlockSize > MaxBlockSize || c.BlockSize&(c.BlockSize-1) != 0:
		return fmt.Errorf("block size %d: it must be a power of two from %d to %d", c.BlockSize, MinBlockSize, MaxBlockSize)
	case c.Hash != BLAKE3 && c.Hash != SHA256:
		return fmt.Errorf("hash %q: it must be %s or %s", short(c.Hash), BLAKE3, SHA256)
	case c.Cipher != AES256GCM && c.Cipher != NoCipher:
		return fmt.Errorf("cipher %q: it must be %s or %s", short(c.Cipher), AES256GCM, NoCipher)
	case c.Parity != "" && c.Parity != Parity20p2:
		return fmt.Errorf("parity %q: it must be %s or empty", short(c.Parity), Parity20p2)
	}
	if b, err := hex.DecodeString(c.ID); err != nil || len(b) != 16 || hex.EncodeToString(b) != c.ID {
		return fmt.Errorf("%w: its id %q is not 32 hexadecimal digits", ErrForeign, short(c.ID))
	}
	return nil
}

// Encode returns the object's bytes.
func (c *Config) Encode() ([]byte, error) { return json.MarshalIndent(c, "", "  ") }

// ParseConfig reads the object.
func ParseConfig(b []byte) (*Config, error) {
	var c Config
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%w: its config is no JSON: %w", ErrForeign, err)
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &c, nil
}

func short(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
