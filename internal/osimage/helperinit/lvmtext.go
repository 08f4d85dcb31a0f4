package main

import (
	"errors"
	"strconv"
	"strings"
)

// node is a section of LVM's text: sections, and values that are string, int64 or a list of them.
type node struct {
	keys     []string
	sections map[string]*node
	values   map[string]any
}

func (n *node) num(key string) uint64 {
	v, _ := n.values[key].(int64)
	return uint64(max(v, 0))
}

func (n *node) str(key string) string {
	s, _ := n.values[key].(string)
	return s
}

func (n *node) list(key string) []any {
	switch v := n.values[key].(type) {
	case []any:
		return v
	case nil:
		return nil
	default:
		return []any{v}
	}
}

func (n *node) sub(key string) *node {
	if s := n.sections[key]; s != nil {
		return s
	}
	return &node{}
}

var errLVM = errors.New("LVM's metadata cannot be parsed")

// maxLVMDepth is more than LVM ever nests.
const maxLVMDepth = 8

// parseLVM parses metadata as lvm.conf(5) and vgcfgbackup write it.
func parseLVM(s string) (*node, error) {
	p := &lvmParser{s: s}
	n, err := p.section(0)
	if err != nil {
		return nil, err
	}
	return n, nil
}

type lvmParser struct {
	s  string
	at int
}

func (p *lvmParser) skip() {
	for p.at < len(p.s) {
		switch c := p.s[p.at]; {
		case c == '#':
			if i := strings.IndexByte(p.s[p.at:], '\n'); i >= 0 {
				p.at += i
			} else {
				p.at = len(p.s)
			}
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == 0:
			p.at++
		default:
			return
		}
	}
}

func (p *lvmParser) peek() byte {
	p.skip()
	if p.at < len(p.s) {
		return p.s[p.at]
	}
	return 0
}

func (p *lvmParser) word() string {
	from := p.at
	for p.at < len(p.s) && !strings.ContainsRune(" \t\r\n\x00={}[],#\"", rune(p.s[p.at])) {
		p.at++
	}
	return p.s[from:p.at]
}

func (p *lvmParser) section(depth int) (*node, error) {
	n := &node{sections: map[string]*node{}, values: map[string]any{}}
	for {
		c := p.peek()
		if c == 0 && depth == 0 {
			return n, nil
		}
		if c == '}' && depth > 0 {
			p.at++
			return n, nil
		}
		key := p.word()
		if key == "" || depth >= maxLVMDepth {
			return nil, errLVM
		}
		switch p.peek() {
		case '{':
			p.at++
			sub, err := p.section(depth + 1)
			if err != nil {
				return nil, err
			}
			n.keys = append(n.keys, key)
			n.sections[key] = sub
		case '=':
			p.at++
			v, err := p.value()
			if err != nil {
				return nil, err
			}
			n.values[key] = v
		default:
			return nil, errLVM
		}
	}
}

func (p *lvmParser) value() (any, error) {
	if p.peek() != '[' {
		return p.scalar()
	}
	p.at++
	out := []any{}
	for {
		switch p.peek() {
		case ']':
			p.at++
			return out, nil
		case ',':
			p.at++
		default:
			v, err := p.scalar()
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
	}
}

func (p *lvmParser) scalar() (any, error) {
	if p.peek() == '"' {
		p.at++
		var b strings.Builder
		for p.at < len(p.s) && p.s[p.at] != '"' {
			if p.s[p.at] == '\\' && p.at+1 < len(p.s) {
				p.at++
			}
			b.WriteByte(p.s[p.at])
			p.at++
		}
		if p.at >= len(p.s) {
			return nil, errLVM
		}
		p.at++
		return b.String(), nil
	}
	w := p.word()
	if w == "" {
		return nil, errLVM
	}
	if n, err := strconv.ParseInt(w, 10, 64); err == nil {
		return n, nil
	}
	return w, nil
}
