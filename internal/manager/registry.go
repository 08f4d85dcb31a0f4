package manager

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/clock"
	"drover/internal/query"
	"drover/internal/resource"
	"drover/internal/store"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Object is a resource: a message with meta, spec and most often status.
type Object interface {
	proto.Message
	GetMeta() *v1.Meta
}

// Page bounds of a list.
const (
	defaultPage = 100
	largestPage = 1000
)

// Registry is one kind of resource: read from a copy in memory, written by compare-and-swap.
type Registry[T Object] struct {
	kind  resource.Kind
	coll  *store.Collection[T]
	cache *store.Cache[T]
	clk   clock.Clock
	zero  T
	// show makes what callers see of an object: status that follows from others is added, secrets are
	// taken away. It gets a clone to change. nil shows it as it is.
	show func(T)
}

func newRegistry[T Object](s *store.Store, kind resource.Kind, clk clock.Clock, show func(T)) (*Registry[T], error) {
	coll, err := store.NewCollection(s, store.Kind[T]{Name: kind})
	if err != nil {
		return nil, err
	}
	var zero T
	zero = zero.ProtoReflect().New().Interface().(T)
	return &Registry[T]{kind: kind, coll: coll, cache: store.NewCache(coll), clk: clk, zero: zero, show: show}, nil
}

// seen is obj as callers get it.
func (r *Registry[T]) seen(obj T) T {
	if r.show == nil {
		return obj
	}
	obj = proto.CloneOf(obj)
	r.show(obj)
	return obj
}

// notFound is the error for a name that nothing has.
func notFound(kind resource.Kind, name string) error {
	return &resource.Error{Code: resource.NotFound, Kind: kind, Name: name, Reason: "NOT_FOUND", Message: "does not exist", Remedy: "see: drover " + lister(kind)}
}

// lister is the command that lists a kind.
func lister(kind resource.Kind) string {
	if kind == resource.KindPoint {
		return "backup list"
	}
	return string(kind) + " list"
}

// lookup is the object itself, shared: never change it.
func (r *Registry[T]) lookup(name string) (T, error) {
	if obj, ok := r.cache.Get(name); ok {
		return obj, nil
	}
	return r.zero, notFound(r.kind, name)
}

// exists adds a fault when a reference leads nowhere.
func (r *Registry[T]) exists(f *resource.Faults, field, name string) (T, bool) {
	obj, ok := r.cache.Get(name)
	if !ok {
		f.Add(field, "REFERENCE_UNKNOWN", "there is no %s named %q", r.kind, name)
	}
	return obj, ok
}

// Get returns the object of that name.
func (r *Registry[T]) Get(name string) (T, error) {
	obj, err := r.lookup(name)
	if err != nil {
		return r.zero, err
	}
	return r.seen(obj), nil
}

// Listing is a page of a list.
type Listing[T Object] struct {
	Items    []T
	Next     string
	Total    int32
	Revision int64
}

// List filters, orders and pages.
func (r *Registry[T]) List(req *v1.ListRequest) (*Listing[T], error) {
	all, rev := r.cache.List()
	if r.show != nil {
		seen := make([]T, len(all))
		for i, obj := range all {
			seen[i] = r.seen(obj)
		}
		all = seen
	}
	return list(r.kind, r.zero, all, rev, req)
}

func list[T Object](kind resource.Kind, zero T, all []T, rev int64, req *v1.ListRequest) (*Listing[T], error) {
	size := int(req.GetPageSize())
	switch {
	case size < 0:
		return nil, &resource.Error{Code: resource.Invalid, Kind: kind, Field: "page_size", Reason: "OUT_OF_RANGE", Message: "must not be negative"}
	case size == 0:
		size = defaultPage
	}
	q, err := query.Compile(zero, req.GetFilter(), req.GetOrderBy())
	if err != nil {
		return nil, badQuery(kind, err)
	}
	page, err := query.Page(q, all, min(size, largestPage), req.GetPageToken())
	if err != nil {
		return nil, badQuery(kind, err)
	}
	return &Listing[T]{Items: page.Items, Next: page.Next, Total: int32(page.Total), Revision: rev}, nil
}

func badQuery(kind resource.Kind, err error) error {
	return &resource.Error{Code: resource.Invalid, Kind: kind, Reason: "QUERY_INVALID", Message: err.Error(), Remedy: "see docs/api.md, Filters", Err: err}
}

