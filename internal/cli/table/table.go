package table

import (
	"bufio"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Colour is how a cell looks on a terminal.
type Colour string

// The colours, as SGR parameters (ECMA-48).
const (
	Plain  Colour = ""
	Green  Colour = "32"
	Yellow Colour = "33"
	Red    Colour = "31"
	Dim    Colour = "2"
	Bold   Colour = "1"
)

// Cell is one value of a table.
type Cell struct {
	// Text is shown as "-" if it is empty, and as nothing if it is a blank.
	Text   string
	Colour Colour
}

// Text is a cell without colour.
func Text(s string) Cell { return Cell{Text: s} }

// Table is rows below headers. The zero value is empty.
type Table struct {
	Headers []string
	Rows    [][]Cell
	// Right says which columns are set to the right, by index.
	Right map[int]bool
}

// Add appends a row.
func (t *Table) Add(cells ...Cell) { t.Rows = append(t.Rows, cells) }

const gap = "   "

// Lines sets the table. The last column is never padded. colour adds escape sequences.
func (t *Table) Lines(colour bool) []string {
	width := make([]int, len(t.Headers))
	for i, h := range t.Headers {
		width[i] = Width(h)
	}
	rows := make([][]Cell, len(t.Rows))
	for r, row := range t.Rows {
		rows[r] = make([]Cell, len(t.Headers))
		for i := range min(len(row), len(t.Headers)) {
			c := Cell{Clean(row[i].Text), row[i].Colour}
			if row[i].Text == "" {
				c.Text = "-"
			}
			rows[r][i] = c
			width[i] = max(width[i], Width(c.Text))
		}
	}
	head := make([]Cell, len(t.Headers))
	for i, h := range t.Headers {
		head[i] = Cell{h, Bold}
	}
	out := make([]string, 0, len(rows)+1)
	for _, row := range append([][]Cell{head}, rows...) {
		var b strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", width[i]-Width(c.Text))
			text := Paint(c.Text, c.Colour, colour)
			switch last := i == len(row)-1; {
			case t.Right[i]:
				b.WriteString(pad + text)
			case last:
				b.WriteString(text)
			default:
				b.WriteString(text + pad)
			}
			if i < len(row)-1 {
				b.WriteString(gap)
			}
		}
		out = append(out, strings.TrimRight(b.String(), " "))
	}
	return out
}

// Write sets the table to w.
func (t *Table) Write(w io.Writer, colour bool) error {
	b := bufio.NewWriter(w)
	for _, l := range t.Lines(colour) {
		b.WriteString(l + "\n")
	}
	return b.Flush()
}

// Paint wraps text in a colour, if on.
func Paint(text string, c Colour, on bool) string {
	if !on || c == Plain || text == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// Clean makes text safe for one line of a terminal: what a guest or an image says may hold escape sequences. Control
// characters become spaces, what isn't UTF-8 a replacement character; blanks at the end go.
func Clean(s string) string {
	return strings.TrimRight(strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r), r == '\u2028', r == '\u2029':
			return ' '
		case unicode.Is(unicode.Cf, r): // marks that turn the direction of writing, zero-width ones
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd")), " ")
}

// Width is how many columns text takes, near enough: East Asian wide characters count as two.
func Width(s string) int {
	if len(s) == utf8.RuneCountInString(s) {
		return len(s)
	}
	n := 0
	for _, r := range s {
		switch {
		case unicode.Is(unicode.Mn, r):
		case unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana) || r >= 0x1f300 && r < 0x1fb00 || r >= 0xff01 && r <= 0xff60:
			n += 2
		default:
			n++
		}
	}
	return n
}

// Cut shortens text to so many columns.
func Cut(s string, width int) string {
	if Width(s) <= width {
		return s
	}
	if width < 1 {
		return ""
	}
	n, end := 0, 0
	for i, r := range s {
		if n += Width(string(r)); n > width-1 {
			break
		}
		end = i + utf8.RuneLen(r)
	}
	return s[:end] + "…"
}
