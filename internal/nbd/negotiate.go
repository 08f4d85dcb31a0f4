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
	"time"
)

// agreed is what client and server have settled when the handshake ends.
type agreed struct {
	size       int64
	flags      uint16
	min, max   int64 // sizes of requests
	structured bool
	contexts   map[uint32]string
}

// handshake negotiates over nc until ctx ends, and returns the connection that goes on, which is another if TLS began.
func handshake(ctx context.Context, nc net.Conn, o Options) (net.Conn, *bufio.Reader, agreed, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, agreed{}, err
	}
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	h := &shaker{nc: nc, br: bufio.NewReaderSize(nc, readBuffer)}
	err := h.run(ctx, o)
	if !stop() {
		// The deadline may be set at any moment now: the connection is of no use.
		err = errors.Join(ctx.Err(), err)
	}
	return h.nc, h.br, h.agreed, err
}

// shaker is the client's side of a handshake.
type shaker struct {
	nc net.Conn
	br *bufio.Reader
	agreed
}

func (h *shaker) run(ctx context.Context, o Options) error {
	var hello [18]byte
	if _, err := io.ReadFull(h.br, hello[:]); err != nil {
		return fmt.Errorf("read the server's greeting: %w", err)
	}
	if binary.BigEndian.Uint64(hello[:]) != magicInit || binary.BigEndian.Uint64(hello[8:]) != magicOption {
		return fmt.Errorf("%w: its greeting is not NBD's newstyle", ErrProtocol)
	}
	hand := binary.BigEndian.Uint16(hello[16:])
	if hand&handFixed == 0 {
		return fmt.Errorf("%w: it does not speak fixed newstyle", ErrProtocol)
	}
	if err := h.write(binary.BigEndian.AppendUint32(nil, uint32(hand&(handFixed|handNoZeroes)))); err != nil {
		return err
	}
	if o.TLS != nil {
		if err := h.startTLS(ctx, o.TLS); err != nil {
			return err
		}
	}
	if err := h.option(optStructured, nil, nil); err == nil {
		h.structured = true
	} else if !refused(err) {
		return err
	}
	if len(o.Contexts) > 0 && h.structured {
		if err := h.setMeta(o.Export, o.Contexts); err != nil {
			return err
		}
	}
	return h.enter(o.Export)
}

