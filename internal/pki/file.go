package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	blockCertificate = "CERTIFICATE"
	blockKey         = "PRIVATE KEY"
	maxFile          = 1 << 20
)

// writeFile makes path hold data, durable and all at once, with mode 0600. With
// fresh set an existing file is left alone and the error is fs.ErrExist.
func writeFile(path string, data []byte, fresh bool) (err error) {
	dir := filepath.Dir(path)
	// CreateTemp makes the file 0600.
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.Remove(f.Name()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if fresh {
		// A link, unlike a rename, fails if the name is taken.
		err = os.Link(f.Name(), path)
	} else {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readFile returns the contents of a file that holds a private key, which must
// be closed to everybody but its owner.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s holds a private key and has mode %04o: set it to 0600", path, info.Mode().Perm())
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes: not a key and certificate", path, info.Size())
	}
	return os.ReadFile(path)
}

// encodePair returns PEM text: the key, then the chain, leaf first.
func encodePair(key crypto.Signer, chain ...*x509.Certificate) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der})
	return append(out, EncodeCertificates(chain...)...), nil
}

// decodePair reads what encodePair wrote and checks that the key belongs to the
// first certificate.
func decodePair(text []byte) (crypto.Signer, []*x509.Certificate, error) {
	var signer crypto.Signer
	var rest []byte
	for block, tail := pem.Decode(text); block != nil; block, tail = pem.Decode(tail) {
		switch {
		case block.Type == blockKey && signer == nil:
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("private key: %w", err)
			}
			var ok bool
			if signer, ok = key.(crypto.Signer); !ok {
				return nil, nil, fmt.Errorf("private key: %T cannot sign", key)
			}
		case block.Type == blockCertificate:
			rest = append(rest, pem.EncodeToMemory(block)...)
		default:
			return nil, nil, fmt.Errorf("PEM block %q: want one private key and its certificates", block.Type)
		}
	}
	if signer == nil {
		return nil, nil, errors.New("no private key found")
	}
	chain, err := DecodeCertificates(rest)
	if err != nil {
		return nil, nil, err
	}
	if !samePublic(signer.Public(), chain[0].PublicKey) {
		return nil, nil, errors.New("the private key is not the certificate's")
	}
	return signer, chain, nil
}

func samePublic(a, b crypto.PublicKey) bool {
	eq, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && eq.Equal(b)
}

// EncodeCertificates returns certificates as PEM text.
func EncodeCertificates(chain ...*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range chain {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: c.Raw}))
	}
	return out.Bytes()
}

// DecodeCertificates reads PEM text with one certificate or more and nothing
// else.
func DecodeCertificates(text []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != blockCertificate {
			return nil, fmt.Errorf("PEM block %q: want a certificate", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(chain)+1, err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errors.New("no certificate found")
	}
	if len(bytes.TrimSpace(text)) != 0 {
		return nil, errors.New("there is text after the last certificate")
	}
	return chain, nil
}
