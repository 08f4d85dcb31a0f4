package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"golang.org/x/crypto/argon2"
)

// MasterSize is the master key's length, and that of a recovery key.
const MasterSize = 32

// Ways to make a wrapping key.
const (
	kdfArgon2 = "argon2id"
	kdfNone   = "none"
)

// Cost is what guessing one passphrase costs. The zero value is 4 passes over 32 MiB with 2 threads, more than OWASP asks for, and little enough for a process that is to stay below 100 MiB.
type Cost struct {
	Time, Memory uint32 // passes, KiB
	Threads      uint8
}

// Limits on what a stranger's file may ask for.
const (
	maxTime   = 64
	maxMemory = 1 << 20 // 1 GiB
)

// Wrapped is the object keys/NAME: the master key under a passphrase or a recovery key.
type Wrapped struct {
	KDF     string `json:"kdf"`
	Time    uint32 `json:"time,omitempty"`
	Memory  uint32 `json:"memory,omitempty"`
	Threads uint8  `json:"threads,omitempty"`
	Salt    []byte `json:"salt,omitempty"`
	Wrapped []byte `json:"wrapped"`
}

// WrapPassphrase wraps master under a passphrase for keys/name of the repository.
func WrapPassphrase(master []byte, passphrase, repository, name string, cost Cost, random io.Reader) (*Wrapped, error) {
	if passphrase == "" {
		return nil, fmt.Errorf("an empty passphrase protects nothing")
	}
	if cost.Time == 0 {
		cost.Time = 4
	}
	if cost.Memory == 0 {
		cost.Memory = 32 << 10
	}
	if cost.Threads == 0 {
		cost.Threads = 2
	}
	if random == nil {
		random = rand.Reader
	}
	w := &Wrapped{KDF: kdfArgon2, Time: cost.Time, Memory: cost.Memory, Threads: cost.Threads, Salt: make([]byte, 16)}
	if _, err := io.ReadFull(random, w.Salt); err != nil {
		return nil, err
	}
	return w, w.wrap(master, w.derive(passphrase), repository, name, random)
}

// WrapRecovery makes a recovery key, and wraps master under it. The text is for people to keep.
func WrapRecovery(master []byte, repository, name string, random io.Reader) (*Wrapped, string, error) {
	if random == nil {
		random = rand.Reader
	}
	key := make([]byte, MasterSize)
	if _, err := io.ReadFull(random, key); err != nil {
		return nil, "", err
	}
	w := &Wrapped{KDF: kdfNone}
	return w, FormatRecovery(key), w.wrap(master, key, repository, name, random)
}

func (w *Wrapped) derive(passphrase string) []byte {
	return argon2.IDKey([]byte(passphrase), w.Salt, w.Time, w.Memory, w.Threads, MasterSize)
}

func (w *Wrapped) wrap(master, key []byte, repository, name string, random io.Reader) error {
	aead, err := gcm(key)
	if err != nil {
		return err
	}
	nonce := make([]byte, aead.NonceSize())
	if _, err := io.ReadFull(random, nonce); err != nil {
		return err
	}
	w.Wrapped = aead.Seal(nonce, nonce, master, []byte(repository+"/"+name))
	return nil
}

// IsRecovery reports whether a recovery key opens it, and not a passphrase.
func (w *Wrapped) IsRecovery() bool { return w.KDF == kdfNone }

// Unwrap returns the master key. It fails with ErrWrongKey if secret does not open it. The secret is a passphrase, or a recovery key's text.
func (w *Wrapped) Unwrap(secret, repository, name string) ([]byte, error) {
	var key []byte
	if w.IsRecovery() {
		var err error
		if key, err = ParseRecovery(secret); err != nil {
			return nil, err
		}
	} else {
		key = w.derive(secret)
	}
	aead, err := gcm(key)
	if err != nil {
		return nil, err
	}
	n := aead.NonceSize()
	master, err := aead.Open(nil, w.Wrapped[:n], w.Wrapped[n:], []byte(repository+"/"+name))
	if err != nil {
		return nil, ErrWrongKey
	}
	return master, nil
}

// Encode returns the object's bytes.
func (w *Wrapped) Encode() ([]byte, error) { return json.MarshalIndent(w, "", "  ") }

// ParseWrapped reads the object, and refuses one that asks for too much work.
func ParseWrapped(b []byte) (*Wrapped, error) {
	var w Wrapped
	if err := json.Unmarshal(b, &w); err != nil {
		return nil, fmt.Errorf("a wrapped key that is no JSON: %w", err)
	}
	switch w.KDF {
	case kdfNone:
	case kdfArgon2:
		if w.Time < 1 || w.Time > maxTime || w.Memory < 8 || w.Memory > maxMemory || w.Threads < 1 || len(w.Salt) < 8 || len(w.Salt) > 64 {
			return nil, fmt.Errorf("a wrapped key whose argon2id parameters are out of range (time %d, memory %d KiB, threads %d)", w.Time, w.Memory, w.Threads)
		}
	default:
		return nil, fmt.Errorf("%w: a wrapped key by %q", ErrNewer, short(w.KDF))
	}
	if len(w.Wrapped) != 12+MasterSize+16 {
		return nil, fmt.Errorf("a wrapped key of %d bytes, not %d", len(w.Wrapped), 12+MasterSize+16)
	}
	return &w, nil
}

// FormatRecovery writes a recovery key for people: groups of capital letters and digits.
func FormatRecovery(key []byte) string {
	s := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(key)
	var groups []string
	for len(s) > 4 {
		groups, s = append(groups, s[:4]), s[4:]
	}
	return strings.Join(append(groups, s), "-")
}

// ParseRecovery reads what FormatRecovery wrote, however it was spaced. It fails with ErrWrongKey.
func ParseRecovery(text string) ([]byte, error) {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r == '-' || r == ' ' || r == '\n' || r == '\t' || r == '\r':
			return -1
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r == '0':
			return 'O'
		case r == '1':
			return 'I'
		}
		return r
	}, text)
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(clean)
	if err != nil || len(key) != MasterSize {
		return nil, fmt.Errorf("%w: a recovery key has 52 letters and digits", ErrWrongKey)
	}
	return key, nil
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
