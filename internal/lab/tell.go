package lab

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"drover/internal/cli/table"
	"drover/internal/clock"

	"golang.org/x/term"
)

// teller writes the story of the demo: acts, steps with their times, what guests say. On a terminal a step that takes
// long shows that it goes on; elsewhere each step is a line when it is done, and now and then one while it lasts.
type teller struct {
	w      io.Writer
	tty    bool
	colour bool
	clk    clock.Clock
	acts   int
	times  table.Table
}

func newTeller(w io.Writer, colour bool) *teller {
	t := &teller{w: w, colour: colour, clk: clock.Real()}
	if f, ok := w.(*os.File); ok {
		t.tty = term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
	}
	t.times = table.Table{Headers: []string{"WHAT", "TOOK", ""}, Right: map[int]bool{1: true}}
	return t
}

const tellWidth = 100

// act begins a part of the story.
func (t *teller) act(title string) {
	t.acts++
	head := fmt.Sprintf("── %d. %s ", t.acts, title)
	fmt.Fprintf(t.w, "\n%s\n", t.paint(head+strings.Repeat("─", max(0, tellWidth-table.Width(head))), table.Bold))
}

func (t *teller) paint(s string, c table.Colour) string { return table.Paint(s, c, t.colour) }

// say writes a sentence.
func (t *teller) say(format string, args ...any) {
	fmt.Fprintf(t.w, "   "+format+"\n", args...)
}

// escape is a control sequence of a terminal (ECMA-48): guests' consoles are full of them.
var escape = regexp.MustCompile(`\x1b(\[[0-?]*[ -/]*[@-~]|[^\[])`)

// plain is a line without control sequences and characters.
func plain(s string) string {
	return strings.TrimSpace(table.Clean(escape.ReplaceAllString(s, "")))
}

// quote shows what a guest or a program said, which may be anything.
func (t *teller) quote(text string) {
	for line := range strings.Lines(strings.TrimSpace(text)) {
		if line = plain(line); line != "" {
			fmt.Fprintln(t.w, t.paint("   │ "+table.Cut(line, tellWidth-5), table.Dim))
		}
	}
}

// stillEvery is how often a step that lasts is told of where lines can't be written anew.
const stillEvery = 15 * time.Second

// step does something and tells how long it took. do may change what is said of it while it lasts.
func (t *teller) step(what string, do func(note func(string)) error) (time.Duration, error) {
	began := t.clk.Now()
	var mu sync.Mutex
	note := ""
	now := func() string {
		mu.Lock()
		defer mu.Unlock()
		s := fmt.Sprintf("%s (%d s)", what, int(t.clk.Now().Sub(began)/time.Second))
		if note != "" {
			s += ": " + plain(note)
		}
		return table.Cut(s, tellWidth-4)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		every := stillEvery
		if t.tty {
			every = 200 * time.Millisecond
		}
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := 0; ; i++ {
			if t.tty {
				fmt.Fprintf(t.w, "\r\x1b[K %c %s", []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")[i%10], now())
			}
			select {
			case <-stop:
				return
			case <-tick.C:
				if !t.tty {
					fmt.Fprintln(t.w, " … "+now())
				}
			}
		}
	}()
	err := do(func(s string) {
		mu.Lock()
		defer mu.Unlock()
		note = s
	})
	close(stop)
	<-stopped
	if t.tty {
		fmt.Fprint(t.w, "\r\x1b[K")
	}
	took := t.clk.Now().Sub(began)
	mark := t.paint("✔", table.Green)
	if err != nil {
		mark = t.paint("✘", table.Red)
	}
	fmt.Fprintf(t.w, " %s %s %s\n", mark, what, t.paint(span(took), table.Dim))
	return took, err
}

// measured puts a time into the table that the story ends with.
func (t *teller) measured(what string, took time.Duration, remark string) {
	if remark == "" {
		remark = " "
	}
	t.times.Add(table.Text(what), table.Cell{Text: span(took), Colour: table.Green}, table.Cell{Text: remark, Colour: table.Dim})
}

// span is a time with as many digits as mean something.
func span(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 100*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
}
