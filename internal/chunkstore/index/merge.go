package index

import (
	"bytes"
	"container/heap"
	"encoding/binary"
	"fmt"
	"math"
	"os"

	"drover/internal/chunkstore/pack"
)

// fanout is how many runs of like size become one.
const fanout = 4

// tier is a run's class of size: each is fanout times as large as the one below.
func tier(entries int64, base int) int {
	t := 0
	for n := int64(base); entries > n && n < maxEntries; n *= fanout {
		t++
	}
	return t
}

// choose picks the runs to merge next: all of the lowest tier that has enough of them; none if there is none.
func choose(runs []*run, base int) []*run {
	tiers := map[int][]*run{}
	top := 0
	for _, r := range runs {
		// What is dead mostly is worth a merge by itself.
		if r.deads > 0 && r.deads >= int(r.packs)/2 {
			return []*run{r}
		}
		t := tier(r.entries, base)
		tiers[t] = append(tiers[t], r)
		top = max(top, t)
	}
	for t := range top + 1 {
		if len(tiers[t]) >= fanout {
			return tiers[t][:min(len(tiers[t]), 4*fanout)]
		}
	}
	return nil
}

// merge writes one run of several, without what is dead in them. number says for each run and pack what it is in the new
// one: with it the caller marks what died meanwhile.
func merge(root *os.Root, name string, repository [16]byte, runs []*run, stop <-chan struct{}) (r *run, number [][]uint32, err error) {
	total := int64(0)
	for _, r := range runs {
		total += r.entries
	}
	w, err := newWriter(root, name, repository, total)
	if err != nil {
		return nil, nil, err
	}
	defer w.abort()
	packs, number, err := mergePacks(runs)
	if err != nil {
		return nil, nil, err
	}
	var h cursors
	for i, r := range runs {
		c := &cursor{run: r, order: i, number: number[i], buf: make([]byte, aheadPages*pageSize)}
		if ok, err := c.next(); err != nil {
			return nil, nil, err
		} else if ok {
			h = append(h, c)
		}
	}
	heap.Init(&h)
	for n := 0; len(h) > 0; n++ {
		c := h[0]
		if n%(1<<16) == 0 {
			select {
			case <-stop:
				return nil, nil, errStopped
			default:
			}
		}
		if num := binary.LittleEndian.Uint32(c.entry[idSize:]); int(num) >= len(c.number) {
			return nil, nil, fmt.Errorf("index run %s: pack %d of %d: %w", c.run.name, num, len(c.number), errDamaged)
		} else if to := c.number[num]; to != gone {
			if err := w.add((*pack.ID)(c.entry[:idSize]), to, binary.LittleEndian.Uint16(c.entry[idSize+4:])); err != nil {
				return nil, nil, err
			}
		}
		ok, err := c.next()
		if err != nil {
			return nil, nil, err
		}
		if ok {
			heap.Fix(&h, 0)
		} else {
			heap.Pop(&h)
		}
	}
	r, err = w.finish(packs)
	return r, number, err
}

// gone stands for a pack that is left out.
const gone = math.MaxUint32

// mergePacks gives the living packs of all runs in order, and for each run the new number of each of its packs. A pack
// that lives in one run and is dead in another counts where it lives.
func mergePacks(runs []*run) (packs []pack.PackID, number [][]uint32, err error) {
	type source struct {
		ids []pack.PackID
		num []uint32
	}
	src := make([]source, len(runs))
	number = make([][]uint32, len(runs))
	for i, r := range runs {
		number[i] = make([]uint32, r.packs)
		err := r.eachPack(func(num uint32, id pack.PackID) error {
			number[i][num] = gone
			if !r.isDead(num) {
				src[i].ids = append(src[i].ids, id)
				src[i].num = append(src[i].num, num)
			}
			return nil
		})
		if err != nil {
			return nil, nil, fmt.Errorf("index run %s: %w", r.name, err)
		}
	}
	for {
		best := -1
		for i := range src {
			if len(src[i].ids) > 0 && (best < 0 || bytes.Compare(src[i].ids[0][:], src[best].ids[0][:]) < 0) {
				best = i
			}
		}
		if best < 0 {
			return packs, number, nil
		}
		s := &src[best]
		if n := len(packs); n == 0 || packs[n-1] != s.ids[0] {
			packs = append(packs, s.ids[0])
		}
		number[best][s.num[0]] = uint32(len(packs) - 1)
		s.ids, s.num = s.ids[1:], s.num[1:]
	}
}

const aheadPages = 32

// cursor walks a run's entries.
type cursor struct {
	run    *run
	order  int
	number []uint32
	entry  []byte
	at     int   // in the page
	turned int64 // pages begun
	page   page
	ahead  []byte // of buf: pages read and not yet begun
	buf    []byte
}

func (c *cursor) next() (bool, error) {
	for c.at == c.page.count() {
		if c.turned == c.run.pages {
			return false, nil
		}
		if err := c.turn(); err != nil {
			return false, fmt.Errorf("index run %s: %w", c.run.name, err)
		}
	}
	c.entry = c.page.at(c.at, entrySize)
	c.at++
	return true, nil
}

// turn takes the next page; many are read at once.
func (c *cursor) turn() error {
	if len(c.ahead) == 0 {
		n := min(aheadPages, c.run.pages-c.turned)
		c.ahead = c.buf[:n*pageSize]
		if _, err := c.run.file.ReadAt(c.ahead, c.run.pagesOff()+c.turned*pageSize); err != nil {
			return err
		}
	}
	if err := c.page.read(bytes.NewReader(c.ahead[:pageSize]), 0, entrySize); err != nil {
		return err
	}
	c.ahead = c.ahead[pageSize:]
	c.turned++
	c.at = 0
	return nil
}

type cursors []*cursor

func (h cursors) Len() int { return len(h) }
func (h cursors) Less(i, j int) bool {
	return bytes.Compare(h[i].entry[:idSize], h[j].entry[:idSize]) < 0
}
func (h cursors) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *cursors) Push(x any)   { *h = append(*h, x.(*cursor)) }
func (h *cursors) Pop() any {
	old := *h
	c := old[len(old)-1]
	*h = old[:len(old)-1]
	return c
}
