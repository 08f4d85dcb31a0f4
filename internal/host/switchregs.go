package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protodelim"

	v1 "drover/api/drover/v1"
	"drover/internal/vswitch/compile"
	"drover/internal/vswitch/table"
)

// registry is what the manager registered, on all hosts. It belongs to the fabric's goroutine, but for what snapshot returns.
type registry struct {
	all      map[table.FDBKey]compile.Registration
	revision int64
	pending  []*v1.Registrations // a batch that is not whole yet
	dirty    bool                // not on disk
}

// take adds a message. When its batch is whole it returns the steps; whole says that everything was replaced.
func (r *registry) take(m *v1.Registrations) (steps []compile.Step, whole bool, errs []error) {
	r.pending = append(r.pending, m)
	if m.GetMore() {
		return nil, false, nil
	}
	batch := r.pending
	r.pending = nil
	whole = batch[0].GetFull()
	if whole {
		r.all = map[table.FDBKey]compile.Registration{}
	}
	for _, m := range batch {
		for _, s := range m.GetRemoved() {
			key, err := compile.ReadKey(s)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if old, ok := r.all[key]; ok {
				steps = append(steps, compile.Step{Key: key, Old: &old})
				delete(r.all, key)
			}
		}
		for _, x := range m.GetSet() {
			key, reg, err := compile.Read(x)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if !whole {
				s := compile.Step{Key: key, New: &reg}
				if old, ok := r.all[key]; ok {
					s.Old = &old
				}
				steps = append(steps, s)
			}
			r.all[key] = reg
		}
		r.revision = max(r.revision, m.GetRevision())
	}
	r.dirty = true
	return steps, whole, errs
}

// begin forgets half a batch: the stream begins anew.
func (r *registry) begin() { r.pending = nil }

const registryFile = "registrations.pb"

// registryChunk is how many registrations one message of the file has.
const registryChunk = 1000

// loadRegistry reads what the last agent knew; the manager tells it anew, if it is there.
func loadRegistry(dir string) (registry, error) {
	r := registry{all: map[table.FDBKey]compile.Registration{}}
	path := filepath.Join(dir, registryFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	in := bytes.NewReader(data)
	for {
		m := new(v1.Registrations)
		err := protodelim.UnmarshalOptions{MaxSize: worldLimit}.UnmarshalFrom(in, m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return r, fmt.Errorf("read %s: %w", path, err)
		}
		if _, _, errs := r.take(m); len(errs) > 0 {
			return r, fmt.Errorf("read %s: %w", path, errors.Join(errs...))
		}
	}
	r.dirty, r.pending = false, nil
	return r, nil
}

// snapshot is a copy to be written by another goroutine.
func (r *registry) snapshot() (all map[table.FDBKey]compile.Registration, revision int64) {
	r.dirty = false
	return maps.Clone(r.all), r.revision
}

func saveRegistry(dir string, all map[table.FDBKey]compile.Registration, revision int64) error {
	var out bytes.Buffer
	m := &v1.Registrations{Revision: revision}
	flush := func() error {
		_, err := protodelim.MarshalTo(&out, m)
		m = &v1.Registrations{Revision: revision}
		return err
	}
	for key, r := range all {
		x := &v1.Registration{Port: r.Port, Host: r.Host, Vni: int32(key.Net), Mac: net.HardwareAddr(key.MAC[:]).String(), PrivateRole: roles[r.PVLAN], Community: int32(r.Community)}
		for _, a := range r.Addresses {
			x.Addresses = append(x.Addresses, a.String())
		}
		if m.Set = append(m.Set, x); len(m.Set) == registryChunk {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, registryFile), out.Bytes(), 0o600)
}

var roles = map[table.PVLAN]v1.PrivateRole{
	table.PVLANNone: v1.PrivateRole_PRIVATE_ROLE_NONE, table.PVLANPromiscuous: v1.PrivateRole_PRIVATE_ROLE_PROMISCUOUS,
	table.PVLANIsolated: v1.PrivateRole_PRIVATE_ROLE_ISOLATED, table.PVLANCommunity: v1.PrivateRole_PRIVATE_ROLE_COMMUNITY,
}