func (h *shaker) startTLS(ctx context.Context, conf *tls.Config) error {
	if err := h.option(optStartTLS, nil, nil); err != nil {
		return fmt.Errorf("the server does not start TLS: %w", err)
	}
	if h.br.Buffered() > 0 {
		return fmt.Errorf("%w: bytes in the clear after TLS was agreed", ErrProtocol)
	}
	tc := tls.Client(h.nc, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	h.nc, h.br = tc, bufio.NewReaderSize(tc, readBuffer)
	return nil
}

func (h *shaker) setMeta(export string, contexts []string) error {
	data := appendString(nil, export)
	data = binary.BigEndian.AppendUint32(data, uint32(len(contexts)))
	for _, c := range contexts {
		data = appendString(data, c)
	}
	h.contexts = map[uint32]string{}
	err := h.option(optSetMeta, data, func(kind uint32, b []byte) error {
		if kind != repMeta || len(b) < 4 {
			return fmt.Errorf("%w: answer %d to a choice of meta contexts", ErrProtocol, kind)
		}
		name := string(b[4:])
		for _, c := range contexts {
			if c == name {
				h.contexts[binary.BigEndian.Uint32(b)] = name
				return nil
			}
		}
		return fmt.Errorf("%w: a meta context that was not asked for, %q", ErrProtocol, name)
	})
	if refused(err) && !errors.Is(err, ErrNoExport) {
		return nil
	}
	return err
}

func (h *shaker) enter(export string) error {
	data := appendString(nil, export)
	data = binary.BigEndian.AppendUint16(data, 1)
	data = binary.BigEndian.AppendUint16(data, infoBlockSize)
	h.min, h.max, h.size = 1, maxPayload, -1
	err := h.option(optGo, data, func(kind uint32, b []byte) error {
		if kind != repInfo || len(b) < 2 {
			return fmt.Errorf("%w: answer %d to a choice of export", ErrProtocol, kind)
		}
		switch binary.BigEndian.Uint16(b) {
		case infoExport:
			if len(b) != 12 {
				return fmt.Errorf("%w: %d bytes about the export", ErrProtocol, len(b))
			}
			size := binary.BigEndian.Uint64(b[2:])
			if size > 1<<62 {
				return fmt.Errorf("%w: an export of %d bytes", ErrProtocol, size)
			}
			h.size, h.flags = int64(size), binary.BigEndian.Uint16(b[10:])
		case infoBlockSize:
			if len(b) != 14 {
				return fmt.Errorf("%w: %d bytes about block sizes", ErrProtocol, len(b))
			}
			lo, hi := int64(binary.BigEndian.Uint32(b[2:])), int64(binary.BigEndian.Uint32(b[10:]))
			if lo < 1 || lo&(lo-1) != 0 || lo > 64<<10 || hi < lo {
				return fmt.Errorf("%w: requests from %d to %d bytes", ErrProtocol, lo, hi)
			}
			h.min, h.max = lo, max(lo, min(hi, maxPayload)/lo*lo)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if h.size < 0 || h.flags&flagHas == 0 {
		return fmt.Errorf("%w: it let us in without telling the export's size", ErrProtocol)
	}
	return nil
}

// refusal is a server's no to an option.
type refusal struct {
	opt, kind uint32
	text      string
}

func (r *refusal) Error() string {
	why := fmt.Sprintf("error %#x", r.kind)
	switch r.kind {
	case repUnsup:
		why = "not supported"
	case repPolicy:
		why = "forbidden by the server"
	case repInvalid:
		why = "invalid"
	case repTLSReqd:
		why = "the server wants TLS"
	case repUnknown:
		why = ErrNoExport.Error()
	}
	if r.text != "" {
		why += fmt.Sprintf(" (%q)", r.text)
	}
	return fmt.Sprintf("option %d: %s", r.opt, why)
}

func (r *refusal) Is(target error) bool { return target == ErrNoExport && r.kind == repUnknown }

func refused(err error) bool {
	var r *refusal
	return errors.As(err, &r)
}

// option asks for one option and gives each answer before the last to each. An error that refused is for leaves the
// connection usable.
func (h *shaker) option(opt uint32, data []byte, each func(kind uint32, b []byte) error) error {
	msg := binary.BigEndian.AppendUint64(nil, magicOption)
	msg = binary.BigEndian.AppendUint32(msg, opt)
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(data)))
	if err := h.write(append(msg, data...)); err != nil {
		return err
	}
	for range maxOptions {
		var head [20]byte
		if _, err := io.ReadFull(h.br, head[:]); err != nil {
			return fmt.Errorf("read the answer to option %d: %w", opt, err)
		}
		kind, n := binary.BigEndian.Uint32(head[12:]), binary.BigEndian.Uint32(head[16:])
		if binary.BigEndian.Uint64(head[:]) != magicReply || binary.BigEndian.Uint32(head[8:]) != opt || n > maxAnswer {
			return fmt.Errorf("%w: its answer to option %d is none", ErrProtocol, opt)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(h.br, b); err != nil {
			return fmt.Errorf("read the answer to option %d: %w", opt, err)
		}
		switch {
		case kind == repAck:
			return nil
		case kind&repErr != 0:
			return &refusal{opt, kind, strings.ToValidUTF8(string(b[:min(len(b), 256)]), "")}
		case each == nil:
			return fmt.Errorf("%w: answer %d to option %d", ErrProtocol, kind, opt)
		}
		if err := each(kind, b); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: no end of answers to option %d", ErrProtocol, opt)
}

func (h *shaker) write(b []byte) error {
	if _, err := h.nc.Write(b); err != nil {
		return fmt.Errorf("write to the server: %w", err)
	}
	return nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
