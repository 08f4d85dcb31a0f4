package pack

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"sync"
)

const footerNumber = 1<<32 - 1

// Sealer seals and opens the payloads of one pack. Without a key it passes them on.
type Sealer struct {
	aead   cipher.AEAD
	nonces sync.Pool
}

// NewSealer takes the pack's key, of 32 bytes; nil: the repository is not encrypted.
func NewSealer(key []byte) (*Sealer, error) {
	s := &Sealer{}
	s.nonces.New = func() any { return new([12]byte) }
	if key == nil {
		return s, nil
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	s.aead, err = cipher.NewGCM(block)
	return s, err
}

// Overhead is how much longer sealing makes a payload.
func (s *Sealer) Overhead() int {
	if s.aead == nil {
		return 0
	}
	return TagSize
}

// Sealed reports whether there is a key.
func (s *Sealer) Sealed() bool { return s.aead != nil }

// Seal appends the sealed payload to dst. dst[len:] and plain are the same bytes or do not overlap. head is the record's head.
func (s *Sealer) Seal(dst, plain []byte, number uint32, head []byte) []byte {
	if s.aead == nil {
		return append(dst, plain...)
	}
	nonce := s.nonces.Get().(*[12]byte)
	binary.LittleEndian.PutUint32(nonce[:], number)
	dst = s.aead.Seal(dst, nonce[:], plain, head)
	s.nonces.Put(nonce)
	return dst
}

// Open appends the plain payload to dst, under the same rule. Without a key it returns stored itself if dst is nil.
func (s *Sealer) Open(dst, stored []byte, number uint32, head []byte) ([]byte, error) {
	if s.aead == nil {
		if dst == nil {
			return stored, nil
		}
		return append(dst, stored...), nil
	}
	nonce := s.nonces.Get().(*[12]byte)
	binary.LittleEndian.PutUint32(nonce[:], number)
	dst, err := s.aead.Open(dst, nonce[:], stored, head)
	s.nonces.Put(nonce)
	if err != nil {
		return nil, fmt.Errorf("%w: the seal is broken", ErrDamaged)
	}
	return dst, nil
}
