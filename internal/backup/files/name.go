package files

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Show makes text of a name or path, whatever its bytes are: those that are not UTF-8, control characters, and a backslash that would look like
// one of these become \xHH. Bytes undoes it.
func Show(name string) string {
	plain := utf8.ValidString(name) && !strings.ContainsFunc(name, control)
	if plain && !strings.Contains(name, `\x`) {
		return name
	}
	var b strings.Builder
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		if r == utf8.RuneError && n == 1 || control(r) || r == '\\' && isEscape(name[i:]) {
			for _, c := range []byte(name[i : i+n]) {
				fmt.Fprintf(&b, `\x%02x`, c)
			}
		} else {
			b.WriteString(name[i : i+n])
		}
		i += n
	}
	return b.String()
}

func control(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }

func isEscape(s string) bool {
	if len(s) < 4 || s[0] != '\\' || s[1] != 'x' {
		return false
	}
	_, err := strconv.ParseUint(s[2:4], 16, 8)
	return err == nil
}

// Bytes is the name that Show shows so.
func Bytes(shown string) string {
	if !strings.Contains(shown, `\x`) {
		return shown
	}
	var b strings.Builder
	for i := 0; i < len(shown); i++ {
		if isEscape(shown[i:]) {
			n, _ := strconv.ParseUint(shown[i+2:i+4], 16, 8)
			b.WriteByte(byte(n))
			i += 3
			continue
		}
		b.WriteByte(shown[i])
	}
	return b.String()
}

// Path is a place in a point.
type Path struct {
	Volume string // Volume.Name
	Path   string // absolute; its bytes, not as shown
}

// ParsePath parses "VOLUME:/path", as shown.
func ParsePath(s string) (Path, error) {
	v, p, ok := strings.Cut(s, ":")
	if v == "" || !ok || p != "" && p[0] != '/' {
		return Path{}, fmt.Errorf("path %q: write VOLUME:/path, such as root.1:/etc/hosts", s)
	}
	p = Bytes(p)
	if strings.Contains(p, "\x00") || len(p) > 4095 {
		return Path{}, fmt.Errorf("path %q: has a NUL, or is longer than 4095 bytes", s)
	}
	if p == "" {
		p = "/"
	}
	return Path{v, p}, nil
}

func (p Path) String() string { return p.Volume + ":" + Show(p.Path) }

// printable cuts what the helper says and makes it fit for a terminal.
func printable(s string, most int) string { return Show(s[:min(len(s), most)]) }
