package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"drover/internal/blob"
)

// dying is a store whose process is killed: after so many writes nothing works any more. The write at the boundary is done or
// not, and its answer is lost.
type dying struct {
	blob.Store
	left *atomic.Int64
	done bool // the write at the boundary is done
}

var errKilled = errors.New("killed")

// write counts a write down.
func (d dying) write(do func() error) error {
	switch n := d.left.Add(-1); {
	case n > 0:
		return do()
	case n == 0 && d.done:
		_ = do()
	}
	return errKilled
}

func (d dying) dead() error {
	if d.left.Load() <= 0 {
		return errKilled
	}
	return nil
}

func (d dying) Put(ctx context.Context, name string, data []byte) error {
	return d.write(func() error { return d.Store.Put(ctx, name, data) })
}

func (d dying) Delete(ctx context.Context, name string) error {
	return d.write(func() error { return d.Store.Delete(ctx, name) })
}

func (d dying) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := d.dead(); err != nil {
		return nil, err
	}
	return d.Store.Get(ctx, name, limit)
}

func (d dying) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := d.dead(); err != nil {
		return err
	}
	return d.Store.ReadAt(ctx, name, p, off)
}

func (d dying) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := d.Store.Create(ctx, name)
	if err == nil {
		err = d.dead()
	}
	return dyingWriter{w, d}, err
}

type dyingWriter struct {
	blob.Writer
	d dying
}

func (w dyingWriter) Commit() error { return w.d.write(w.Writer.Commit) }

// TestUpkeepKilledAtEachWrite kills collection, compaction, rewriting, repair and copying at each of their writes. All points are there
// after it, and the next run does the work.
func TestUpkeepKilledAtEachWrite(t *testing.T) {
	works := map[string]func(ctx context.Context, r, source *Repository) error{
		"collect": func(ctx context.Context, r, _ *Repository) error {
			_, err := r.Collect(ctx, CollectOptions{Share: 0.95})
			return err
		},
		"rewrite": func(ctx context.Context, r, _ *Repository) error {
			if _, err := r.Rewrite(ctx, RewriteOptions{}); err != nil {
				return err
			}
			_, err := r.Collect(ctx, CollectOptions{})
			return err
		},
		"repair": func(ctx context.Context, r, _ *Repository) error {
			res, err := r.Scrub(ctx, ScrubOptions{})
			if err == nil && len(res.Damaged) > 0 {
				err = ErrDamaged
			}
			if err == nil {
				_, err = r.Collect(ctx, CollectOptions{})
			}
			return err
		},
		"copy": func(ctx context.Context, r, source *Repository) error {
			res, err := r.Copy(ctx, NewCopySource(source), CopyOptions{})
			if err == nil && len(res.Failed) > 0 {
				err = res.Failed[0].Err
			}
			return err
		},
	}
	for name, work := range works {
		t.Run(name, func(t *testing.T) {
			source, _ := chainOf(t, CreateOptions{}, 1<<15)
			finished := false
			for n := int64(1); !finished; n += 1 + n/16 {
				if n > 400 {
					t.Fatal("it never ends")
				}
				f, points := chainOf(t, CreateOptions{Parity: true}, 1<<15)
				if _, err := f.r.Protect(t.Context()); err != nil {
					t.Fatal(err)
				}
				f.forget(points[0], points[2])
				if name == "repair" {
					f.spoil(f.objects("data/")[0], func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
				}
				d := dying{f.st, &atomic.Int64{}, n%2 == 0}
				d.left.Store(1 << 40)
				r, err := Open(t.Context(), d, OpenOptions{Passphrase: "secret"})
				if err != nil {
					t.Fatal(err)
				}
				d.left.Store(n)
				err = work(t.Context(), r, source.r)
				finished = d.left.Load() > 0
				if finished && err != nil {
					t.Fatal(err)
				}
				r.Close()

				// A new process, some of whose sessions are dead. It takes them for dead at once.
				again, err := Open(t.Context(), f.st, OpenOptions{Passphrase: "secret"})
				if err != nil {
					t.Fatalf("killed at write %d: %v", n, err)
				}
				f.r = again
				if name != "repair" {
					f.check()
				}
				if err := work(t.Context(), again, source.r); err != nil {
					t.Fatalf("killed at write %d: %v", n, err)
				}
				f.check()
				if _, err := again.Collect(t.Context(), CollectOptions{Dead: 1}); err != nil {
					t.Fatalf("killed at write %d: %v", n, err)
				}
				f.check()
				for id := range source.want {
					if name != "copy" {
						break
					}
					if !bytes.Equal(f.read(again, id), source.want[id]) {
						t.Fatalf("killed at write %d: the copy reads wrongly", n)
					}
				}
				for _, o := range append(f.objects("data/"), f.objects("meta/")...) {
					id, _ := parsePackName(o)
					if p, ok := again.ledger.Pack(id); !ok || p.Condemned != 0 {
						t.Fatalf("killed at write %d: %s stays, condemned at %d", n, o, p.Condemned)
					}
				}
				again.Close()
			}
		})
	}
}
