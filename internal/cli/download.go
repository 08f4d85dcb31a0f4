package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/backup/files"

	"connectrpc.com/connect"
)

// fetched is files on their way out of a restore point: one as it is (raw, with its size), or several as a tar archive.
type fetched interface {
	send(w io.Writer, begin func(raw bool, size int64) error) error
}

// download is what the manager sends.
type download struct {
	stream *connect.ServerStreamForClient[v1.DownloadResponse]
}

func (d *download) send(w io.Writer, begin func(raw bool, size int64) error) error {
	begun := false
	for d.stream.Receive() {
		m := d.stream.Msg()
		if !begun {
			begun = true
			if err := begin(m.GetRaw(), m.GetSize()); err != nil {
				return err
			}
		}
		if _, err := w.Write(m.GetData()); err != nil {
			return err
		}
	}
	if err := d.stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !begun {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// pulled is what a helper of this process sends.
type pulled struct {
	ctx   context.Context
	s     *files.Session
	paths []files.Path
}

func (p *pulled) send(w io.Writer, begin func(raw bool, size int64) error) error {
	return p.s.Download(p.ctx, p.paths, w, begin)
}

// receiveFiles writes what is fetched to a directory, or as it is to standard output. base is the name of a single file.
func (a *App) receiveFiles(ctx context.Context, from fetched, dir string, asIs bool, base string) error {
	if asIs {
		return from.send(a.Out, func(bool, int64) error { return nil })
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var to io.WriteCloser
	var file *os.File
	var want, got int64
	unpacked := make(chan error, 1)
	err := from.send(writerFunc(func(b []byte) (int, error) {
		got += int64(len(b))
		return to.Write(b)
	}), func(raw bool, size int64) (err error) {
		if !raw {
			r, w := io.Pipe()
			to = w
			go func() {
				u, err := files.Unpack(ctx, r, dir, files.UnpackOptions{Replace: true})
				r.CloseWithError(err)
				if err == nil {
					a.say("%d files and directories in %s", u.Files, dir)
				}
				if len(u.Skipped) > 0 {
					a.say("left out: %s; --tar has all", strings.Join(u.Skipped, ", "))
				}
				unpacked <- err
			}()
			return nil
		}
		want = size
		file, err = os.OpenFile(filepath.Join(dir, base), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
		to = file
		return err
	})
	switch {
	case file != nil:
		if err = errors.Join(err, file.Close()); err == nil && got != want {
			err = fmt.Errorf("%s: %d of %d bytes arrived", base, got, want)
		}
		if err == nil {
			a.say("%s", filepath.Join(dir, base))
		}
	case to != nil:
		if pw, ok := to.(*io.PipeWriter); ok {
			pw.CloseWithError(err)
		}
		if end := <-unpacked; end != nil {
			err = end // what stopped the other side
		}
	}
	return err
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
