package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// errBye: the peer went in the middle of a handshake, as it may.
var errBye = errors.New("the peer went")

// greeter is the server's side of a handshake.
type greeter struct {
	s    *Server
	nc   net.Conn
	br   *bufio.Reader
	peer Peer

	zeroes     bool // the peer wants 124 of them after NBD_OPT_EXPORT_NAME
	structured bool

	x       Export
	name    string // of x
	release func()
	// chosen are meta contexts by id (index), of the export with the name metaOf.
	chosen []string
	metaOf string
}

// leave gives the export back.
func (h *greeter) leave() {
	if h.release != nil {
		h.release()
	}
	h.x, h.release = nil, nil
}

func (h *greeter) run(ctx context.Context) error {
	h.br = bufio.NewReaderSize(h.nc, readBuffer)
	hello := binary.BigEndian.AppendUint64(nil, magicInit)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, handFixed|handNoZeroes)
	if _, err := h.nc.Write(hello); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(h.br, flags[:]); err != nil {
		return errBye
	}
	f := binary.BigEndian.Uint32(flags[:])
	if f&^(handFixed|handNoZeroes) != 0 || f&handFixed == 0 {
		return fmt.Errorf("%w: flags %#x", ErrProtocol, f)
	}
	h.zeroes = f&handNoZeroes == 0
	for range maxOptions {
		in, err := h.option(ctx)
		if in || err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: no end of options", ErrProtocol)
}

// mute says that nothing may be told before TLS.
func (h *greeter) mute() bool {
	return h.s.o.TLS != nil && h.peer.TLS == nil && h.nc.LocalAddr().Network() != "unix"
}

// option carries out one option; in: the peer has its export.
func (h *greeter) option(ctx context.Context) (in bool, err error) {
	var head [16]byte
	if _, err := io.ReadFull(h.br, head[:]); err != nil {
		if err == io.EOF {
			return false, errBye
		}
		return false, err
	}
	opt, n := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	if binary.BigEndian.Uint64(head[:]) != magicOption {
		return false, fmt.Errorf("%w: this is no option", ErrProtocol)
	}
	if n > maxOption {
		if opt == optExportName || n > 1<<20 {
			return false, fmt.Errorf("%w: an option of %d bytes", ErrProtocol, n)
		}
		if _, err := h.br.Discard(int(n)); err != nil {
			return false, err
		}
		return false, h.answer(opt, repTooBig, nil)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(h.br, data); err != nil {
		return false, err
	}
	if h.mute() && opt != optStartTLS && opt != optAbort {
		if opt == optExportName {
			return false, errors.New("the peer did not begin TLS")
		}
		return false, h.answer(opt, repTLSReqd, []byte("begin TLS first"))
	}
	switch opt {
	case optExportName:
		return h.exportName(ctx, string(data))
	case optAbort:
		h.answer(opt, repAck, nil)
		return false, errBye
	case optList:
		return false, h.answer(opt, repPolicy, []byte("names are not told"))
	case optStartTLS:
		return false, h.startTLS(ctx, data)
	case optStructured:
		if n != 0 {
			return false, h.answer(opt, repInvalid, nil)
		}
		h.structured = true
		return false, h.answer(opt, repAck, nil)
	case optInfo, optGo:
		return h.info(ctx, opt, data)
	case optListMeta, optSetMeta:
		return false, h.meta(ctx, opt, data)
	}
	return false, h.answer(opt, repUnsup, nil)
}

func (h *greeter) answer(opt, kind uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicReply)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := h.nc.Write(append(b, data...))
	return err
}

func (h *greeter) startTLS(ctx context.Context, data []byte) error {
	switch {
	case h.s.o.TLS == nil:
		return h.answer(optStartTLS, repPolicy, []byte("this server has no TLS"))
	case h.peer.TLS != nil || len(data) != 0:
		return h.answer(optStartTLS, repInvalid, nil)
	}
	if h.br.Buffered() > 0 {
		return fmt.Errorf("%w: it speaks on before TLS has begun", ErrProtocol)
	}
	if err := h.answer(optStartTLS, repAck, nil); err != nil {
		return err
	}
	// What was agreed in the clear is forgotten.
	h.structured, h.chosen = false, nil
	h.leave()
	tc := tls.Server(h.nc, h.s.o.TLS)
	if err := tc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	state := tc.ConnectionState()
	h.nc, h.br, h.peer.TLS = tc, bufio.NewReaderSize(tc, readBuffer), &state
	return nil
}

