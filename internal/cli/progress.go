package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"golang.org/x/term"
)

// progress is one line at the bottom of a terminal that says what is awaited. On anything else it prints nothing.
type progress struct {
	w     io.Writer
	start time.Time
	now   func() time.Time
	stop  chan struct{}
	wg    sync.WaitGroup

	mu    sync.Mutex
	file  *os.File // nil: no terminal, or ended
	what  string
	text  string
	part  float64 // 0 to 1; less than 0 is unknown
	shown bool
}

// progress begins a line. The caller must call end.
func (a *App) progress(what string) *progress {
	p := &progress{w: a.Err, start: a.now(), now: a.now, stop: make(chan struct{}), what: what, part: -1}
	f, ok := terminal(a.Err)
	if !ok || a.Getenv("TERM") == "dumb" {
		return p
	}
	p.file = f
	p.wg.Add(1)
	tick := time.NewTicker(time.Second)
	go func() {
		defer p.wg.Done()
		defer tick.Stop()
		for {
			p.draw()
			select {
			case <-tick.C:
			case <-p.stop:
				return
			}
		}
	}()
	return p
}

// set changes what the line says.
func (p *progress) set(text string, part float64) {
	p.mu.Lock()
	changed := p.text != text || p.part != part
	p.text, p.part = text, part
	p.mu.Unlock()
	if changed {
		p.draw()
	}
}

// end takes the line away. After it nothing is drawn, and it may be called again.
func (p *progress) end() {
	p.mu.Lock()
	drawn := p.file != nil
	p.file = nil
	if drawn && p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	p.mu.Unlock()
	if drawn {
		close(p.stop)
		p.wg.Wait()
	}
}

func (p *progress) draw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return
	}
	width, _, err := term.GetSize(int(p.file.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	fmt.Fprint(p.w, "\r\x1b[K"+progressLine(p.what, p.text, p.part, p.now().Sub(p.start), width-1))
	p.shown = true
}

// progressLine is the line for a width in columns.
func progressLine(what, text string, part float64, took time.Duration, width int) string {
	head := what
	if text != "" {
		head += ": " + table.Clean(text)
	}
	tail := " " + unit.Span(took)
	if part >= 0 {
		const cells = 20
		n := int(min(part, 1) * cells)
		tail = " [" + strings.Repeat("=", n) + strings.Repeat(" ", cells-n) + "] " + fmt.Sprintf("%3.0f%%", min(part, 1)*100) + tail
	}
	if room := width - len(tail); room > 10 {
		return table.Cut(head, room) + tail
	}
	return table.Cut(head, width)
}
