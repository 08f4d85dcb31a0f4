package frame

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"drover/internal/vswitch/table"
)

// Error is a description that is no packet.
type Error struct {
	Position int    // of the word, in bytes from the start
	Word     string // what stands there; empty: the description ends
	Want     string // what would be right
}

func (e *Error) Error() string {
	if e.Word == "" {
		return fmt.Sprintf("the description ends at position %d; there should be %s", e.Position+1, e.Want)
	}
	return fmt.Sprintf("%q at position %d: there should be %s", e.Word, e.Position+1, e.Want)
}

type word struct {
	text string
	at   int
}

// words is a description in pieces, and the first error in it.
type words struct {
	list   []word
	next   int
	length int
	err    *Error
}

func split(s string) *words {
	w := &words{length: len(s)}
	for i := 0; i < len(s); {
		if s[i] == ' ' || s[i] == '\t' || s[i] == '\n' || s[i] == ',' {
			i++
			continue
		}
		j := i + 1
		if s[i] != '>' {
			for j < len(s) && !strings.ContainsRune(" \t\n,>", rune(s[j])) {
				j++
			}
		}
		w.list = append(w.list, word{s[i:j], i})
		i = j
	}
	return w
}

func (w *words) done() bool { return w.next >= len(w.list) }

func (w *words) peek() string {
	if w.done() {
		return ""
	}
	return strings.ToLower(w.list[w.next].text)
}

// accept takes the next word if it is text.
func (w *words) accept(text string) bool {
	if w.peek() != text {
		return false
	}
	w.next++
	return true
}

// fail notes that the word before the next (back 1) or the next (back 0) is wrong.
func (w *words) fail(back int, format string, args ...any) {
	if w.err != nil {
		return
	}
	e := &Error{Position: w.length, Want: fmt.Sprintf(format, args...)}
	if i := w.next - back; i >= 0 && i < len(w.list) {
		e.Position, e.Word = w.list[i].at, w.list[i].text
	}
	w.err = e
}

// take is the next word as it was written.
func (w *words) take(want string) string {
	if w.done() {
		w.fail(0, "%s", want)
		return ""
	}
	w.next++
	return w.list[w.next-1].text
}

// choice is the next word, which has to be one of some.
func (w *words) choice(of ...string) string {
	want := alternatives(of)
	t := strings.ToLower(w.take(want))
	if t != "" && !slices.Contains(of, t) {
		w.fail(1, "%s", want)
		return ""
	}
	return t
}

func alternatives(of []string) string {
	if len(of) == 1 {
		return of[0]
	}
	return strings.Join(of[:len(of)-1], ", ") + " or " + of[len(of)-1]
}

func (w *words) number(low, high int) int {
	want := fmt.Sprintf("a number from %d to %d", low, high)
	t := w.take(want)
	if t == "" {
		return low
	}
	n, err := strconv.Atoi(t)
	if err != nil || n < low || n > high {
		w.fail(1, "%s", want)
		return low
	}
	return n
}

func (w *words) mac() (m table.MAC) {
	const want = "a MAC address such as 52:54:00:12:34:56"
	t := w.take(want)
	if t == "" {
		return m
	}
	hw, err := net.ParseMAC(t)
	if err != nil || len(hw) != 6 {
		w.fail(1, want)
		return m
	}
	return table.MAC(hw)
}

// address is an IP address: of family 4 or 6, or of any (0).
func (w *words) address(family int) netip.Addr {
	want := map[int]string{0: "an IP address", 4: "an IPv4 address such as 10.0.0.1", 6: "an IPv6 address such as 2001:db8::1"}[family]
	t := w.take(want)
	a, err := netip.ParseAddr(t)
	if t == "" || err != nil || a.Zone() != "" || a.Is4In6() || family == 4 && !a.Is4() || family == 6 && !a.Is6() {
		w.fail(1, "%s", want)
		if family == 6 {
			return netip.IPv6Unspecified()
		}
		return netip.IPv4Unspecified()
	}
	return a
}

// end is one end of a connection.
type end struct {
	addr netip.Addr
	port uint16 // 0: not said
}

func (w *words) end(family int, ports bool) end {
	want := map[int]string{0: "an address such as 10.0.0.1, 10.0.0.1:80 or [2001:db8::1]:80", 4: "an IPv4 address such as 10.0.0.1", 6: "an IPv6 address such as 2001:db8::1"}[family]
	t := w.take(want)
	e := end{}
	if a, err := netip.ParseAddr(strings.Trim(t, "[]")); err == nil {
		e.addr = a
	} else if ap, err := netip.ParseAddrPort(t); err == nil && ports {
		e = end{ap.Addr(), ap.Port()}
	}
	if a := e.addr; !a.IsValid() || a.Zone() != "" || a.Is4In6() || family == 4 && !a.Is4() || family == 6 && !a.Is6() {
		w.fail(1, "%s", want)
		e.addr = netip.IPv4Unspecified()
		if family == 6 {
			e.addr = netip.IPv6Unspecified()
		}
	}
	return e
}

// path is two ends, the first of which may be left out.
func (w *words) path(env *Env, family int, ports bool) (src, dst end) {
	dst = w.end(family, ports)
	if w.accept(">") {
		src = dst
		dst = w.end(family, ports)
		if w.err == nil && src.addr.Is4() != dst.addr.Is4() {
			w.fail(1, "an address of the same family as %s", src.addr)
			dst.addr = src.addr
		}
		return src, dst
	}
	src.addr = env.source(dst.addr)
	return src, dst
}
