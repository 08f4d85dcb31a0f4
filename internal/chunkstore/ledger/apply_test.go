package ledger

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"
)

func b16(n byte) []byte { return bytes.Repeat([]byte{n}, 16) }

func begin(n byte, pins ...byte) *Transaction {
	b := &Begin{Session: b16(n)}
	for _, p := range pins {
		b.Pins = append(b.Pins, b16(p))
	}
	return &Transaction{Kind: &Transaction_Begin{Begin: b}}
}

func reader(n byte) *Transaction {
	return &Transaction{Kind: &Transaction_Begin{Begin: &Begin{Session: b16(n), Reader: true}}}
}

func pk(n byte) *Pack { return &Pack{Id: b16(n), Size: 1000, Records: 3, Generation: 1} }

func pks(ids ...byte) (out []*Pack) {
	for _, n := range ids {
		out = append(out, pk(n))
	}
	return out
}

func ids(ns ...byte) (out [][]byte) {
	for _, n := range ns {
		out = append(out, b16(n))
	}
	return out
}

func add(s byte, packs ...byte) *Transaction {
	return &Transaction{Kind: &Transaction_Add{Add: &Add{Session: b16(s), Packs: pks(packs...)}}}
}

func pt(id, pack byte) *Point {
	return &Point{Id: b16(id), Disks: []*Disk{{Name: "vda", Size: 1 << 20, Root: &Place{Pack: b16(pack), Record: 1, Id: bytes.Repeat([]byte{9}, 32)}}}}
}

func commitTx(s byte, more bool, packs []byte, points ...*Point) *Transaction {
	return &Transaction{Kind: &Transaction_Commit{Commit: &Commit{Session: b16(s), Packs: pks(packs...), Points: points, More: more}}}
}

func end(s byte) *Transaction {
	return &Transaction{Kind: &Transaction_End{End: &End{Session: b16(s)}}}
}

func forget(points ...byte) *Transaction {
	return &Transaction{Kind: &Transaction_Forget{Forget: &Forget{Points: ids(points...)}}}
}

func condemn(seen int64, packs ...byte) *Transaction {
	c := &Condemn{Seen: seen}
	for _, p := range packs {
		c.Packs = append(c.Packs, &Moved{Pack: b16(p)})
	}
	return &Transaction{Kind: &Transaction_Condemn{Condemn: c}}
}

func move(seen int64, from, to byte) *Transaction {
	return &Transaction{Kind: &Transaction_Condemn{Condemn: &Condemn{Seen: seen, Packs: []*Moved{{Pack: b16(from), To: ids(to)}}, Added: pks(to)}}}
}

func reprieve(packs ...byte) *Transaction {
	return &Transaction{Kind: &Transaction_Reprieve{Reprieve: &Packs{Packs: ids(packs...)}}}
}

func drop(seen int64, packs ...byte) *Transaction {
	return &Transaction{Kind: &Transaction_Drop{Drop: &Drop{Seen: seen, Packs: ids(packs...)}}}
}

func orphan(packs ...byte) *Transaction {
	return &Transaction{Kind: &Transaction_Drop{Drop: &Drop{Orphans: ids(packs...)}}}
}

func dropped(packs ...byte) *Transaction {
	return &Transaction{Kind: &Transaction_Dropped{Dropped: &Packs{Packs: ids(packs...)}}}
}

func rotate(g int32) *Transaction {
	return &Transaction{Kind: &Transaction_Rotate{Rotate: &Rotate{Generation: g}}}
}

func require(w, c int32) *Transaction {
	return &Transaction{Kind: &Transaction_Require{Require: &Require{Writer: w, Collector: c}}}
}

func keep(p byte, k bool) *Transaction {
	return &Transaction{Kind: &Transaction_Keep{Keep: &Keep{Point: b16(p), Keep: k}}}
}

