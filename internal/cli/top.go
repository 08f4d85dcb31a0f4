package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"drover/internal/cli/client"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (a *App) topCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use: "top", Short: "Hosts and VMs with what they use, live", Args: want(), ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "Show hosts and VMs, the busiest first, and keep that current. Keys: j and k or the arrows scroll, q quits. With --once, or when the output is no terminal, print it once.",
		Example: "  drover top\n  drover top --once",
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			b := newBoard()
			if err := b.load(ctx, a, c); err != nil {
				return err
			}
			in, inTTY := terminal(a.In)
			out, outTTY := terminal(a.Out)
			if once || !inTTY || !outTTY {
				_, err := fmt.Fprintln(a.Out, strings.Join(b.lines(a.now(), a.coloured(a.Out)), "\n"))
				return err
			}
			return a.topLive(ctx, c, b, in, out)
		}),
	}
	cmd.Flags().BoolVar(&once, "once", false, "print it once and end")
	return cmd
}

// The terminal's other screen, its cursor, and how to clear (ECMA-48, xterm).
const (
	screenOn  = "\x1b[?1049h\x1b[?25l"
	screenOff = "\x1b[?25h\x1b[?1049l"
	homeward  = "\x1b[H"
	clearLine = "\x1b[K"
	clearRest = "\x1b[J"
)

// topLive draws until q is pressed or ctx ends. The terminal is put back in any case.
func (a *App) topLive(ctx context.Context, c *client.Client, b *board, in, out *os.File) error {
	restore, err := rawTerminal(in)
	if err != nil {
		return err
	}
	defer restore()
	fmt.Fprint(out, screenOn)
	defer fmt.Fprint(out, screenOff)

	ctx, cancel := context.WithCancel(ctx)
	followed := make(chan error, 1)
	go func() { followed <- b.follow(ctx, a, c) }()
	ended := false
	defer func() {
		cancel()
		if !ended {
			<-followed
		}
	}()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	k, err := keysOf(ctx, in)
	if err != nil {
		return err
	}
	keys := make(chan byte)
	go pressed(ctx, k, keys)
	defer func() {
		cancel()
		for range keys { // until pressed has ended
		}
		k.close()
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()

	scroll := 0
	for {
		scroll = a.drawTop(b, out, scroll)
		select {
		case <-b.changed:
		case <-tick.C:
		case <-resized:
			fmt.Fprint(out, homeward+clearRest)
		case k, ok := <-keys:
			switch {
			case !ok || k == 'q' || k == 'Q' || k == 0x03 || k == 0x04:
				return nil
			case k == 'j' || k == 'B':
				scroll++
			case k == 'k' || k == 'A':
				scroll--
			}
		case err := <-followed:
			ended = true
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// drawTop draws what fits, from line scroll on, and returns scroll as far as that is possible.
func (a *App) drawTop(b *board, out *os.File, scroll int) int {
	width, height, err := term.GetSize(int(out.Fd()))
	if err != nil || width < 1 || height < 1 {
		width, height = 80, 24
	}
	lines := b.lines(a.now(), a.coloured(out))
	scroll = max(0, min(scroll, len(lines)-height))
	lines = lines[scroll:min(len(lines), scroll+height)]
	var s strings.Builder
	s.WriteString(homeward)
	for i, l := range lines {
		s.WriteString(clip(l, width) + clearLine)
		if i < len(lines)-1 {
			s.WriteString("\r\n")
		}
	}
	s.WriteString(clearRest)
	fmt.Fprint(out, s.String())
	return scroll
}

// clip cuts a coloured line to a width; escape sequences take no room and are kept.
func clip(s string, width int) string {
	var b strings.Builder
	n, esc := 0, false
	for _, r := range s {
		switch {
		case r == 0x1b:
			esc = true
		case esc:
			esc = r != 'm'
		default:
			if n++; n > width {
				continue
			}
		}
		b.WriteRune(r)
	}
	return b.String()
}

// pressed passes on keys until the terminal ends or nobody listens any more.
func pressed(ctx context.Context, in io.Reader, to chan<- byte) {
	defer close(to)
	buf := make([]byte, 64)
	for {
		n, err := in.Read(buf)
		for _, k := range buf[:n] {
			select {
			case to <- k:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}
