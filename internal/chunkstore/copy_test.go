package chunkstore

import (
	"context"
	"errors"
	"testing"

	"drover/internal/chunkstore/pack"
)

// chain makes a repository with some points of one disk.
func chain(t *testing.T, o CreateOptions) (f *fixture, points []PointID) {
	return chainOf(t, o, 1<<18)
}

// chainOf makes one of disks of twelve parts.
func chainOf(t *testing.T, o CreateOptions, part int) (f *fixture, points []PointID) {
	f = newFixture(t, o)
	data := noise(1, 12*part)
	last := PointID{}
	for n := range 4 {
		copy(data[n*part:], noise(uint64(n+2), part))
		clear(data[8*part+n*part/4 : 8*part+(n+2)*part/4])
		last = f.store(data, last)
		points = append(points, last)
	}
	return f, points
}

func TestCopy(t *testing.T) {
	for name, o := range map[string]CreateOptions{"another key": {}, "no key": {Unencrypted: true}, "another hash": {Hash: "sha256", Parity: true}} {
		f, points := chain(t, CreateOptions{})
		to := newFixture(t, o)
		res, err := to.r.Copy(t.Context(), NewCopySource(f.r), CopyOptions{Points: points[1:3]})
		if err != nil || res.Points != 2 {
			t.Fatalf("%s: %+v, %v", name, res, err)
		}
		to.want = map[PointID][]byte{points[1]: f.want[points[1]], points[2]: f.want[points[2]]}
		to.check()
		before := res.Bytes
		res, err = to.r.Copy(t.Context(), NewCopySource(f.r), CopyOptions{})
		if err != nil || res.Points != 2 || res.Had != 2 {
			t.Fatalf("%s: %+v, %v", name, res, err)
		}
		if res.Bytes >= before {
			t.Errorf("%s: %d bytes were read, and %d the first time", name, res.Bytes, before)
		}
		to.want = f.want
		to.check()
		if res, err = to.r.Copy(t.Context(), NewCopySource(f.r), CopyOptions{}); err != nil || res.Points != 0 || res.Bytes != 0 {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
		p, _ := to.r.Point(points[0])
		q, _ := f.r.Point(points[0])
		if p.Vm != q.Vm || !p.Time.AsTime().Equal(q.Time.AsTime()) {
			t.Errorf("%s: the point became %v", name, p)
		}
	}
}

// cutSource fails after so many blocks.
type cutSource struct {
	CopySource
	left int
}

var errCut = errors.New("the line is cut")

func (s *cutSource) Open(ctx context.Context, id PointID) (CopyPoint, error) {
	p, err := s.CopySource.Open(ctx, id)
	return &cutPoint{p, s}, err
}

type cutPoint struct {
	CopyPoint
	s *cutSource
}

func (p *cutPoint) Blocks(ctx context.Context, disk string, block int64, count int, each func(block int64, id ID, codec pack.Codec, raw int, payload []byte) error) error {
	return p.CopyPoint.Blocks(ctx, disk, block, count, func(block int64, id ID, codec pack.Codec, raw int, payload []byte) error {
		if p.s.left--; p.s.left < 0 {
			return errCut
		}
		return each(block, id, codec, raw, payload)
	})
}

func TestCopyGoesOn(t *testing.T) {
	f, points := chain(t, CreateOptions{})
	to := newFixture(t, CreateOptions{})
	for left := 100; ; left += 200 {
		res, err := to.r.Copy(t.Context(), &cutSource{NewCopySource(f.r), left}, CopyOptions{Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		for id := range f.want {
			if _, ok := to.r.Point(id); ok {
				to.want[id] = f.want[id]
			}
		}
		to.check()
		if len(res.Failed) == 0 {
			break
		}
		if !errors.Is(res.Failed[0].Err, errCut) {
			t.Fatal(res.Failed[0].Err)
		}
	}
	if len(to.want) != len(points) {
		t.Errorf("%d points of %d", len(to.want), len(points))
	}
}

func TestCopyOfADamagedPoint(t *testing.T) {
	f, points := chain(t, CreateOptions{})
	f.spoil(f.objects("data/")[0], func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	to := newFixture(t, CreateOptions{})
	res, err := to.r.Copy(t.Context(), NewCopySource(f.r), CopyOptions{})
	if err != nil || len(res.Failed) == 0 || res.Points+len(res.Failed) != len(points) {
		t.Fatalf("%+v, %v", res, err)
	}
	for id := range f.want {
		if _, ok := to.r.Point(id); ok {
			to.want[id] = f.want[id]
		}
	}
	to.check()
}

func TestCopyBetweenBlockSizes(t *testing.T) {
	f, _ := chain(t, CreateOptions{})
	to := newFixture(t, CreateOptions{BlockSize: 8192})
	if res, err := to.r.Copy(t.Context(), NewCopySource(f.r), CopyOptions{}); err == nil {
		t.Errorf("copied: %+v", res)
	}
}

func TestUsage(t *testing.T) {
	f, points := chain(t, CreateOptions{})
	u, err := f.r.Usage(t.Context())
	if err != nil || u.Points != 4 || u.Stored != f.size() || u.Live > u.Stored || u.Live < u.Stored*9/10 || u.Meta == 0 {
		t.Errorf("%+v, %v, %d bytes", u, err, f.size())
	}
	frees, err := f.r.Frees(t.Context(), points[3])
	if err != nil || frees <= 0 || frees >= u.Stored {
		t.Fatalf("%d, %v", frees, err)
	}
	f.forget(points[3])
	before := f.size()
	f.collect(CollectOptions{Share: 1})
	if freed := before - f.size(); freed < frees/2 || freed > frees*2 {
		t.Errorf("freed %d, foretold %d", freed, frees)
	}
	f.check()
}
