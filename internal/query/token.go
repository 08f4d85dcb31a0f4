package query

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"math"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// A page token is, in unpadded URL-safe base64: the version byte 1, the first 8 bytes of the SHA-256 of message type,
// filter and order, then for each order key a byte that says whether it has a value and the value (8 bytes big endian, or
// a varint length and a string), then the first 8 bytes of the SHA-256 of all that. It says only where in a list
// to go on, so the checksum is there against mistakes and needs no key: a forged token shows nothing that the list itself
// would not.
const (
	tokenVersion = 1
	tokenSum     = 8
	maxToken     = 64 << 10
)

func binding(md protoreflect.MessageDescriptor, filter, order string) (b [8]byte) {
	var in []byte
	for _, s := range []string{string(md.FullName()), filter, order} {
		in = binary.AppendUvarint(in, uint64(len(s)))
		in = append(in, s...)
	}
	sum := sha256.Sum256(in)
	copy(b[:], sum[:])
	return b
}

func (q *Query) encode(r rank) string {
	b := append([]byte{tokenVersion}, q.bound[:]...)
	for i, k := range q.order {
		if !r[i].set {
			b = append(b, 0)
			continue
		}
		b = append(b, 1)
		switch k.class {
		case classString:
			b = binary.AppendUvarint(b, uint64(len(r[i].s)))
			b = append(b, r[i].s...)
		case classUint:
			b = binary.BigEndian.AppendUint64(b, r[i].u)
		case classFloat:
			b = binary.BigEndian.AppendUint64(b, math.Float64bits(r[i].f))
		default:
			b = binary.BigEndian.AppendUint64(b, uint64(r[i].i))
		}
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(append(b, sum[:tokenSum]...))
}

func (q *Query) decode(token string) (rank, error) {
	if len(token) > maxToken {
		return nil, ErrToken
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < 1+len(q.bound)+tokenSum || b[0] != tokenVersion {
		return nil, ErrToken
	}
	body, got := b[:len(b)-tokenSum], b[len(b)-tokenSum:]
	want := sha256.Sum256(body)
	if subtle.ConstantTimeCompare(got, want[:tokenSum]) != 1 || [8]byte(body[1:9]) != q.bound {
		return nil, ErrToken
	}
	body = body[9:]
	r := make(rank, len(q.order))
	for i, k := range q.order {
		if len(body) == 0 || body[0] > 1 {
			return nil, ErrToken
		}
		r[i].set = body[0] == 1
		if body = body[1:]; !r[i].set {
			continue
		}
		if k.class == classString {
			n, w := binary.Uvarint(body)
			if w <= 0 || n > uint64(len(body)-w) {
				return nil, ErrToken
			}
			r[i].s, body = string(body[w:w+int(n)]), body[w+int(n):]
			continue
		}
		if len(body) < 8 {
			return nil, ErrToken
		}
		v := binary.BigEndian.Uint64(body)
		body = body[8:]
		switch k.class {
		case classUint:
			r[i].u = v
		case classFloat:
			r[i].f = math.Float64frombits(v)
		default:
			r[i].i = int64(v)
		}
	}
	if len(body) != 0 {
		return nil, ErrToken
	}
	return r, nil
}
