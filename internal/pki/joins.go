package pki

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"drover/internal/clock"
)

// Why a token does not let a host in, and what a [JoinStore] answers.
var (
	// ErrJoinRefused covers unknown ids and wrong secrets alike.
	ErrJoinRefused = errors.New("the join token is not known here: make a new one with `drover host token`")
	ErrJoinExpired = errors.New("the join token has expired: make a new one with `drover host token`")
	ErrJoinUsed    = errors.New("the join token was used by another host: make a new one with `drover host token`")

	// ErrJoinNotFound and ErrJoinConflict are what a JoinStore returns, wrapped
	// or plain.
	ErrJoinNotFound = errors.New("join record not found")
	ErrJoinConflict = errors.New("join record changed meanwhile")
)

// JoinRecord is what is stored of a token.
type JoinRecord struct {
	ID         string
	SecretHash []byte // SHA-256 of the secret
	Created    time.Time
	Expires    time.Time
	CreatedBy  string
	// Site and Name, if set, are what the joining host shall be.
	Site string
	Name string
	// Claim is nil until the token is used.
	Claim *JoinClaim
}

// JoinClaim is the use of a token: which key became which host.
type JoinClaim struct {
	Name    string
	UID     string
	KeyHash []byte // SHA-256 of the public key (PKIX DER)
	At      time.Time
}

// JoinStore keeps records. Revisions are the store's; a record's first is not 0.
type JoinStore interface {
	// CreateJoin stores a record that must not exist.
	CreateJoin(ctx context.Context, r JoinRecord) error
	// GetJoin fails with ErrJoinNotFound.
	GetJoin(ctx context.Context, id string) (r JoinRecord, revision int64, err error)
	// UpdateJoin replaces the record if its revision is still this one, else
	// fails with ErrJoinConflict.
	UpdateJoin(ctx context.Context, r JoinRecord, revision int64) error
}

// Joins makes and redeems join tokens.
type Joins struct {
	Clock clock.Clock
	Store JoinStore
	CA    Fingerprint
}

// JoinOptions say what a new token is for.
type JoinOptions struct {
	Addresses []string      // where the manager is reached
	Lifetime  time.Duration // an hour if zero, 30 days at most
	CreatedBy string
	Site      string
	Name      string
}

// Create makes a token. Its text can be had now and never again.
func (j *Joins) Create(ctx context.Context, o JoinOptions) (JoinToken, JoinRecord, error) {
	if o.Lifetime == 0 {
		o.Lifetime = time.Hour
	}
	if o.Lifetime < 0 || o.Lifetime > 30*24*time.Hour {
		return JoinToken{}, JoinRecord{}, fmt.Errorf("create join token: lifetime %v: up to 30 days are possible", o.Lifetime)
	}
	t, err := NewJoinToken(j.CA, o.Addresses)
	if err != nil {
		return JoinToken{}, JoinRecord{}, err
	}
	hash := t.hash()
	now := j.Clock.Now()
	r := JoinRecord{
		ID: t.ID, SecretHash: hash[:], Created: now, Expires: now.Add(o.Lifetime),
		CreatedBy: o.CreatedBy, Site: o.Site, Name: o.Name,
	}
	if err := j.Store.CreateJoin(ctx, r); err != nil {
		return JoinToken{}, JoinRecord{}, fmt.Errorf("create join token: %w", err)
	}
	return t, r, nil
}

// Redeem uses a token for one public key, and returns the record with the
// claim that holds. The caller proposes the name and the uid; if the record
// has a name of its own, that one counts. The same key may redeem again until
// the token expires, and gets the first claim: a host whose answer was lost
// asks again. Any other key is refused with [ErrJoinUsed].
func (j *Joins) Redeem(ctx context.Context, text string, pub crypto.PublicKey, name, uid string) (JoinRecord, error) {
	t, err := ParseJoinToken(text)
	if err != nil {
		return JoinRecord{}, err
	}
	key, err := keyHash(pub)
	if err != nil {
		return JoinRecord{}, err
	}
	for {
		r, rev, err := j.Store.GetJoin(ctx, t.ID)
		if errors.Is(err, ErrJoinNotFound) {
			return JoinRecord{}, ErrJoinRefused
		}
		if err != nil {
			return JoinRecord{}, fmt.Errorf("redeem %s: %w", t, err)
		}
		if !t.matches(r.SecretHash) {
			return JoinRecord{}, ErrJoinRefused
		}
		now := j.Clock.Now()
		if !now.Before(r.Expires) {
			return JoinRecord{}, ErrJoinExpired
		}
		if r.Claim != nil {
			if subtle.ConstantTimeCompare(r.Claim.KeyHash, key) != 1 {
				return JoinRecord{}, ErrJoinUsed
			}
			return r, nil
		}
		if r.Name != "" {
			name = r.Name
		}
		if err := (Identity{Role: RoleHost, Name: name, UID: uid}).Validate(); err != nil {
			return JoinRecord{}, fmt.Errorf("redeem %s: %w", t, err)
		}
		r.Claim = &JoinClaim{Name: name, UID: uid, KeyHash: key, At: now}
		err = j.Store.UpdateJoin(ctx, r, rev)
		if err == nil {
			return r, nil
		}
		// Somebody was faster: look at what they made of it.
		if !errors.Is(err, ErrJoinConflict) {
			return JoinRecord{}, fmt.Errorf("redeem %s: %w", t, err)
		}
	}
}

func keyHash(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	h := sha256.Sum256(der)
	return h[:], nil
}