// Watch calls send with the present state and then every change until ctx ends or send fails. An object that comes to match the filter
// is ADDED, one that ceases to is DELETED.
func (r *Registry[T]) Watch(ctx context.Context, req *v1.WatchRequest, send func(v1.ChangeKind, T, int64) error) error {
	match, err := matcher(r.kind, r.zero, req.GetFilter())
	if err != nil {
		return err
	}
	from, err := reachable(ctx, r.cache, req.GetFromRevision())
	if err != nil {
		return err
	}
	sub := r.cache.Subscribe(from)
	first := true
	for {
		events, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := r.deliver(e, match, first && req.GetFromRevision() == 0, send); err != nil {
				return err
			}
			first = first && e.Type == store.Reset
		}
	}
}

// reachTime is how long a revision that a copy has not seen yet is waited for.
const reachTime = time.Second

// reachable is from if the state ever comes so far, and else 0: a revision of a state that is no more, to which a watcher of it
// must not be held.
func reachable[T Object](ctx context.Context, c *store.Cache[T], from int64) (int64, error) {
	if from <= c.Revision() {
		return max(from, 0), nil
	}
	wait, stop := context.WithTimeout(ctx, reachTime)
	defer stop()
	if err := c.WaitRevision(wait, from); err != nil {
		return 0, ctx.Err()
	}
	return from, nil
}

func matcher[T Object](kind resource.Kind, zero T, filter string) (func(proto.Message) bool, error) {
	if filter == "" {
		return func(proto.Message) bool { return true }, nil
	}
	q, err := query.Compile(zero, filter, "")
	if err != nil {
		return nil, badQuery(kind, err)
	}
	return q.Match, nil
}

func (r *Registry[T]) deliver(e store.Event[T], match func(proto.Message) bool, quiet bool, send func(v1.ChangeKind, T, int64) error) error {
	switch e.Type {
	case store.Reset:
		if quiet {
			return nil // a new watcher has nothing to forget
		}
		return send(v1.ChangeKind_CHANGE_KIND_RESET, r.zero, e.Revision)
	case store.Synced:
		return send(v1.ChangeKind_CHANGE_KIND_SYNCED, r.zero, e.Revision)
	case store.Progress:
		return nil
	}
	var was, is T
	before, now := false, false
	if !isNil(e.Old) {
		was = r.seen(e.Old)
		before = match(was)
	}
	if e.Type == store.Put {
		is = r.seen(e.Object)
		now = match(is)
	}
	switch {
	case now && before:
		return send(v1.ChangeKind_CHANGE_KIND_MODIFIED, is, e.Revision)
	case now:
		return send(v1.ChangeKind_CHANGE_KIND_ADDED, is, e.Revision)
	case before:
		return send(v1.ChangeKind_CHANGE_KIND_DELETED, was, e.Revision)
	}
	return nil
}

func isNil[T Object](obj T) bool { return !obj.ProtoReflect().IsValid() }

// create stores a new object, together with ops or not at all.
func (r *Registry[T]) create(ctx context.Context, s *store.Store, obj T, ops ...store.Op) (T, error) {
	m := obj.GetMeta()
	now := timestamppb.New(r.clk.Now())
	m.Uid, m.Generation, m.CreateTime, m.UpdateTime, m.DeleteTime = resource.NewUID(), 1, now, now, nil
	rev, err := s.Txn(ctx, append([]store.Op{r.coll.CreateOp(obj)}, ops...)...)
	if err != nil {
		return r.zero, r.translate(err, m.Name)
	}
	if err := r.cache.WaitRevision(ctx, rev); err != nil {
		return r.zero, err
	}
	return r.seen(obj), nil
}

// errSame ends a Mutate that would change nothing.
var errSame = errors.New("nothing to change")

// mutate changes an object and waits until the copy in memory shows it. change may return errSame to leave it as it is.
func (r *Registry[T]) mutate(ctx context.Context, name string, change func(T) error) (T, error) {
	var same T
	obj, err := r.coll.Mutate(ctx, name, func(obj T) error {
		if err := change(obj); err != nil {
			same = obj
			return err
		}
		obj.GetMeta().UpdateTime = timestamppb.New(r.clk.Now())
		return nil
	})
	if errors.Is(err, errSame) {
		return r.seen(same), nil
	}
	if err != nil {
		return r.zero, r.translate(err, name)
	}
	if err := r.cache.WaitRevision(ctx, obj.GetMeta().Revision); err != nil {
		return r.zero, err
	}
	return r.seen(obj), nil
}

// remove deletes an object whatever its revision, or the given one.
func (r *Registry[T]) remove(ctx context.Context, name string, revision int64) error {
	rev, err := r.coll.Delete(ctx, name, revision)
	if err != nil {
		return r.translate(err, name)
	}
	return r.cache.WaitRevision(ctx, rev)
}

