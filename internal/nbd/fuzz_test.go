package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// enter goes through a handshake by hand, without structured replies, into the export named "".
func enter(t testing.TB, path string) net.Conn {
	t.Helper()
	for range 500 {
		nc, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		nc.Write(handshakeBytes())
		if _, err := io.ReadFull(nc, make([]byte, 18+10)); err == nil {
			return nc
		}
		nc.Close()
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("not let in")
	return nil
}

func handshakeBytes() []byte {
	b := binary.BigEndian.AppendUint32(nil, handFixed|handNoZeroes)
	b = append(b, rawOption(optExportName, nil)...)
	return b
}

func rawOption(opt uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, opt)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
}

func rawRequest(cmd uint16, off int64, n uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicRequest)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, 1)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	return binary.BigEndian.AppendUint32(b, n)
}

// script is a connection from which the other side is read as given; what is written vanishes.
type script struct{ io.Reader }

func (script) Write(b []byte) (int, error)      { return len(b), nil }
func (script) Close() error                     { return nil }
func (script) LocalAddr() net.Addr              { return &net.UnixAddr{Net: "unix"} }
func (script) RemoteAddr() net.Addr             { return &net.UnixAddr{Net: "unix"} }
func (script) SetDeadline(time.Time) error      { return nil }
func (script) SetReadDeadline(time.Time) error  { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }

// FuzzServer: a server given anything ends, without a panic, and never writes out of its export's bounds.
func FuzzServer(f *testing.F) {
	hello := binary.BigEndian.AppendUint32(nil, handFixed|handNoZeroes)
	name := appendString(nil, "")
	join := func(parts ...[]byte) []byte { return bytes.Join(append([][]byte{hello}, parts...), nil) }
	goes := rawOption(optGo, append(name, 0, 1, 0, 3))
	meta := rawOption(optSetMeta, appendString(binary.BigEndian.AppendUint32(name, 1), Allocation))
	sr := rawOption(optStructured, nil)
	f.Add([]byte{})
	f.Add(handshakeBytes())
	f.Add(join(sr, meta, goes, rawRequest(cmdRead, 0, 1<<20), rawRequest(cmdStatus, 0, 1<<20), rawRequest(cmdZeroes, 5, 7), rawRequest(cmdFlush, 0, 0)))
	f.Add(join(rawOption(optList, nil), rawOption(optListMeta, binary.BigEndian.AppendUint32(name, 0)), rawOption(optInfo, append(name, 0, 0)), rawOption(optAbort, nil)))
	f.Add(join(goes, rawRequest(cmdWrite, 3, 5), []byte("hello"), rawRequest(cmdTrim, -1, 1<<31), rawRequest(cmdDisc, 0, 0)))
	f.Add(join(rawOption(optSetMeta, []byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})))
	f.Add(join(rawOption(optGo, []byte{0xff, 0xff, 0xff, 0xff, 0, 0})))
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		x := &ram{b: make([]byte, 1<<20, 2<<20)}
		s := NewServer(ServerOptions{Lookup: func(_ context.Context, name string, _ Peer) (Export, func(), error) {
			if name != "" {
				return nil, nil, ErrNoExport
			}
			return x, func() {}, nil
		}})
		s.ServeConn(ctx, script{bytes.NewReader(b)})
		if ctx.Err() != nil {
			t.Fatal("no end")
		}
		if s.memory.free != s.o.Memory || len(s.memory.queue) != 0 {
			t.Fatalf("memory was not given back: %d of %d", s.memory.free, s.o.Memory)
		}
		if rest := x.b[len(x.b):cap(x.b)]; !isZero(rest) {
			t.Fatal("written out of bounds")
		}
	})
}

// FuzzClient: a client given anything ends, without a panic, and no call hangs or succeeds without its bytes.
func FuzzClient(f *testing.F) {
	answer := func(opt, kind uint32, data []byte) []byte {
		b := binary.BigEndian.AppendUint64(nil, magicReply)
		b = binary.BigEndian.AppendUint32(b, opt)
		b = binary.BigEndian.AppendUint32(b, kind)
		return append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
	}
	hello := binary.BigEndian.AppendUint64(nil, magicInit)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, handFixed|handNoZeroes)
	export := []byte{0, infoExport, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, flagHas}
	sizes := []byte{0, infoBlockSize, 0, 0, 2, 0, 0, 0, 0x10, 0, 0, 1, 0, 0}
	in := bytes.Join([][]byte{hello, answer(optStructured, repAck, nil),
		answer(optSetMeta, repMeta, append([]byte{0, 0, 0, 7}, Allocation...)), answer(optSetMeta, repAck, nil),
		answer(optGo, repInfo, export), answer(optGo, repInfo, sizes), answer(optGo, repAck, nil)}, nil)
	data := chunk(request{cookie: 1}, chunkDone, chunkData, 8+512)
	data = append(append(data, 0, 0, 0, 0, 0, 0, 0, 0), make([]byte, 512)...)
	hole := append(chunk(request{cookie: 2}, chunkDone, chunkHole, 12), 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0)
	status := append(chunk(request{cookie: 3}, chunkDone, chunkStatus, 12), 0, 0, 0, 7, 0, 0x10, 0, 0, 0, 0, 0, 3)
	fail := append(chunk(request{cookie: 1}, chunkDone, chunkError, 8), 0, 0, 0, 5, 0, 2, 'n', 'o')
	f.Add([]byte{})
	f.Add(in)
	f.Add(bytes.Join([][]byte{in, data, hole, status}, nil))
	f.Add(bytes.Join([][]byte{in, fail, simple(request{cookie: 2}, EIO)}, nil))
	f.Add(bytes.Join([][]byte{hello, answer(optStructured, repUnsup, nil), answer(optGo, repInfo, export), answer(optGo, repAck, nil), simple(request{cookie: 1}, 0), make([]byte, 700)}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		tc, br, a, err := handshake(ctx, script{bytes.NewReader(b)}, Options{Contexts: []string{Allocation}})
		if err != nil {
			return
		}
		c := idleConn(tc, br, 4, a)
		calls := []*call{{cmd: cmdRead, n: 512, p: make([]byte, 512)}, {cmd: cmdRead, off: 512, n: 512, p: make([]byte, 512)},
			{cmd: cmdStatus, n: 1 << 20, status: map[string][]Extent{}}}
		for i, q := range calls {
			q.done = make(chan struct{})
			c.slots <- struct{}{}
			c.calls[uint64(i+1)] = q
		}
		c.read()
		for _, q := range calls {
			<-q.done
			if q.cmd == cmdRead && q.err == nil && q.filled != int64(q.n) {
				t.Fatalf("a read of %d bytes with %d", q.n, q.filled)
			}
			at := q.off
			for _, e := range q.status[Allocation] {
				if e.Offset != at || e.Length <= 0 {
					t.Fatalf("extents with gaps: %v", q.status)
				}
				at += e.Length
			}
		}
		if ctx.Err() != nil {
			t.Fatal("no end")
		}
	})
}
