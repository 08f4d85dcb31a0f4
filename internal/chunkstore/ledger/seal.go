package ledger

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"io"

	"drover/internal/chunkstore/keys"
)

const (
	saltSize = 32
	// maxObject is the most that a transaction or a checkpoint may have; 1.6 million packs take 140 MB.
	maxTransaction = 64 << 20
	maxCheckpoint  = 1 << 30

	useEntry      = "log entry"
	useCheckpoint = "checkpoint"
)

// seal makes an object: a salt, and the plain bytes under a key that only this salt makes. Two writers who try the same number with
// different transactions would otherwise use one nonce twice.
func seal(key []byte, use string, seq int64, previous, plain []byte, random io.Reader) ([]byte, error) {
	out := make([]byte, saltSize, saltSize+len(plain)+16)
	if _, err := io.ReadFull(random, out); err != nil {
		return nil, err
	}
	aead, nonce, err := opener(key, use, seq, out[:saltSize])
	if err != nil {
		return nil, err
	}
	return aead.Seal(out, nonce, plain, previous), nil
}

func open(key []byte, use string, seq int64, previous, object []byte) ([]byte, error) {
	if len(object) < saltSize+16 {
		return nil, fmt.Errorf("%w: it is cut off", ErrDamaged)
	}
	aead, nonce, err := opener(key, use, seq, object[:saltSize])
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nonce, object[saltSize:], previous)
	if err != nil {
		return nil, fmt.Errorf("%w: its seal is broken, or it is not the one that followed", ErrDamaged)
	}
	return plain, nil
}

func opener(key []byte, use string, seq int64, salt []byte) (cipher.AEAD, []byte, error) {
	block, err := aes.NewCipher(keys.Derive(use, key, salt))
	if err != nil {
		return nil, nil, err
	}
	aead, err := cipher.NewGCM(block)
	nonce := binary.LittleEndian.AppendUint64(nil, uint64(seq))
	return aead, append(nonce, 0, 0, 0, 0), err
}
