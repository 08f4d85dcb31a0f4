package query

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Limits of what a stranger may ask for.
const (
	maxFilter = 4096
	maxDepth  = 64
	maxOrder  = 8
)

// predicate is a compiled part of a filter.
type predicate func(protoreflect.Message) bool

type parser struct {
	lexer
	tok   token
	md    protoreflect.MessageDescriptor
	name  path // of the object's name, for bare words
	depth int
}

// parseFilter compiles a filter; nil matches everything.
func parseFilter(in string, md protoreflect.MessageDescriptor, name path) (predicate, error) {
	p := &parser{lexer: lexer{in: in}, md: md, name: name}
	if len(in) > maxFilter {
		return nil, p.errorf(maxFilter, "longer than %d characters", maxFilter)
	}
	if err := p.advance(); err != nil {
		return nil, err
	}
	if p.tok.kind == tokEnd {
		return nil, nil
	}
	pred, err := p.and()
	if err != nil {
		return nil, err
	}
	if p.tok.kind != tokEnd {
		return nil, p.errorf(p.tok.pos, "unexpected %q", p.tok.text)
	}
	return pred, nil
}

func (p *parser) advance() (err error) {
	p.tok, err = p.next()
	return err
}

func (p *parser) keyword(k string) bool { return p.tok.kind == tokWord && p.tok.text == k }

// and = or { ["AND"] or }; terms side by side are joined by AND.
func (p *parser) and() (predicate, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.errorf(p.tok.pos, "nested deeper than %d", maxDepth)
	}
	defer func() { p.depth-- }()
	left, err := p.or()
	if err != nil {
		return nil, err
	}
	all := []predicate{left}
	for p.tok.kind != tokEnd && p.tok.kind != tokClose {
		if p.keyword("AND") {
			if err := p.advance(); err != nil {
				return nil, err
			}
		}
		next, err := p.or()
		if err != nil {
			return nil, err
		}
		all = append(all, next)
	}
	if len(all) == 1 {
		return left, nil
	}
	return func(m protoreflect.Message) bool {
		for _, f := range all {
			if !f(m) {
				return false
			}
		}
		return true
	}, nil
}

// or = term { "OR" term }
func (p *parser) or() (predicate, error) {
	left, err := p.term()
	if err != nil {
		return nil, err
	}
	alts := []predicate{left}
	for p.keyword("OR") {
		if err := p.advance(); err != nil {
			return nil, err
		}
		next, err := p.term()
		if err != nil {
			return nil, err
		}
		alts = append(alts, next)
	}
	if len(alts) == 1 {
		return left, nil
	}
	return func(m protoreflect.Message) bool {
		for _, f := range alts {
			if f(m) {
				return true
			}
		}
		return false
	}, nil
}

// term = ["NOT" | "-"] ( "(" and ")" | restriction )
func (p *parser) term() (predicate, error) {
	negate := false
	for p.keyword("NOT") || p.tok.kind == tokMinus {
		negate = !negate
		if err := p.advance(); err != nil {
			return nil, err
		}
	}
	pred, err := p.simple()
	if err != nil || !negate {
		return pred, err
	}
	return func(m protoreflect.Message) bool { return !pred(m) }, nil
}

func (p *parser) simple() (predicate, error) {
	switch p.tok.kind {
	case tokOpen:
		open := p.tok.pos
		if err := p.advance(); err != nil {
			return nil, err
		}
		pred, err := p.and()
		if err != nil {
			return nil, err
		}
		if p.tok.kind != tokClose {
			return nil, p.errorf(open, "the parenthesis is not closed")
		}
		return pred, p.advance()
	case tokWord, tokQuoted:
		if p.tok.kind == tokWord && (p.tok.text == "AND" || p.tok.text == "OR") {
			return nil, p.errorf(p.tok.pos, "%s needs something before it", p.tok.text)
		}
		return p.restriction()
	case tokEnd:
		return nil, p.errorf(p.tok.pos, "it ends where a condition should be")
	}
	return nil, p.errorf(p.tok.pos, "unexpected %q where a condition should be", p.tok.text)
}

// segment is one name of a path, with where it is.
type segment struct {
	text string
	pos  int
}

func (p *parser) restriction() (predicate, error) {
	first := p.tok
	segs := []segment{{first.text, first.pos}}
	if first.kind == tokWord {
		segs = split(first.text, first.pos)
	}
	if err := p.advance(); err != nil {
		return nil, err
	}
	for p.tok.kind == tokDot && p.tok.pos == first.end {
		if err := p.advance(); err != nil {
			return nil, err
		}
		switch p.tok.kind {
		case tokQuoted:
			segs = append(segs, segment{p.tok.text, p.tok.pos})
		case tokWord:
			segs = append(segs, split(p.tok.text, p.tok.pos)...)
		default:
			return nil, p.errorf(p.tok.pos, "a field name should follow the dot")
		}
		first.end = p.tok.end
		if err := p.advance(); err != nil {
			return nil, err
		}
	}
	if p.tok.kind != tokOp {
		if len(segs) > 1 && first.kind == tokQuoted {
			return nil, p.errorf(first.pos, "an operator should follow the field")
		}
		return nameHas(p.name, first.text), nil
	}
	op := p.tok
	pa, err := resolve("filter", p.md, segs)
	if err != nil {
		return nil, err
	}
	if err := p.advance(); err != nil {
		return nil, err
	}
	val := p.tok
	if val.kind == tokMinus { // a negative number
		if err := p.advance(); err != nil {
			return nil, err
		}
		if p.tok.kind != tokWord || p.tok.pos != val.end {
			return nil, p.errorf(val.pos, "a value should follow %s", op.text)
		}
		val = token{kind: tokWord, text: "-" + p.tok.text, pos: val.pos, end: p.tok.end}
	}
	if val.kind != tokWord && val.kind != tokQuoted {
		return nil, p.errorf(val.pos, "a value should follow %s", op.text)
	}
	pred, reason := restrict(pa, op.text, val)
	if reason != "" {
		return nil, p.errorf(val.pos, "%s", reason)
	}
	return pred, p.advance()
}

func split(word string, pos int) []segment {
	var out []segment
	for _, s := range strings.Split(word, ".") {
		out = append(out, segment{s, pos})
		pos += len(s) + 1
	}
	return out
}
