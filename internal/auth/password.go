package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"golang.org/x/crypto/argon2"
)

const (
	// MinPassword and MaxPassword bound a password's length in bytes.
	MinPassword = 10
	MaxPassword = 1024
)

// Errors of [Hasher].
var (
	// ErrBusy says that too many log-ins wait already.
	ErrBusy = errors.New("too many people log in at this moment: try again in a few seconds")
	// ErrBadHash says that a stored hash is not an argon2id PHC string within
	// bounds.
	ErrBadHash = errors.New("stored password hash is damaged or out of bounds: set the password anew")
)

// params are argon2id's (RFC 9106). The default is the first choice of OWASP's
// Password Storage Cheat Sheet for 19 MiB; the bounds are for stored hashes,
// which another version may have made.
type params struct {
	memory  uint32 // KiB
	passes  uint32
	threads uint8
	salt    []byte
	key     []byte
}

const (
	memoryKiB  = 19 << 10
	passes     = 2
	maxMemory  = 64 << 10
	maxPasses  = 10
	maxThreads = 8
	saltLen    = 16
	keyLen     = 32
)

// Hasher makes and checks password hashes, a few at a time. With two at once
// its peak is 2 × 64 MiB at the bounds, 2 × 19 MiB for hashes of its own.
type Hasher struct {
	slots   chan struct{}
	waiting atomic.Int64
	queue   int64
	// dummy is the hash that is checked for users who do not exist.
	dummy string
}

// NewHasher returns a hasher that runs atOnce computations (2 if zero), while
// queue more callers (32 if zero) wait.
func NewHasher(atOnce, queue int) *Hasher {
	if atOnce <= 0 {
		atOnce = 2
	}
	if queue <= 0 {
		queue = 32
	}
	salt := make([]byte, saltLen)
	// No password has the all-zero key.
	dummy := params{memory: memoryKiB, passes: passes, threads: 1, salt: salt, key: make([]byte, keyLen)}
	return &Hasher{slots: make(chan struct{}, atOnce), queue: int64(queue), dummy: dummy.phc()}
}

// enter waits for a slot; the caller then calls leave.
func (h *Hasher) enter(ctx context.Context) error {
	if h.waiting.Add(1) > h.queue+int64(cap(h.slots)) {
		h.waiting.Add(-1)
		return ErrBusy
	}
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		h.waiting.Add(-1)
		return ctx.Err()
	}
}

func (h *Hasher) leave() {
	<-h.slots
	h.waiting.Add(-1)
}

// Hash returns the PHC string of a new password.
func (h *Hasher) Hash(ctx context.Context, password string) (string, error) {
	if len(password) < MinPassword || len(password) > MaxPassword {
		return "", fmt.Errorf("password has %d bytes: use %d to %d", len(password), MinPassword, MaxPassword)
	}
	if err := h.enter(ctx); err != nil {
		return "", err
	}
	defer h.leave()
	p := params{memory: memoryKiB, passes: passes, threads: 1, salt: make([]byte, saltLen)}
	rand.Read(p.salt)
	p.key = p.derive(password, keyLen)
	return p.phc(), nil
}

// Verify reports whether the password is the one hashed, and whether the hash
// should be made anew with today's parameters. An empty hash stands for a user
// who does not exist: it costs the same and never matches.
func (h *Hasher) Verify(ctx context.Context, phc, password string) (ok, stale bool, err error) {
	exists := phc != ""
	if !exists {
		phc = h.dummy
	}
	p, err := parsePHC(phc)
	if err != nil {
		return false, false, err
	}
	if len(password) > MaxPassword {
		return false, false, nil
	}
	if err := h.enter(ctx); err != nil {
		return false, false, err
	}
	defer h.leave()
	same := subtle.ConstantTimeCompare(p.derive(password, uint32(len(p.key))), p.key) == 1
	stale = p.memory < memoryKiB || p.passes < passes || len(p.key) < keyLen || len(p.salt) < saltLen
	return same && exists, same && stale, nil
}

func (p params) derive(password string, n uint32) []byte {
	return argon2.IDKey([]byte(password), p.salt, p.passes, p.memory, p.threads, n)
}

var phcCoding = base64.RawStdEncoding.Strict()

// phc writes the string of the PHC string format specification.
func (p params) phc() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, p.memory, p.passes, p.threads,
		phcCoding.EncodeToString(p.salt), phcCoding.EncodeToString(p.key))
}

func parsePHC(s string) (params, error) {
	var p params
	if len(s) > 512 {
		return p, ErrBadHash
	}
	f := strings.Split(s, "$")
	if len(f) != 6 || f[0] != "" || f[1] != "argon2id" || f[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return p, ErrBadHash
	}
	if _, err := fmt.Sscanf(f[3], "m=%d,t=%d,p=%d", &p.memory, &p.passes, &p.threads); err != nil {
		return p, ErrBadHash
	}
	var err1, err2 error
	p.salt, err1 = phcCoding.DecodeString(f[4])
	p.key, err2 = phcCoding.DecodeString(f[5])
	// The text must be the only one for its meaning, so that no leftovers hide.
	if err1 != nil || err2 != nil || p.phc() != s ||
		p.passes < 1 || p.passes > maxPasses || p.threads < 1 || p.threads > maxThreads ||
		p.memory < 8*uint32(p.threads) || p.memory > maxMemory ||
		len(p.salt) < 8 || len(p.salt) > 64 || len(p.key) < 16 || len(p.key) > 64 {
		return params{}, ErrBadHash
	}
	return p, nil
}

// GeneratePassword returns 100 random bits as four groups of five letters and
// digits that cannot be mistaken for each other (Crockford's base 32).
func GeneratePassword() string {
	const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
	var raw [20]byte
	rand.Read(raw[:])
	var out strings.Builder
	for i, b := range raw {
		if i > 0 && i%5 == 0 {
			out.WriteByte('-')
		}
		out.WriteByte(alphabet[b&31])
	}
	return out.String()
}
