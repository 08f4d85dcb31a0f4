package manifest

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
)

// Bounds of what is read: bytes, and values after aliases.
const (
	maxBytes  = 16 << 20
	maxValues = 200_000
	maxFaults = 20
)

// Doc is one document that names a resource.
type Doc struct {
	Kind, Name string
	File       string
	Line       int

	node  *yaml.Node
	empty proto.Message
}

// String is the document's place and object.
func (d *Doc) String() string { return fmt.Sprintf("%s:%d: %s %q", d.File, d.Line, d.Kind, d.Name) }

// Lookup finds the kind that a document names, singular or plural, and an empty message of it; ok is false if there is none.
type Lookup func(kind string) (canonical string, empty proto.Message, ok bool)

// Parse reads YAML documents or JSON; a document may also be a list of documents. All of them are checked before it returns.
func Parse(file string, r io.Reader, lookup Lookup) ([]*Doc, error) {
	limited := &io.LimitedReader{R: r, N: maxBytes + 1}
	dec := yaml.NewDecoder(limited)
	p := parser{file: file, lookup: lookup}
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if limited.N <= 0 {
			return nil, fmt.Errorf("%s: is larger than 16 MiB", file)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %s", file, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		for _, c := range n.Content {
			p.document(c)
		}
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	if len(p.docs) == 0 {
		return nil, fmt.Errorf("%s: holds no documents", file)
	}
	seen := map[string]int{}
	for _, d := range p.docs {
		key := d.Kind + "/" + d.Name
		if line, twice := seen[key]; twice {
			return nil, fmt.Errorf("%s: is in line %d already", d, line)
		}
		seen[key] = d.Line
	}
	return p.docs, nil
}

type parser struct {
	file   string
	lookup Lookup
	docs   []*Doc
	faults []error
	more   int
}

func (p *parser) fault(line int, format string, args ...any) {
	if len(p.faults) >= maxFaults {
		p.more++
		return
	}
	p.faults = append(p.faults, fmt.Errorf("%s:%d: "+format, append([]any{p.file, line}, args...)...))
}

func (p *parser) err() error {
	if p.more > 0 {
		return errors.Join(append(p.faults, fmt.Errorf("%s: and %d more faults", p.file, p.more))...)
	}
	return errors.Join(p.faults...)
}

func (p *parser) document(n *yaml.Node) {
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return // an empty document
	case n.Kind == yaml.SequenceNode:
		for _, c := range n.Content {
			p.document(c)
		}
		return
	case n.Kind != yaml.MappingNode:
		p.fault(n.Line, "a document is a mapping with kind, meta and spec")
		return
	}
	var kind, meta *yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		switch n.Content[i].Value {
		case "kind":
			kind = n.Content[i+1]
		case "meta":
			meta = n.Content[i+1]
		}
	}
	if kind == nil || kind.Kind != yaml.ScalarNode {
		p.fault(n.Line, "the document has no kind; give one, such as kind: vm")
		return
	}
	canonical, empty, ok := p.lookup(kind.Value)
	if !ok {
		p.fault(kind.Line, "no such kind: %q", kind.Value)
		return
	}
	d := &Doc{Kind: canonical, File: p.file, Line: n.Line, node: n, empty: empty}
	if meta != nil && meta.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(meta.Content); i += 2 {
			if meta.Content[i].Value == "name" {
				d.Name = meta.Content[i+1].Value
			}
		}
	}
	if d.Name == "" {
		p.fault(n.Line, "the %s has no name; give meta.name", canonical)
		return
	}
	if _, err := d.Merge(nil); err != nil {
		p.faults = append(p.faults, err)
		return
	}
	p.docs = append(p.docs, d)
}

// Merge is what the document says, laid over a copy of current, which may be nil for a new resource. In lists whose elements
// have names, elements of the same name are laid over each other, in the document's order; other lists and maps are replaced.
func (d *Doc) Merge(current proto.Message) (proto.Message, error) {
	m := proto.CloneOf(d.empty)
	if current != nil {
		m = proto.CloneOf(current)
	}
	dec := decoder{p: &parser{file: d.File}}
	dec.message("", m.ProtoReflect(), d.node)
	return m, dec.p.err()
}