// translate puts an error of the store into words for people.
func (r *Registry[T]) translate(err error, name string) error {
	kind := r.kind
	var se *store.Error
	if errors.As(err, &se) && se.Kind != "" {
		kind, name = se.Kind, se.Name
	}
	e := &resource.Error{Kind: kind, Name: name, Err: err}
	var told *resource.Error
	switch {
	case errors.As(err, &told):
		return told
	case errors.Is(err, store.ErrNotFound):
		return notFound(kind, name)
	case errors.Is(err, store.ErrExists) && kind == kindMAC:
		e.Code, e.Kind, e.Name, e.Reason, e.Message = resource.Exists, resource.KindNIC, "", "MAC_TAKEN", "MAC address "+macOfClaim(name)+" belongs to another VM's NIC"
		e.Remedy = "choose another, or leave it out to be given one"
	case errors.Is(err, store.ErrExists):
		e.Code, e.Reason, e.Message, e.Remedy = resource.Exists, "NAME_TAKEN", "the name is taken", "choose another name"
	case errors.Is(err, store.ErrConflict):
		e.Code, e.Reason, e.Message, e.Remedy = resource.Conflict, "REVISION_CONFLICT", "was changed by someone else meanwhile", "read it again and repeat the change"
	case errors.Is(err, store.ErrUnavailable):
		e.Code, e.Reason, e.Message, e.Remedy = resource.Unavailable, "STATE_UNAVAILABLE", "the manager's state store does not answer", "look at it before repeating: the change may have been made"
	default:
		return err
	}
	return e
}

// atRevision refuses a change that was based on another revision than the present one.
func atRevision(kind resource.Kind, m *v1.Meta, revision int64) error {
	if revision == 0 || revision == m.GetRevision() {
		return nil
	}
	return &resource.Error{Code: resource.Conflict, Kind: kind, Name: m.GetName(), Reason: "REVISION_CONFLICT",
		Message: "is at revision " + strconv.FormatInt(m.GetRevision(), 10) + ", not " + strconv.FormatInt(revision, 10),
		Remedy:  "read it again and repeat the change"}
}

// merge takes what mask names from patch into obj. Only the spec, labels and annotations can be changed; generation counts changes
// of the spec. It returns errSame when nothing differs.
func merge[T Object](kind resource.Kind, obj, patch T, mask *fieldmaskpb.FieldMask) error {
	m := patch.GetMeta()
	if err := atRevision(kind, obj.GetMeta(), m.GetRevision()); err != nil {
		return err
	}
	before := proto.CloneOf(obj)
	paths := slices.Clone(mask.GetPaths())
	if len(paths) == 0 {
		paths = []string{"spec", "meta.labels", "meta.annotations"}
	}
	for _, p := range paths {
		if p != "spec" && !strings.HasPrefix(p, "spec.") && !strings.HasPrefix(p, "meta.labels") && !strings.HasPrefix(p, "meta.annotations") {
			return &resource.Error{Code: resource.Invalid, Kind: kind, Name: m.GetName(), Field: p, Reason: "FIELD_READ_ONLY", Message: "can't be changed by an update", Remedy: "name paths below spec, meta.labels or meta.annotations"}
		}
	}
	if err := query.Apply(&fieldmaskpb.FieldMask{Paths: paths}, obj, patch); err != nil {
		return &resource.Error{Code: resource.Invalid, Kind: kind, Name: m.GetName(), Reason: "MASK_INVALID", Message: err.Error(), Err: err}
	}
	if spec := obj.ProtoReflect().Descriptor().Fields().ByName("spec"); spec != nil && before.ProtoReflect().Has(spec) && !obj.ProtoReflect().Has(spec) {
		return &resource.Error{Code: resource.Invalid, Kind: kind, Name: m.GetName(), Field: "spec", Reason: "SPEC_MISSING", Message: "an update without a mask replaces the whole spec, and none is given", Remedy: "name what shall change in the mask"}
	}
	if proto.Equal(before, obj) {
		return errSame
	}
	spec := obj.ProtoReflect().Descriptor().Fields().ByName("spec")
	if spec != nil && !equalField(before, obj, spec) {
		obj.GetMeta().Generation++
	}
	return nil
}

func equalField(a, b proto.Message, fd protoreflect.FieldDescriptor) bool {
	return proto.Equal(a.ProtoReflect().Get(fd).Message().Interface(), b.ProtoReflect().Get(fd).Message().Interface())
}

// needMeta refuses an object without a name before anything looks at it.
func needMeta[T Object](kind resource.Kind, obj T) error {
	if isNil(obj) || obj.GetMeta() == nil {
		return &resource.Error{Code: resource.Invalid, Kind: kind, Field: "meta.name", Reason: "NAME_MISSING", Message: "a name is needed"}
	}
	return nil
}
