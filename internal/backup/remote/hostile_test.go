package remote

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
	"drover/api/drover/v1/droverv1connect"
	"drover/internal/backup"
	"drover/internal/chunkstore"
	"drover/internal/chunkstore/pack"
)

const blockSize = 4096

// hostile is a vault that answers what it likes.
type hostile struct {
	droverv1connect.VaultServiceClient
	answers [][]byte // in turn; then empty ones
	asked   int
	offer   *v1.VaultOfferResponse
	prove   *v1.VaultProveResponse
	point   string
	calls   int
}

func answer[M proto.Message](h *hostile, m M) (M, error) {
	if h.calls++; h.calls > 1000 {
		return m, context.DeadlineExceeded
	}
	if h.asked < len(h.answers) {
		_ = proto.Unmarshal(h.answers[h.asked], m)
		h.asked++
	}
	return m, nil
}

func (h *hostile) Info(context.Context, *v1.VaultInfoRequest) (*v1.VaultInfoResponse, error) {
	return &v1.VaultInfoResponse{BlockSize: blockSize, Hash: "blake3", IdKey: make([]byte, 32)}, nil
}
func (h *hostile) Begin(context.Context, *v1.VaultBeginRequest) (*v1.VaultBeginResponse, error) {
	return &v1.VaultBeginResponse{Session: "s", Challenge: make([]byte, 32)}, nil
}
func (h *hostile) OpenPoint(context.Context, *v1.VaultOpenPointRequest) (*v1.VaultOpenPointResponse, error) {
	return &v1.VaultOpenPointResponse{Session: "s", Point: []byte(h.point)}, nil
}
func (h *hostile) End(context.Context, *v1.VaultEndRequest) (*v1.VaultEndResponse, error) {
	return &v1.VaultEndResponse{}, nil
}
func (h *hostile) Disk(context.Context, *v1.VaultDiskRequest) (*v1.VaultDiskResponse, error) {
	return &v1.VaultDiskResponse{}, nil
}
func (h *hostile) Parent(context.Context, *v1.VaultParentRequest) (*v1.VaultParentResponse, error) {
	return answer(h, &v1.VaultParentResponse{})
}
func (h *hostile) Offer(context.Context, *v1.VaultOfferRequest) (*v1.VaultOfferResponse, error) {
	if h.offer != nil {
		return h.offer, nil
	}
	return answer(h, &v1.VaultOfferResponse{})
}
func (h *hostile) Prove(context.Context, *v1.VaultProveRequest) (*v1.VaultProveResponse, error) {
	if h.prove != nil {
		return h.prove, nil
	}
	return answer(h, &v1.VaultProveResponse{})
}
func (h *hostile) Send(context.Context, *v1.VaultSendRequest) (*v1.VaultSendResponse, error) {
	return answer(h, &v1.VaultSendResponse{})
}
func (h *hostile) Finish(context.Context, *v1.VaultFinishRequest) (*v1.VaultFinishResponse, error) {
	return answer(h, &v1.VaultFinishResponse{})
}
func (h *hostile) Commit(context.Context, *v1.VaultCommitRequest) (*v1.VaultCommitResponse, error) {
	return answer(h, &v1.VaultCommitResponse{})
}
func (h *hostile) Extents(context.Context, *v1.VaultExtentsRequest) (*v1.VaultExtentsResponse, error) {
	return answer(h, &v1.VaultExtentsResponse{})
}
func (h *hostile) Changed(context.Context, *v1.VaultChangedRequest) (*v1.VaultExtentsResponse, error) {
	return answer(h, &v1.VaultExtentsResponse{})
}
func (h *hostile) Blocks(context.Context, *v1.VaultBlocksRequest) (*v1.VaultBlocksResponse, error) {
	return answer(h, &v1.VaultBlocksResponse{})
}

func (h *hostile) repository() *Repository {
	return New(Options{Client: h, Repository: "r", Grant: "g", Retry: time.Millisecond, InFlight: 1})
}

// backUp writes a disk of five blocks.
func (h *hostile) backUp(ctx context.Context) error {
	s, err := h.repository().Begin(ctx, backup.SessionOptions{VMUID: "vm"})
	if err != nil {
		return err
	}
	defer s.Close()
	w, err := s.Disk(ctx, backup.DiskOptions{Name: "d", Size: 5 * blockSize})
	if err != nil {
		return err
	}
	for b := range int64(5) {
		if err := w.Put(ctx, b, slices.Repeat([]byte{byte(b + 1)}, blockSize)); err != nil {
			return err
		}
	}
	if _, err := w.Finish(ctx); err != nil {
		return err
	}
	_, err = s.Commit(ctx, backup.Point{ID: "00112233445566778899aabbccddeeff", VMUID: "vm", Disks: []backup.Disk{{Name: "d", Size: 5 * blockSize}}})
	return err
}

