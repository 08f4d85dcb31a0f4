package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// A join token's text is joinPrefix and the lower-case base32 (RFC 4648, no
// padding) of
//
//	version (1) | CA fingerprint (32) | id (10) | secret (32) |
//	addresses (1), each: length (1) | host:port |
//	CRC-32 of all before (4, big endian)
//
// so that it is one word to a double click, and a mistyped one is refused
// before anything is sent.
const (
	joinPrefix   = "drover-join-"
	joinVersion  = 1
	joinFixed    = 1 + sha256.Size + joinID + joinSecret + 1 + 4
	joinID       = 10
	joinSecret   = 32
	maxAddresses = 8
)

var joinCoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// ErrBadToken says that a text is not a join token.
var ErrBadToken = errors.New("not a join token: copy the whole word that `drover host token` printed")

// JoinToken lets one host join. Its text is a secret until it is used.
type JoinToken struct {
	// ID names the token in lists and in the store.
	ID string
	// CA is the only CA that the joining host shall believe.
	CA Fingerprint
	// Addresses are where the manager may be reached, host:port, best first.
	Addresses []string

	secret [joinSecret]byte
}

// NewJoinToken makes a token with a fresh id and secret.
func NewJoinToken(ca Fingerprint, addresses []string) (JoinToken, error) {
	t := JoinToken{CA: ca, Addresses: addresses}
	if len(addresses) == 0 || len(addresses) > maxAddresses {
		return JoinToken{}, fmt.Errorf("join token: %d manager addresses: 1 to %d are possible", len(addresses), maxAddresses)
	}
	for _, a := range addresses {
		if err := checkAddress(a); err != nil {
			return JoinToken{}, fmt.Errorf("join token: %w", err)
		}
	}
	var id [joinID]byte
	rand.Read(id[:])
	rand.Read(t.secret[:])
	t.ID = joinCoding.EncodeToString(id[:])
	return t, nil
}

// Text returns the word to hand to the host.
func (t JoinToken) Text() string {
	raw := append([]byte{joinVersion}, t.CA[:]...)
	id, _ := joinCoding.DecodeString(t.ID)
	raw = append(raw, id...)
	raw = append(raw, t.secret[:]...)
	raw = append(raw, byte(len(t.Addresses)))
	for _, a := range t.Addresses {
		raw = append(raw, byte(len(a)))
		raw = append(raw, a...)
	}
	raw = binary.BigEndian.AppendUint32(raw, crc32.ChecksumIEEE(raw))
	return joinPrefix + joinCoding.EncodeToString(raw)
}

// String names the token without its secret.
func (t JoinToken) String() string { return "join token " + t.ID }

// LogValue keeps the secret out of logs.
func (t JoinToken) LogValue() slog.Value { return slog.StringValue(t.String()) }

// hash is what is stored in place of the secret: 256 random bits need no salt.
func (t JoinToken) hash() [sha256.Size]byte { return sha256.Sum256(t.secret[:]) }

// matches compares the secret with a stored hash in constant time.
func (t JoinToken) matches(hash []byte) bool {
	h := t.hash()
	return subtle.ConstantTimeCompare(h[:], hash) == 1
}

// ParseJoinToken reads a token's text. White space around it is allowed. Each
// token has exactly one text.
func ParseJoinToken(text string) (JoinToken, error) {
	text = strings.TrimSpace(text)
	rest, ok := strings.CutPrefix(text, joinPrefix)
	if !ok || len(rest) > 4096 {
		return JoinToken{}, ErrBadToken
	}
	raw, err := joinCoding.DecodeString(rest)
	if err != nil || len(raw) < joinFixed {
		return JoinToken{}, ErrBadToken
	}
	body, sum := raw[:len(raw)-4], raw[len(raw)-4:]
	if crc32.ChecksumIEEE(body) != binary.BigEndian.Uint32(sum) {
		return JoinToken{}, ErrBadToken
	}
	if body[0] != joinVersion {
		return JoinToken{}, fmt.Errorf("join token of version %d: this Drover reads version %d: use the manager's version on the host", body[0], joinVersion)
	}
	body = body[1:]
	var t JoinToken
	body = body[copy(t.CA[:], body):]
	t.ID = joinCoding.EncodeToString(body[:joinID])
	body = body[joinID:]
	body = body[copy(t.secret[:], body):]
	count := int(body[0])
	body = body[1:]
	if count == 0 || count > maxAddresses {
		return JoinToken{}, ErrBadToken
	}
	for range count {
		if len(body) == 0 || len(body)-1 < int(body[0]) {
			return JoinToken{}, ErrBadToken
		}
		n := int(body[0])
		a := string(body[1 : 1+n])
		body = body[1+n:]
		if err := checkAddress(a); err != nil {
			return JoinToken{}, fmt.Errorf("join token: %w", err)
		}
		t.Addresses = append(t.Addresses, a)
	}
	if len(body) != 0 || t.Text() != text {
		return JoinToken{}, ErrBadToken
	}
	return t, nil
}

// checkAddress accepts host:port, where host is an IP address or a DNS name.
func checkAddress(a string) error {
	host, port, err := net.SplitHostPort(a)
	if err != nil || len(a) > 255 {
		return fmt.Errorf("manager address %q: want host:port", a)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("manager address %q: port %q is not 1 to 65535", a, port)
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if !dnsName(strings.ToLower(host)) {
		return fmt.Errorf("manager address %q: %q is neither an IP address nor a DNS name", a, host)
	}
	return nil
}
