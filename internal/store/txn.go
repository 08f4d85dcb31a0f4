package store

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Op is one check and at most one change of a transaction; a Collection makes it.
type Op struct {
	op, kind, name string
	key            string
	rev            int64 // the modification revision that must be there; 0: it must be absent
	write          *clientv3.Op
	done           func(rev int64) // after success
	err            error           // found while making it
}

func (o *Op) cmp() clientv3.Cmp { return clientv3.Compare(clientv3.ModRevision(o.key), "=", o.rev) }

// maxOps is etcd's default limit for one transaction.
const maxOps = 128

// Txn does all ops or none, at one revision, which it returns. When a check fails, the error names
// the first object whose check failed: ErrExists, ErrNotFound or ErrConflict.
func (s *Store) Txn(ctx context.Context, ops ...Op) (int64, error) {
	if len(ops) == 0 || len(ops) > maxOps {
		return 0, fmt.Errorf("%w: a transaction has 1 to %d operations, this one %d", ErrInvalid, maxOps, len(ops))
	}
	var cmps []clientv3.Cmp
	var writes, reads []clientv3.Op
	written := map[string]bool{}
	for i := range ops {
		o := &ops[i]
		if o.err != nil {
			return 0, fail(o.op, o.kind, o.name, o.err)
		}
		cmps = append(cmps, o.cmp())
		if o.write != nil {
			if written[o.key] {
				return 0, fail(o.op, o.kind, o.name, fmt.Errorf("%w: written twice in one transaction", ErrInvalid))
			}
			written[o.key] = true
			writes = append(writes, *o.write)
		}
		reads = append(reads, clientv3.OpGet(o.key, clientv3.WithKeysOnly()))
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	r, err := s.client.Txn(ctx).If(cmps...).Then(writes...).Else(reads...).Commit()
	if err != nil {
		return 0, fail(ops[0].op, ops[0].kind, ops[0].name, translate(ctx, err))
	}
	if r.Succeeded {
		for i := range ops {
			if ops[i].done != nil {
				ops[i].done(r.Header.Revision)
			}
		}
		return r.Header.Revision, nil
	}
	for i := range ops {
		var found int64
		if kvs := r.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			found = kvs[0].ModRevision
		}
		if err := ops[i].failed(found); err != nil {
			return 0, err
		}
	}
	return 0, fail(ops[0].op, ops[0].kind, ops[0].name, fmt.Errorf("%w: etcd refused a transaction whose checks all hold", ErrUnavailable))
}

// failed says why the check does not hold against what was found, or nil if it does.
func (o *Op) failed(found int64) error {
	switch {
	case found == o.rev:
		return nil
	case o.rev == 0:
		return fail(o.op, o.kind, o.name, ErrExists)
	case found == 0:
		return fail(o.op, o.kind, o.name, ErrNotFound)
	}
	return fail(o.op, o.kind, o.name, fmt.Errorf("%w: it is at revision %d, the change was made on %d", ErrConflict, found, o.rev))
}