// TestRules plays transactions; the last one is refused with the error, or taken.
func TestRules(t *testing.T) {
	base := []*Transaction{begin(1), commitTx(1, false, []byte{10, 11}, pt(20, 10))} // seq 2: point 20 in packs 10, 11
	for name, c := range map[string]struct {
		play []*Transaction
		want error
	}{
		"begin twice":                    {[]*Transaction{begin(2), begin(2)}, ErrExists},
		"begin with a point":             {[]*Transaction{begin(2, 20)}, nil},
		"begin with a gone point":        {[]*Transaction{begin(2, 21)}, ErrGone},
		"begin with a forgotten point":   {[]*Transaction{begin(3), forget(20), begin(2, 20)}, ErrGone},
		"begin with a bad id":            {[]*Transaction{{Kind: &Transaction_Begin{Begin: &Begin{Session: []byte{1}}}}}, ErrRefused},
		"add":                            {[]*Transaction{begin(2), add(2, 12)}, nil},
		"add by nobody":                  {[]*Transaction{add(2, 12)}, ErrEnded},
		"add after the end":              {[]*Transaction{begin(2), end(2), add(2, 12)}, ErrEnded},
		"add after a last commit":        {[]*Transaction{add(1, 12)}, ErrEnded},
		"add by a reader":                {[]*Transaction{reader(2), add(2, 12)}, ErrRefused},
		"a reader lives":                 {[]*Transaction{reader(2), add(2)}, nil},
		"nobody lives":                   {[]*Transaction{add(2)}, ErrEnded},
		"add of a later data key":        {[]*Transaction{begin(2), {Kind: &Transaction_Add{Add: &Add{Session: b16(2), Packs: []*Pack{{Id: b16(12), Generation: 2}}}}}}, ErrRefused},
		"add of an orphan being dropped": {[]*Transaction{begin(2), orphan(12), add(2, 12)}, ErrGone},
		"commit":                         {[]*Transaction{begin(2), commitTx(2, true, []byte{12}, pt(21, 12)), commitTx(2, true, nil, pt(22, 12))}, nil},
		"commit by nobody":               {[]*Transaction{commitTx(2, true, nil, pt(21, 10))}, ErrEnded},
		"commit by a reader":             {[]*Transaction{reader(2), commitTx(2, true, nil, pt(21, 10))}, ErrRefused},
		"commit of a point again":        {[]*Transaction{begin(2), commitTx(2, true, nil, pt(20, 10))}, ErrExists},
		"commit of one point twice":      {[]*Transaction{begin(2), commitTx(2, true, nil, pt(21, 10), pt(21, 10))}, ErrExists},
		"commit of a forgotten point":    {[]*Transaction{begin(2), forget(20), commitTx(2, true, nil, pt(20, 10))}, nil},
		"commit without its pack":        {[]*Transaction{begin(2), commitTx(2, true, nil, pt(21, 12))}, ErrGone},
		"commit on a dropped pack":       {[]*Transaction{condemn(2, 11), drop(3, 11), begin(2), commitTx(2, true, nil, pt(21, 11))}, ErrGone},
		"end twice":                      {[]*Transaction{begin(2), end(2), end(2)}, nil},
		"forget":                         {[]*Transaction{forget(20)}, nil},
		"forget twice":                   {[]*Transaction{forget(20), forget(20)}, nil},
		"forget of a kept point":         {[]*Transaction{keep(20, true), forget(20)}, ErrKept},
		"forget of one let go":           {[]*Transaction{keep(20, true), keep(20, false), forget(20)}, nil},
		"keep of nothing":                {[]*Transaction{keep(21, true)}, ErrGone},
		"condemn":                        {[]*Transaction{condemn(2, 10)}, nil},
		"condemn of nothing":             {[]*Transaction{condemn(2, 99)}, ErrGone},
		"condemn twice":                  {[]*Transaction{condemn(2, 10), condemn(3, 10)}, ErrRefused},
		"condemn twice at once":          {[]*Transaction{condemn(2, 10, 10)}, ErrRefused},
		"condemn of what came later":     {[]*Transaction{begin(2), add(2, 12), condemn(2, 12)}, ErrRefused},
		"condemn by a walk to come":      {[]*Transaction{condemn(3, 10)}, ErrRefused},
		"move":                           {[]*Transaction{move(2, 10, 12)}, nil},
		"move to nowhere":                {[]*Transaction{{Kind: &Transaction_Condemn{Condemn: &Condemn{Seen: 2, Packs: []*Moved{{Pack: b16(10), To: ids(99)}}}}}}, ErrRefused},
		"move to a condemned one":        {[]*Transaction{{Kind: &Transaction_Condemn{Condemn: &Condemn{Seen: 2, Packs: []*Moved{{Pack: b16(10), To: ids(11)}, {Pack: b16(11)}}}}}}, ErrRefused},
		"reprieve":                       {[]*Transaction{condemn(2, 10), reprieve(10)}, nil},
		"reprieve of a dropped one":      {[]*Transaction{condemn(2, 10), drop(3, 10), reprieve(10)}, ErrGone},
		"drop":                           {[]*Transaction{condemn(2, 10), drop(3, 10)}, nil},
		"drop again":                     {[]*Transaction{condemn(2, 10), drop(3, 10), drop(3, 10)}, nil},
		"drop of a live one":             {[]*Transaction{drop(2, 10)}, ErrRefused},
		"drop of nothing":                {[]*Transaction{drop(2, 99)}, ErrGone},
		"drop of a reprieved one":        {[]*Transaction{condemn(2, 10), reprieve(10), drop(4, 10)}, ErrRefused},
		"drop by a walk to come":         {[]*Transaction{condemn(2, 10), drop(4, 10)}, ErrRefused},
		"drop, a session open since":     {[]*Transaction{begin(2), condemn(3, 10), drop(4, 10)}, ErrRefused},
		"drop, a reader open since":      {[]*Transaction{reader(2), condemn(3, 10), drop(4, 10)}, ErrRefused},
		"drop, that session ended":       {[]*Transaction{begin(2), condemn(3, 10), end(2), drop(5, 10)}, nil},
		"drop, a later session open":     {[]*Transaction{condemn(2, 10), begin(2), drop(4, 10)}, nil},
		"drop, its commit not walked":    {[]*Transaction{begin(2), condemn(3, 10), commitTx(2, false, nil, pt(21, 11)), drop(4, 10)}, ErrRefused},
		"drop, its commit walked":        {[]*Transaction{begin(2), condemn(3, 10), commitTx(2, false, nil, pt(21, 11)), drop(5, 10)}, nil},
		"drop, a commit of a later one":  {[]*Transaction{condemn(2, 10), begin(2), commitTx(2, false, nil, pt(21, 11)), drop(3, 10)}, nil},
		"drop of an orphan that is none": {[]*Transaction{orphan(10)}, ErrRefused},
		"dropped":                        {[]*Transaction{condemn(2, 10), drop(3, 10), dropped(10)}, nil},
		"dropped, but it is there":       {[]*Transaction{dropped(10)}, ErrRefused},
		"rotate":                         {[]*Transaction{rotate(2), rotate(3)}, nil},
		"rotate too far":                 {[]*Transaction{rotate(3)}, ErrRefused},
		"rotate back":                    {[]*Transaction{rotate(2), rotate(1)}, ErrRefused},
		"require":                        {[]*Transaction{require(1, 2), require(2, 2)}, nil},
		"require less":                   {[]*Transaction{require(1, 2), require(1, 1)}, ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewState()
			all := append(append([]*Transaction(nil), base...), c.play...)
			for i, tx := range all {
				before, err := s.encode()
				if err != nil {
					t.Fatal(err)
				}
				err = s.Apply(tx, [32]byte{byte(i)})
				if i < len(all)-1 {
					if err != nil {
						t.Fatalf("transaction %d: %v", i+1, err)
					}
					continue
				}
				if !errors.Is(err, c.want) || c.want == nil && err != nil {
					t.Fatalf("got %v, want %v", err, c.want)
				}
				if err != nil {
					// A void transaction changes nothing but the number.
					s.Seq--
					s.Hash = [32]byte{byte(i - 1)}
					if after, _ := s.encode(); !bytes.Equal(before, after) {
						t.Error("a refused transaction changed the state")
					}
				}
			}
		})
	}
}