// open has h.x be the export of a name.
func (h *greeter) open(ctx context.Context, name string) error {
	if h.x != nil && h.name == name {
		return nil
	}
	h.leave()
	x, release, err := h.s.o.Lookup(ctx, name, h.peer)
	if err != nil {
		return err
	}
	h.x, h.name, h.release = x, name, release
	return nil
}

// refuse answers an option whose export cannot be had.
func (h *greeter) refuse(opt uint32, err error) error {
	if errors.Is(err, ErrNoExport) {
		return h.answer(opt, repUnknown, nil)
	}
	h.s.o.Log.Info("an export was refused", "peer", h.peer.Addr, "err", err)
	return h.answer(opt, repPolicy, nil)
}

func (h *greeter) flags() uint16 {
	f := uint16(flagHas | flagMultiConn)
	if h.structured {
		f |= flagDF
	}
	if _, ok := h.x.(Writable); ok {
		return f | flagFlush | flagFUA | flagTrim | flagZeroes
	}
	return f | flagReadOnly
}

// exportName is the old way in, without a way to say no.
func (h *greeter) exportName(ctx context.Context, name string) (bool, error) {
	if len(name) > maxName {
		return false, fmt.Errorf("%w: a name of %d bytes", ErrProtocol, len(name))
	}
	if err := h.open(ctx, name); err != nil {
		return false, err
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(h.x.Size()))
	b = binary.BigEndian.AppendUint16(b, h.flags())
	if h.zeroes {
		b = append(b, make([]byte, 124)...)
	}
	_, err := h.nc.Write(b)
	return err == nil, err
}

// cut takes a string with its length off b.
func cut(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if n > maxName || int(n) > len(b)-4 {
		return "", nil, false
	}
	return string(b[4 : 4+n]), b[4+n:], true
}

func (h *greeter) info(ctx context.Context, opt uint32, data []byte) (bool, error) {
	name, rest, ok := cut(data)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(binary.BigEndian.Uint16(rest)) {
		return false, h.answer(opt, repInvalid, nil)
	}
	if err := h.open(ctx, name); err != nil {
		return false, h.refuse(opt, err)
	}
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(h.x.Size()))
	b = binary.BigEndian.AppendUint16(b, h.flags())
	if err := h.answer(opt, repInfo, b); err != nil {
		return false, err
	}
	b = binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, n := range []uint32{1, 64 << 10, maxPayload} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	if err := h.answer(opt, repInfo, b); err != nil {
		return false, err
	}
	err := h.answer(opt, repAck, nil)
	return opt == optGo && err == nil, err
}

// meta lists or chooses meta contexts.
func (h *greeter) meta(ctx context.Context, opt uint32, data []byte) error {
	name, rest, ok := cut(data)
	if !ok || len(rest) < 4 || opt == optSetMeta && !h.structured {
		return h.answer(opt, repInvalid, nil)
	}
	var queries []string
	count := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	for range min(count, maxOption/4) {
		var q string
		if q, rest, ok = cut(rest); !ok {
			return h.answer(opt, repInvalid, nil)
		}
		queries = append(queries, q)
	}
	if len(rest) != 0 || int(count) != len(queries) {
		return h.answer(opt, repInvalid, nil)
	}
	if err := h.open(ctx, name); err != nil {
		return h.refuse(opt, err)
	}
	if opt == optSetMeta {
		h.chosen, h.metaOf = nil, name
	}
	if c, ok := h.x.(Contexter); ok {
		for id, have := range c.Contexts() {
			if !wanted(have, queries, opt == optListMeta) {
				continue
			}
			if opt == optSetMeta {
				id = len(h.chosen)
				h.chosen = append(h.chosen, have)
			} else {
				id = 0
			}
			if err := h.answer(opt, repMeta, append(binary.BigEndian.AppendUint32(nil, uint32(id)), have...)); err != nil {
				return err
			}
		}
	}
	return h.answer(opt, repAck, nil)
}

// wanted tells whether a context is asked for: by name, or in a list by the beginning of one that ends in a colon.
func wanted(have string, queries []string, list bool) bool {
	if list && len(queries) == 0 {
		return true
	}
	for _, q := range queries {
		if q == have || list && strings.HasSuffix(q, ":") && strings.HasPrefix(have, q) {
			return true
		}
	}
	return false
}
