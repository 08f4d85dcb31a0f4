package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"strings"
	"time"
)

// TokenPrefix begins every session and API token, so that secret scanners can
// find a leaked one.
const TokenPrefix = "drv_"

const tokenBytes = 32

var tokenCoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// What stores answer, wrapped or plain.
var (
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("changed meanwhile")
)

// Token is what is stored of a session or an API token.
type Token struct {
	// ID is the first half of Hash in hexadecimal; it is the key in the store.
	ID string
	// Hash is the SHA-256 of the token's text: 256 random bits need no salt.
	Hash []byte
	// Session is set for log-ins and clear for API tokens.
	Session bool
	User    string
	// Title is the user's own name for an API token.
	Title    string
	Scopes   []Scope
	Created  time.Time
	Expires  time.Time // zero for never
	LastUsed time.Time // to within a minute
	// Source is from where it was made.
	Source string
}

// TokenStore keeps tokens.
type TokenStore interface {
	// CreateToken stores a token whose ID must be new.
	CreateToken(ctx context.Context, t Token) error
	// GetToken fails with ErrNotFound.
	GetToken(ctx context.Context, id string) (Token, error)
	// TouchToken notes the last use, if the token still exists.
	TouchToken(ctx context.Context, id string, at time.Time) error
	// DeleteToken succeeds if there is none.
	DeleteToken(ctx context.Context, id string) error
	// ListTokens returns a user's tokens, or everybody's for an empty name.
	ListTokens(ctx context.Context, user string) ([]Token, error)
}

// newSecret returns a token's text with its id and hash.
func newSecret() (text, id string, hash []byte) {
	var raw [tokenBytes]byte
	rand.Read(raw[:])
	text = TokenPrefix + tokenCoding.EncodeToString(raw[:])
	id, hash = identify(text)
	return text, id, hash
}

func identify(text string) (id string, hash []byte) {
	h := sha256.Sum256([]byte(text))
	return hex.EncodeToString(h[:len(h)/2]), h[:]
}

// wellFormed reports whether a text can be a token, before any store is asked.
func wellFormed(text string) bool {
	rest, ok := strings.CutPrefix(text, TokenPrefix)
	if !ok || len(rest) != tokenCoding.EncodedLen(tokenBytes) {
		return false
	}
	_, err := tokenCoding.DecodeString(rest)
	return err == nil
}

func (t Token) matches(hash []byte) bool { return subtle.ConstantTimeCompare(t.Hash, hash) == 1 }