func play(t *testing.T, s *State, txs ...*Transaction) {
	t.Helper()
	for _, tx := range txs {
		if err := s.Apply(tx, [32]byte{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestForgottenPointsAreWalkedWhileSessionsAreOpen(t *testing.T) {
	s := NewState()
	play(t, s, begin(1), commitTx(1, true, []byte{10}, pt(20, 10)), begin(2, 20), end(1), forget(20))
	if len(s.List()) != 0 || len(s.Walk()) != 1 {
		t.Fatalf("%d points, %d to walk: want 0, 1", len(s.List()), len(s.Walk()))
	}
	play(t, s, begin(3), end(2))
	if len(s.Walk()) != 0 {
		t.Error("it is walked though who could read it has ended")
	}
}

func TestNewerPrograms(t *testing.T) {
	s := NewState()
	if err := s.Apply(&Transaction{}, [32]byte{}); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(s.Writable(), ErrNewer) {
		t.Error("it writes after a transaction that it does not know")
	}
	s = NewState()
	play(t, s, require(WriterVersion, CollectorVersion+1))
	if s.Writable() != nil || !errors.Is(s.Collectable(), ErrNewer) {
		t.Errorf("writable %v, collectable %v", s.Writable(), s.Collectable())
	}
	play(t, s, require(WriterVersion+1, CollectorVersion+1))
	if !errors.Is(s.Writable(), ErrNewer) {
		t.Error("it writes where a newer writer is required")
	}
}

// TestCheckpointIsTheState plays random transactions, most of them refused, and compares a state that was saved and read on the way.
func TestCheckpointIsTheState(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		a := NewState()
		b := a
		for i := range 300 {
			tx := random(rnd, a)
			ea := a.Apply(tx, [32]byte{byte(i)})
			if b != a {
				if eb := b.Apply(proto.Clone(tx).(*Transaction), [32]byte{byte(i)}); (ea == nil) != (eb == nil) {
					t.Fatalf("seed %d, %d: %v and %v", seed, i, ea, eb)
				}
			}
			if rnd.IntN(20) == 0 {
				bytes, err := a.encode()
				if err != nil {
					t.Fatal(err)
				}
				if b, err = decodeState(bytes); err != nil {
					t.Fatal(err)
				}
			}
		}
		ab, _ := a.encode()
		bb, _ := b.encode()
		if !reflect.DeepEqual(ab, bb) {
			t.Fatalf("seed %d: the states differ", seed)
		}
	}
}

func random(rnd *rand.Rand, s *State) *Transaction {
	n := func() byte { return byte(1 + rnd.IntN(9)) }
	seen := max(0, s.Seq-int64(rnd.IntN(4)))
	switch rnd.IntN(13) {
	case 0:
		return begin(n())
	case 1:
		return begin(n(), n())
	case 2:
		return add(n(), n())
	case 3, 4:
		return commitTx(n(), rnd.IntN(2) == 0, []byte{n()}, pt(n(), n()))
	case 5:
		return end(n())
	case 6:
		return forget(n())
	case 7:
		return condemn(seen, n(), n())
	case 8:
		return move(seen, n(), n())
	case 9:
		return reprieve(n())
	case 10:
		return drop(seen, n())
	case 11:
		return dropped(n())
	}
	return keep(n(), rnd.IntN(2) == 0)
}

func FuzzApply(f *testing.F) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		var b []byte
		s := NewState()
		for range 20 {
			tx, _ := proto.Marshal(random(rnd, s))
			b = append(append(b, byte(len(tx)), byte(len(tx)>>8)), tx...)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := NewState()
		for len(b) > 2 {
			n := min(len(b)-2, int(b[0])|int(b[1])<<8)
			var tx Transaction
			if proto.Unmarshal(b[2:2+n], &tx) == nil {
				before := s.Seq
				_ = s.Apply(&tx, [32]byte{})
				if s.Seq != before+1 {
					t.Fatal("a transaction took no number")
				}
			}
			b = b[2+n:]
		}
		saved, err := s.encode()
		if err != nil {
			return // text that is no UTF-8
		}
		again, err := decodeState(saved)
		if err != nil && s.Seq > 0 {
			t.Fatal(err)
		}
		if err == nil {
			if b, _ := again.encode(); !bytes.Equal(b, saved) {
				t.Fatal("a checkpoint of a checkpoint differs")
			}
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	s := NewState()
	for _, tx := range []*Transaction{begin(1), commitTx(1, true, []byte{10, 11}, pt(20, 10)), begin(2, 20), forget(20), move(4, 10, 12)} {
		_ = s.Apply(tx, [32]byte{1})
	}
	b, _ := s.encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeState(b)
		if err != nil {
			return
		}
		for n := range byte(12) {
			_ = s.Apply(drop(s.Seq, n), [32]byte{})
			_ = s.Apply(end(n), [32]byte{})
			_ = s.Apply(reprieve(n), [32]byte{})
		}
		_ = s.Walk()
	})
}
