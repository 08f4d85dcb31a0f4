package main

import (
	"encoding/json"
	"errors"
	"strings"
)

// parseYAML reads the part of YAML that network-config and meta-data files use: nested maps and lists by indentation,
// [flow, lists] and {flow: maps} in their JSON form or with plain words, plain and quoted scalars, comments. JSON is read as such.
// The result is made of map[string]any, []any, string and nil. Scalars from YAML stay strings.
func parseYAML(text string) (any, error) {
	if t := strings.TrimSpace(text); strings.HasPrefix(t, "{") {
		var v any
		err := json.Unmarshal([]byte(t), &v)
		return v, err
	}
	p := &yamlParser{}
	for _, l := range strings.Split(text, "\n") {
		l = strings.TrimRight(stripComment(l), " \t\r")
		body := strings.TrimLeft(l, " ")
		if body == "" || body == "---" {
			continue
		}
		if strings.HasPrefix(body, "\t") {
			return nil, errors.New("yaml: tab in indentation")
		}
		p.lines = append(p.lines, yamlLine{len(l) - len(body), body})
	}
	if len(p.lines) == 0 {
		return nil, nil
	}
	v, err := p.block(p.lines[0].indent, 0)
	if err == nil && p.at < len(p.lines) {
		err = errors.New("yaml: bad indentation at " + p.lines[p.at].body)
	}
	return v, err
}

type yamlLine struct {
	indent int
	body   string
}

type yamlParser struct {
	lines []yamlLine
	at    int
}

const yamlDepth = 32

func (p *yamlParser) block(indent, depth int) (any, error) {
	if depth > yamlDepth {
		return nil, errors.New("yaml: nested too deep")
	}
	if l := p.lines[p.at]; l.body == "-" || strings.HasPrefix(l.body, "- ") {
		return p.list(indent, depth)
	}
	out := map[string]any{}
	for p.at < len(p.lines) && p.lines[p.at].indent == indent {
		l := p.lines[p.at]
		k, rest, ok := cutKey(l.body)
		if !ok {
			return nil, errors.New("yaml: no key in " + l.body)
		}
		p.at++
		if rest != "" {
			out[k] = scalar(rest)
			continue
		}
		out[k] = nil
		if p.at == len(p.lines) {
			break
		}
		next := p.lines[p.at]
		dash := next.body == "-" || strings.HasPrefix(next.body, "- ")
		if next.indent > indent || next.indent == indent && dash {
			v, err := p.block(next.indent, depth+1)
			if err != nil {
				return nil, err
			}
			out[k] = v
		}
	}
	return out, nil
}

func (p *yamlParser) list(indent, depth int) (any, error) {
	out := []any{}
	for p.at < len(p.lines) && p.lines[p.at].indent == indent {
		l := &p.lines[p.at]
		if l.body != "-" && !strings.HasPrefix(l.body, "- ") {
			break
		}
		rest := strings.TrimLeft(strings.TrimPrefix(l.body, "-"), " ")
		_, _, isMap := cutKey(rest)
		switch {
		case rest == "":
			p.at++
			if p.at < len(p.lines) && p.lines[p.at].indent > indent {
				v, err := p.block(p.lines[p.at].indent, depth+1)
				if err != nil {
					return nil, err
				}
				out = append(out, v)
			} else {
				out = append(out, nil)
			}
		case isMap || strings.HasPrefix(rest, "- "):
			// The item is a block of its own that starts on this line.
			l.indent, l.body = indent+len(l.body)-len(rest), rest
			v, err := p.block(l.indent, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		default:
			p.at++
			out = append(out, scalar(rest))
		}
	}
	return out, nil
}

// cutKey splits "key: value"; a colon inside a word, as in a MAC address, is part of the word.
func cutKey(s string) (key, rest string, ok bool) {
	if s != "" && (s[0] == '"' || s[0] == '\'') {
		if end := strings.IndexByte(s[1:], s[0]); end >= 0 {
			after := s[end+2:]
			if after == ":" || strings.HasPrefix(after, ": ") {
				return s[1 : end+1], strings.TrimSpace(after[1:]), true
			}
		}
		return "", "", false
	}
	if s != "" && (s[0] == '[' || s[0] == '{') {
		return "", "", false
	}
	if i := strings.Index(s, ": "); i > 0 {
		return s[:i], strings.TrimSpace(s[i+2:]), true
	}
	if k, ok := strings.CutSuffix(s, ":"); ok && k != "" {
		return k, "", true
	}
	return "", "", false
}

func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

// scalar reads a value on one line. A flow list or map holds plain values only.
func scalar(s string) any {
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		out := []any{}
		for _, f := range strings.Split(s[1:len(s)-1], ",") {
			if f = strings.TrimSpace(f); f != "" {
				out = append(out, unquote(f))
			}
		}
		return out
	}
	if strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}") {
		out := map[string]any{}
		for _, f := range strings.Split(s[1:len(s)-1], ",") {
			if k, v, ok := cutKey(strings.TrimSpace(f)); ok {
				out[k] = unquote(v)
			}
		}
		return out
	}
	return unquote(s)
}

// stripComment drops a comment: a # at the start or after a space, outside of quotes.
func stripComment(l string) string {
	var quote byte
	for i := 0; i < len(l); i++ {
		switch c := l[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case (c == '"' || c == '\'') && (i == 0 || strings.IndexByte(" [{,", l[i-1]) >= 0):
			quote = c
		case c == '#' && (i == 0 || l[i-1] == ' '):
			return l[:i]
		}
	}
	return l
}
