package index

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"

	"drover/internal/chunkstore/pack"
)

// writer makes a run of entries that come in order. The filter and the pages are written side by side.
type writer struct {
	h        header
	root     *os.Root
	name     string
	file     *os.File
	pages    *bufio.Writer
	filter   *bufio.Writer
	page     page
	block    [filterBlock]byte
	blockNum uint64
	fence    []uint64
}

// newWriter begins a run of at most so many entries.
func newWriter(root *os.Root, name string, repository [16]byte, entries int64) (*writer, error) {
	f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	w := &writer{root: root, name: name, file: f, h: header{repository: repository, blocks: filterBlocks(entries)}}
	w.filter = bufio.NewWriterSize(io.NewOffsetWriter(f, w.h.filterOff()), 64<<10)
	w.pages = bufio.NewWriterSize(io.NewOffsetWriter(f, w.h.pagesOff()), 256<<10)
	return w, nil
}

// abort drops the file. It does nothing after finish.
func (w *writer) abort() {
	if w.file != nil {
		w.file.Close()
		w.file = nil
		_ = w.root.Remove(w.name) // what stays is removed at the next opening
	}
}

func (w *writer) add(id *pack.ID, pack uint32, record uint16) error {
	if at := filterAt(id, w.h.blocks); at != w.blockNum {
		if err := w.blocks(at); err != nil {
			return err
		}
	}
	filterSet(w.block[:], id)
	var e [entrySize]byte
	copy(e[:], id[:])
	binary.LittleEndian.PutUint32(e[idSize:], pack)
	binary.LittleEndian.PutUint16(e[idSize+4:], record)
	if w.page.count() == 0 && w.h.pages%fenceEvery == 0 {
		w.fence = append(w.fence, prefix(id[:]))
	}
	w.h.entries++
	w.page.add(e[:])
	if w.page.count() == perPage {
		return w.flush(&w.h.pages)
	}
	return nil
}

// blocks writes filter blocks up to, but without, a number.
func (w *writer) blocks(to uint64) error {
	for ; w.blockNum < to; w.blockNum++ {
		if _, err := w.filter.Write(w.block[:]); err != nil {
			return err
		}
		clear(w.block[:])
	}
	return nil
}

func (w *writer) flush(n *int64) error {
	if w.page.count() == 0 {
		return nil
	}
	w.page.seal()
	_, err := w.pages.Write(w.page[:])
	clear(w.page[:])
	*n++
	return err
}

// finish writes the packs, which are in order, and makes the file durable and open as a run.
func (w *writer) finish(packs []pack.PackID) (*run, error) {
	if err := errors.Join(w.blocks(w.h.blocks), w.flush(&w.h.pages)); err != nil {
		return nil, err
	}
	var packPages int64
	for _, id := range packs {
		w.page.add(id[:])
		if w.page.count() == perPacks {
			if err := w.flush(&packPages); err != nil {
				return nil, err
			}
		}
	}
	if err := w.flush(&packPages); err != nil {
		return nil, err
	}
	w.h.packs = uint32(len(packs))
	w.h.packPages = uint32(packPages)
	fences := make([]byte, 0, 8*len(w.fence))
	for _, f := range w.fence {
		fences = binary.LittleEndian.AppendUint64(fences, f)
	}
	w.h.fences = crc32.Checksum(fences, castagnoli)
	if _, err := w.pages.Write(fences); err != nil {
		return nil, err
	}
	if err := errors.Join(w.filter.Flush(), w.pages.Flush()); err != nil {
		return nil, err
	}
	if _, err := w.file.WriteAt(w.h.marshal(), 0); err != nil {
		return nil, err
	}
	if err := w.file.Sync(); err != nil {
		return nil, err
	}
	r, err := openRun(w.root, w.name, w.h.repository)
	if err != nil {
		return nil, err
	}
	w.file.Close()
	w.file = nil
	return r, nil
}

// writeTable makes a run of a table whose entries do not change any more, without the packs that are dead. number says
// for each pack of the table what it is in the run.
func writeTable(root *os.Root, name string, repository [16]byte, t *table, dead []bool) (r *run, number []uint32, err error) {
	w, err := newWriter(root, name, repository, int64(len(t.ids)))
	if err != nil {
		return nil, nil, err
	}
	defer w.abort()
	ids, number := t.sorted(dead)
	for _, id := range t.entries() {
		l := t.ids[id]
		if number[l.pack] == gone {
			continue
		}
		if err := w.add(&id, number[l.pack], l.record); err != nil {
			return nil, nil, err
		}
	}
	r, err = w.finish(ids)
	return r, number, err
}
