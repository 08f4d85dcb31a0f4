package query

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Query is a compiled filter and order for one message type. It is immutable.
type Query struct {
	md     protoreflect.MessageDescriptor
	filter predicate // nil: everything
	order  []orderKey
	// bound is what page tokens are bound to.
	bound [8]byte
}

// orderKey is one field of the order. The last one is always the name, so that no two objects are equal.
type orderKey struct {
	path  path
	class class
	desc  bool
}

// Compile checks a filter and an order ("field desc, field2") against messages like example, which may be a nil
// pointer. Its error is an *Error that says where and what.
func Compile(example proto.Message, filter, orderBy string) (*Query, error) {
	md := example.ProtoReflect().Descriptor()
	name, err := namePath(md)
	if err != nil {
		return nil, err
	}
	q := &Query{md: md, bound: binding(md, filter, orderBy)}
	if q.filter, err = parseFilter(filter, md, name); err != nil {
		return nil, err
	}
	if q.order, err = parseOrder(orderBy, md); err != nil {
		return nil, err
	}
	q.order = append(q.order, orderKey{path: name, class: classString})
	return q, nil
}

// Match says whether m passes the filter. m must be of the type that the query was compiled for.
func (q *Query) Match(m proto.Message) bool {
	return q.filter == nil || q.filter(m.ProtoReflect())
}

func parseOrder(in string, md protoreflect.MessageDescriptor) ([]orderKey, error) {
	if strings.TrimSpace(in) == "" {
		return nil, nil
	}
	var keys []orderKey
	pos := 0
	for _, part := range strings.Split(in, ",") {
		start := pos + len(part) - len(strings.TrimLeft(part, " \t"))
		pos += len(part) + 1
		bad := func(reason string) ([]orderKey, error) {
			return nil, &Error{In: "order_by", Pos: start + 1, Reason: reason}
		}
		words := strings.Fields(part)
		if len(words) == 0 {
			return bad("a field name should be here")
		}
		k := orderKey{}
		switch {
		case len(words) == 2 && words[1] == "desc":
			k.desc = true
		case len(words) == 2 && words[1] == "asc", len(words) == 1:
		default:
			return bad(`want "field" or "field desc", with commas between`)
		}
		p, err := resolve("order_by", md, split(words[0], start))
		if err != nil {
			return nil, err
		}
		value := p.leaf()
		if value.IsMap() && p.hasKey {
			value = value.MapValue()
		}
		k.path, k.class = p, classOf(value)
		if p.plural() || k.class == classNone || value.IsMap() {
			return bad(string(p.leaf().Name()) + " has no order")
		}
		if keys = append(keys, k); len(keys) > maxOrder {
			return bad("too many fields")
		}
	}
	return keys, nil
}

// rank is what an object is ordered by: one scalar for each key. What has no value comes first.
type rank []rankKey

type rankKey struct {
	scalar
	set bool
}

func (q *Query) rank(m protoreflect.Message, buf rank) rank {
	for _, k := range q.order {
		r := rankKey{}
		if v := k.path.first(m); v.IsValid() {
			r = rankKey{k.class.of(v), true}
		}
		buf = append(buf, r)
	}
	return buf
}

func (q *Query) compare(a, b rank) int {
	for i, k := range q.order {
		d := 0
		switch {
		case a[i].set && b[i].set:
			d = k.class.compare(a[i].scalar, b[i].scalar)
		case a[i].set:
			d = 1
		case b[i].set:
			d = -1
		}
		if d != 0 {
			if k.desc {
				return -d
			}
			return d
		}
	}
	return 0
}

// Result is one page.
type Result[T proto.Message] struct {
	Items []T
	// Next resumes after this page; empty on the last.
	Next string
	// Total is how many objects match, on all pages.
	Total int
}

// Page filters and orders items and gives up to size of them after where token, from the page before, left off. It
// changes neither items nor messages. An error is ErrToken.
func Page[T proto.Message](q *Query, items []T, size int, token string) (Result[T], error) {
	var after rank
	if token != "" {
		var err error
		if after, err = q.decode(token); err != nil {
			return Result[T]{}, err
		}
	}
	type ranked struct {
		m    T
		rank rank
	}
	size = max(size, 1)
	var res Result[T]
	var found []ranked
	width := len(q.order)
	arena := make(rank, 0, 256*width)
	for _, m := range items {
		pm := m.ProtoReflect()
		if q.filter != nil && !q.filter(pm) {
			continue
		}
		res.Total++
		if cap(arena)-len(arena) < width {
			arena = make(rank, 0, 1024*width)
		}
		start := len(arena)
		arena = q.rank(pm, arena)
		r := arena[start:len(arena):len(arena)]
		if after != nil && q.compare(r, after) <= 0 {
			arena = arena[:start]
			continue
		}
		found = append(found, ranked{m, r})
	}
	byRank := func(a, b ranked) int { return q.compare(a.rank, b.rank) }
	if !slices.IsSortedFunc(found, byRank) {
		slices.SortFunc(found, byRank)
	}
	n := min(size, len(found))
	res.Items = make([]T, n)
	for i := range n {
		res.Items[i] = found[i].m
	}
	if n < len(found) {
		res.Next = q.encode(found[n-1].rank)
	}
	return res, nil
}
