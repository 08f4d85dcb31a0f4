package chunkstore

import (
	"context"
	"errors"

	"drover/internal/blob"
	"drover/internal/chunkstore/ledger"
)

// Block reads a block by its id: for who must compare what another says to have. ok is false if the repository does not have it, or not to read
// yet: what this session has just written. The bytes are not hashed.
func (s *Session) Block(ctx context.Context, id ID) (data []byte, ok bool, err error) {
	at, ok := s.find(id)
	if !ok {
		return nil, false, nil
	}
	if _, known := s.r.ledger.Pack(at.pack); !known {
		return nil, false, nil
	}
	data, err = s.r.record(ctx, at, id)
	if errors.Is(err, ErrGone) || errors.Is(err, blob.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return data, len(data) == s.r.config.BlockSize, nil
}

// Revision is the number of the last transaction that was read: while it stays, nothing has changed.
func (r *Repository) Revision() int64 { return r.ledger.Seq() }

// Load tells what the log says of the repository's size, without reading anything else.
type Load struct {
	// Bytes of objects: all, those of condemned packs among them, and of the blocks in them.
	Stored, Condemned, Raw int64
	Damaged                int // packs
	Sessions               int
	Marks                  map[string]*ledger.Mark // the last of each kind
}

// Load counts.
func (r *Repository) Load() Load {
	l := Load{Marks: map[string]*ledger.Mark{}}
	r.ledger.View(func(s *ledger.State) {
		l.Sessions = len(s.Sessions)
		for _, p := range s.Packs {
			l.Stored += p.Size
			if !p.Meta {
				l.Raw += p.Raw
			}
			if p.Condemned != 0 {
				l.Condemned += p.Size
			}
			if p.Damaged {
				l.Damaged++
			}
		}
		for k, m := range s.Marks {
			l.Marks[k] = m
		}
	})
	return l
}
