package cli

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// object is any resource.
type object interface {
	proto.Message
	GetMeta() *v1.Meta
}

// change is one message of a watch.
type change struct {
	kind   v1.ChangeKind
	object object
}

// page is one page of a list.
type page struct {
	items []object
	next  string
	total int32
}

// kind is one kind of resource: its calls and how it is shown. Calls that a kind does not have are nil.
type kind struct {
	name, plural string
	alias        []string
	// rank orders kinds in apply: what others need comes first.
	rank  int
	empty object

	list   func(context.Context, *client.Client, *v1.ListRequest) (page, error)
	get    func(context.Context, *client.Client, string) (object, error)
	create func(context.Context, *client.Client, object, bool) (object, error)
	update func(context.Context, *client.Client, object, *fieldmaskpb.FieldMask, bool) (object, error)
	delete func(context.Context, *client.Client, *v1.DeleteRequest) (object, error)
	watch  func(context.Context, *client.Client, *v1.WatchRequest, func(change) error) error

	columns []column
}

// column is one column of a kind's table.
type column struct {
	head  string
	wide  bool
	right bool
	cell  func(now time.Time, o object) table.Cell
}

// col makes a column from a function on the kind's own type.
func col[T object](head string, f func(T) string) column {
	return column{head: head, cell: func(_ time.Time, o object) table.Cell { return table.Text(f(o.(T))) }}
}

// num is col set to the right.
func num[T object](head string, f func(T) string) column {
	c := col(head, f)
	c.right = true
	return c
}

// mark is col with a colour.
func mark[T object](head string, f func(T) table.Cell) column {
	return column{head: head, cell: func(_ time.Time, o object) table.Cell { return f(o.(T)) }}
}

// at is col that knows the time.
func at[T object](head string, f func(time.Time, T) string) column {
	return column{head: head, cell: func(now time.Time, o object) table.Cell { return table.Text(f(now, o.(T))) }}
}

func wide(c column) column {
	c.wide = true
	return c
}

// errDone ends a watch that has seen enough.
var errDone = errors.New("seen enough")

func pageOf[T object](items []T, l interface {
	GetNextPageToken() string
	GetTotal() int32
}, err error) (page, error) {
	if err != nil {
		return page{}, err
	}
	p := page{next: l.GetNextPageToken(), total: l.GetTotal()}
	for _, i := range items {
		p.items = append(p.items, i)
	}
	return p, nil
}

// each calls f for each message of a stream until that ends or f fails; errDone from f is no error.
func each[M any](s *connect.ServerStreamForClient[M], err error, f func(*M) error) error {
	if err != nil {
		return err
	}
	defer s.Close()
	for s.Receive() {
		if err := f(s.Msg()); errors.Is(err, errDone) {
			return nil
		} else if err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// changes is each for a kind's watch.
func changes[M any, T object, PM interface {
	*M
	GetKind() v1.ChangeKind
}](s *connect.ServerStreamForClient[M], err error, get func(*M) T, f func(change) error) error {
	return each(s, err, func(m *M) error { return f(change{PM(m).GetKind(), get(m)}) })
}

// kinds are all kinds, in the order in which apply makes them.
func kinds() []*kind {
	return []*kind{siteKind(), hostKind(), profileKind(), networkKind(), datastoreKind(), imageKind(), userKind(), repositoryKind(), policyKind(), vmKind(), diskKind(), nicKind(), portKind(), snapshotKind(), pointKind(), taskKind(), tokenKind()}
}

// kindOf finds a kind by a name of it.
func kindOf(name string) *kind {
	for _, k := range kinds() {
		if k.name == name || k.plural == name || slices.Contains(k.alias, name) {
			return k
		}
	}
	return nil
}

// one gets one object.
func one[T object](o T, err error) (object, error) {
	if err != nil {
		return nil, err
	}
	return o, nil
}

// all lists everything that matches; limit 0 is no limit.
func (k *kind) all(ctx context.Context, c *client.Client, req *v1.ListRequest, limit int) (items []object, total int32, err error) {
	for {
		req.PageSize = 1000
		if limit > 0 {
			req.PageSize = int32(min(1000, limit-len(items)))
		}
		p, err := k.list(ctx, c, req)
		if err != nil {
			return nil, 0, err
		}
		items = append(items, p.items...)
		if req.PageToken = p.next; p.next == "" || limit > 0 && len(items) >= limit {
			return items, p.total, nil
		}
	}
}