// A vault that asks for a block again and again gets none: each time would take memory.
func TestAsksTooMuch(t *testing.T) {
	for name, h := range map[string]*hostile{
		"missing":          {offer: &v1.VaultOfferResponse{Missing: make([]int32, 100_000)}},
		"prove":            {offer: &v1.VaultOfferResponse{Prove: make([]int32, 100_000)}},
		"unproven":         {offer: &v1.VaultOfferResponse{Prove: []int32{0}}, prove: &v1.VaultProveResponse{Missing: make([]int32, 100_000)}},
		"none of an offer": {offer: &v1.VaultOfferResponse{Missing: []int32{5}}},
		"below none":       {offer: &v1.VaultOfferResponse{Prove: []int32{-1}}},
	} {
		if err := h.backUp(t.Context()); err == nil {
			t.Errorf("%s: a vault that asks for nonsense has a backup", name)
		}
	}
}

// Changes are in order and within the disk: who copies or reads by them trusts that.
func TestHostileExtents(t *testing.T) {
	for name, list := range map[string][]*v1.VaultExtent{
		"negative":  {{Offset: -4096, Length: 4096}},
		"beyond":    {{Offset: 0, Length: 1 << 62}},
		"backwards": {{Offset: 8192, Length: 4096}, {Offset: 0, Length: 4096}},
		"overflow":  {{Offset: 4096, Length: 1<<63 - 1}},
		"empty":     {{Offset: 4096}},
	} {
		b, err := proto.Marshal(&v1.VaultExtentsResponse{Extents: list})
		if err != nil {
			t.Fatal(err)
		}
		h := &hostile{answers: [][]byte{b}, point: `{"id":"00112233445566778899aabbccddeeff","disks":[{"name":"d","size":20480}]}`}
		p, err := h.repository().OpenPoint(t.Context(), "00112233445566778899aabbccddeeff")
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.Disk(t.Context(), "d")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := d.Changed(t.Context(), "x", "d"); err == nil {
			t.Errorf("%s: %v", name, got)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	h := &hostile{point: `{"disks":[{"name":"d","size":-1}]}`}
	if _, err := h.repository().OpenPoint(t.Context(), "00112233445566778899aabbccddeeff"); err == nil {
		t.Error("a disk of less than nothing")
	}
}

// FuzzVault answers a host with anything: no panic, no memory without bound, no end that does not come, and never bytes that no id vouches for.
func FuzzVault(f *testing.F) {
	pb := func(list ...proto.Message) (out []byte) {
		for _, m := range list {
			b, err := proto.Marshal(m)
			if err != nil {
				f.Fatal(err)
			}
			out = protowire.AppendBytes(out, b)
		}
		return out
	}
	const good = `{"id":"00112233445566778899aabbccddeeff","disks":[{"name":"d","size":20480}]}`
	f.Add(good, pb(&v1.VaultExtentsResponse{Extents: []*v1.VaultExtent{{Length: 20480}}}, &v1.VaultBlocksResponse{Blocks: []*v1.VaultBlock{{Block: 1, Id: make([]byte, 32), RawLength: blockSize, Data: make([]byte, blockSize)}}}))
	f.Add(good, pb(&v1.VaultOfferResponse{Missing: []int32{0, 4}, Prove: []int32{1}}, &v1.VaultProveResponse{Missing: []int32{0}}, &v1.VaultSendResponse{}, &v1.VaultFinishResponse{Stored: 1}, &v1.VaultCommitResponse{Point: []byte("{}")}))
	f.Add(`{"disks":[{"name":"d","size":-5},{"name":"e","size":9223372036854775807}]}`, []byte{})
	f.Fuzz(func(t *testing.T, point string, b []byte) {
		var answers [][]byte
		for len(b) > 0 && len(answers) < 20 {
			a, n := protowire.ConsumeBytes(b)
			if n < 0 {
				break
			}
			answers, b = append(answers, a), b[n:]
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_ = (&hostile{answers: answers}).backUp(ctx)
		h := &hostile{answers: answers, point: point}
		p, err := h.repository().OpenPoint(ctx, "00112233445566778899aabbccddeeff")
		if err != nil {
			return
		}
		defer p.Close()
		for _, disk := range p.Point().Disks[:min(len(p.Point().Disks), 3)] {
			d, err := p.Disk(ctx, disk.Name)
			if err != nil {
				continue
			}
			_, _ = d.Extents(ctx, 0, 1<<20)
			buf := make([]byte, 3*blockSize)
			_ = d.ReadAt(ctx, buf, 100)
			if disk.Size < 1<<40 {
				_, _ = d.Changed(ctx, "x", "d")
			}
			c := &copyPoint{p: p.(*pointReader), bs: blockSize}
			_ = c.Blocks(ctx, disk.Name, 0, 4, func(block int64, _ chunkstore.ID, _ pack.Codec, _ int, _ []byte) error {
				if block < 0 || block >= 4 {
					t.Fatalf("block %d of 4", block)
				}
				return nil
			})
		}
		if ctx.Err() != nil {
			t.Fatal("it took too long")
		}
	})
}
