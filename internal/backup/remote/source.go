package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/chunkstore"
	"drover/internal/chunkstore/ledger"
	"drover/internal/chunkstore/pack"
)

// Source is the repository as what points are copied from.
type Source struct {
	r    *Repository
	info *v1.VaultInfoResponse
}

// Source asks the vault what it has.
func (r *Repository) Source(ctx context.Context) (*Source, error) {
	info, err := r.about(ctx)
	if err != nil {
		return nil, err
	}
	return &Source{r: r, info: info}, nil
}

// BlockSize in bytes.
func (s *Source) BlockSize() int { return int(s.info.GetBlockSize()) }

// IDKey lets the copy compare blocks with their ids.
func (s *Source) IDKey() (hash string, key []byte) { return s.info.GetHash(), s.info.GetIdKey() }

// Points lists points, the oldest first.
func (s *Source) Points(ctx context.Context) ([]*ledger.Point, error) {
	list, err := s.r.Points(ctx, "")
	if err != nil {
		return nil, err
	}
	out := make([]*ledger.Point, 0, len(list))
	for _, p := range list {
		id, err := backup.ParsePointID(p.ID)
		if err != nil {
			return nil, err
		}
		// A vault lists no files of points: who says so wants his own in another's place.
		maps.DeleteFunc(p.Labels, func(k, _ string) bool { return backup.ReservedLabel(k) })
		q := &ledger.Point{Id: id[:], VmUid: p.VMUID, Vm: p.VM, Time: timestamppb.New(p.Time), Logical: p.Logical, Added: p.Added, Labels: p.Labels}
		for _, d := range p.Disks {
			q.Disks = append(q.Disks, &ledger.Disk{Name: d.Name, Size: d.Size})
		}
		out = append(out, q)
	}
	return out, nil
}

// Open makes a point readable.
func (s *Source) Open(ctx context.Context, id chunkstore.PointID) (chunkstore.CopyPoint, error) {
	p, err := s.r.OpenPoint(ctx, id.String())
	if err != nil {
		return nil, err
	}
	return &copyPoint{p: p.(*pointReader), bs: int64(s.BlockSize())}, nil
}

type copyPoint struct {
	p  *pointReader
	bs int64
}

func (c *copyPoint) Description(context.Context) ([]byte, error) { return json.Marshal(c.p.point) }

func (c *copyPoint) Close(context.Context) error { return c.p.Close() }

func (c *copyPoint) Changed(ctx context.Context, disk string, from chunkstore.PointID, fromDisk string) ([]chunkstore.Extent, error) {
	d, err := c.p.Disk(ctx, disk)
	if err != nil {
		return nil, err
	}
	whole := from == chunkstore.PointID{}
	var list []backup.Extent
	if whole {
		list, err = d.Extents(ctx, 0, d.Size())
	} else {
		list, err = d.Changed(ctx, from.String(), fromDisk)
	}
	if err != nil {
		return nil, err
	}
	out := make([]chunkstore.Extent, 0, len(list))
	for _, e := range list {
		if !whole || !e.Zero {
			out = append(out, chunkstore.Extent{Offset: e.Offset, Length: e.Length, Zero: e.Zero})
		}
	}
	return out, nil
}

func (c *copyPoint) Blocks(ctx context.Context, disk string, block int64, count int, each func(block int64, id chunkstore.ID, codec pack.Codec, raw int, payload []byte) error) error {
	most := int(max(batchBytes/c.bs, 1))
	for count > 0 {
		n := min(count, most)
		res, err := read(ctx, c.p, func(token string) (*v1.VaultBlocksResponse, error) {
			return c.p.r.o.Client.Blocks(ctx, &v1.VaultBlocksRequest{Session: token, Disk: disk, Runs: []int64{block, int64(n)}})
		})
		if err != nil {
			return fmt.Errorf("disk %s of point %s: blocks from %d: %w", disk, c.p.id, block, err)
		}
		for _, b := range res.GetBlocks() {
			if len(b.GetId()) != 32 || b.GetCodec() < 0 || b.GetCodec() > 255 || b.GetBlock() < block || b.GetBlock() >= block+int64(n) {
				return fmt.Errorf("disk %s of point %s: blocks from %d: %w: the vault's answer makes no sense", disk, c.p.id, block, backup.ErrDamaged)
			}
			if err := each(b.GetBlock(), pack.ID(b.GetId()), pack.Codec(b.GetCodec()), int(b.GetRawLength()), b.GetData()); err != nil {
				return err
			}
		}
		block += int64(n)
		count -= n
	}
	return nil
}

var _ chunkstore.CopySource = (*Source)(nil)
