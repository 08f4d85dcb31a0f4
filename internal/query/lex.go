package query

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

type tokenKind int

const (
	tokEnd tokenKind = iota
	tokWord
	tokQuoted
	tokOp // = != < <= > >= :
	tokOpen
	tokClose
	tokDot
	tokMinus
)

type token struct {
	kind tokenKind
	text string
	pos  int // 0-based
	end  int
}

// lexer cuts a filter into tokens. A dot is part of a word inside it; it is a token of its own only next to a
// quoted string, for paths like labels."a b".
type lexer struct {
	in  string
	pos int
}

func (l *lexer) errorf(pos int, format string, a ...any) error {
	return &Error{In: "filter", Pos: pos + 1, Reason: fmt.Sprintf(format, a...)}
}

func wordByte(c byte) bool {
	return c >= 0x80 || c == '_' || c == '.' || c == '-' || c == '/' || c == '*' || c == '+' || c == '@' || c == '%' ||
		'0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func (l *lexer) next() (token, error) {
	for l.pos < len(l.in) && strings.IndexByte(" \t\r\n", l.in[l.pos]) >= 0 {
		l.pos++
	}
	start := l.pos
	if start == len(l.in) {
		return token{kind: tokEnd, pos: start, end: start}, nil
	}
	tok := func(k tokenKind, n int) (token, error) {
		l.pos = start + n
		return token{kind: k, text: l.in[start:l.pos], pos: start, end: l.pos}, nil
	}
	rest := l.in[start:]
	switch c := rest[0]; {
	case c == '(':
		return tok(tokOpen, 1)
	case c == ')':
		return tok(tokClose, 1)
	case strings.HasPrefix(rest, "!="), strings.HasPrefix(rest, "<="), strings.HasPrefix(rest, ">="):
		return tok(tokOp, 2)
	case strings.IndexByte("=<>:", c) >= 0:
		return tok(tokOp, 1)
	case c == '"' || c == '\'':
		return l.quoted(start, c)
	case c == '.':
		return tok(tokDot, 1)
	case c == '-':
		return tok(tokMinus, 1)
	case wordByte(c):
		n := 1
		for n < len(rest) && wordByte(rest[n]) {
			n++
		}
		if rest[n-1] == '.' && n < len(rest) && (rest[n] == '"' || rest[n] == '\'') {
			n--
		}
		if !utf8.ValidString(rest[:n]) {
			return token{}, l.errorf(start, "not valid UTF-8")
		}
		return tok(tokWord, n)
	}
	r, _ := utf8.DecodeRuneInString(rest)
	return token{}, l.errorf(start, "unexpected %q; put values with such characters in quotes", r)
}

// quoted reads a string in q; a backslash takes the next character as it is.
func (l *lexer) quoted(start int, q byte) (token, error) {
	var b strings.Builder
	for i := start + 1; i < len(l.in); i++ {
		switch c := l.in[i]; c {
		case q:
			l.pos = i + 1
			if !utf8.ValidString(b.String()) {
				return token{}, l.errorf(start, "not valid UTF-8")
			}
			return token{kind: tokQuoted, text: b.String(), pos: start, end: l.pos}, nil
		case '\\':
			i++
			if i < len(l.in) {
				b.WriteByte(l.in[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return token{}, l.errorf(start, "the quote is not closed")
}
