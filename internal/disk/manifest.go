package disk

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
)

const (
	manifestName    = "layers.json"
	manifestVersion = 1
)

// manifest is layers.json: the only truth about a VM's layers. It is replaced whole, atomically.
type manifest struct {
	Version   int                  `json:"version"`
	VM        string               `json:"vm"`
	Disks     map[string]string    `json:"disks"` // disk → its active layer
	Layers    map[string]*layer    `json:"layers"`
	Snapshots map[string]*snapshot `json:"snapshots,omitempty"`
	Current   string               `json:"current,omitempty"` // the snapshot that the disks descend from
}

// layer is one file. Its ID stays when a merge moves its content into another file.
type layer struct {
	File    string `json:"file"`
	Format  string `json:"format"`
	Size    int64  `json:"size"` // virtual, bytes
	Parent  *ref   `json:"parent,omitempty"`
	Frozen  bool   `json:"frozen,omitempty"`  // derived on save: not active
	Merging string `json:"merging,omitempty"` // the child that a live merge folds together with this layer
}

// ref names what lies below a layer: an image of the datastore, a layer of this VM (VM empty) or another, or a base that is
// read over the network.
type ref struct {
	Image  string `json:"image,omitempty"`
	VM     string `json:"vm,omitempty"`
	Layer  string `json:"layer,omitempty"`
	Remote string `json:"remote,omitempty"`
}

type snapshot struct {
	Parent  string            `json:"parent,omitempty"`
	Disks   map[string]string `json:"disks"`
	Memory  string            `json:"memory,omitempty"`
	Pending bool              `json:"pending,omitempty"` // begun; QEMU may still write to the frozen layer
}

var (
	idPattern    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	diskPattern  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	layerPattern = regexp.MustCompile(`^[0-9a-f]{16}$`)
	filePattern  = regexp.MustCompile(`^[0-9a-f]{16}\.(qcow2|raw)$`)
	memPattern   = regexp.MustCompile(`^[0-9a-f]{16}\.mem$`)
	imagePattern = regexp.MustCompile(`^[0-9a-f]{64}\.(qcow2|iso)$`)
)

func checkID(kind, id string) error {
	p := idPattern
	if kind == "disk" {
		p = diskPattern
	}
	if !p.MatchString(id) {
		return fmt.Errorf("%s %.80q: %w: small letters, digits and dashes, at most 63", kind, id, ErrInvalid)
	}
	return nil
}

func newID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

func newManifest(vm string) *manifest {
	return &manifest{Version: manifestVersion, VM: vm, Disks: map[string]string{}, Layers: map[string]*layer{}, Snapshots: map[string]*snapshot{}}
}

func (m *manifest) clone() *manifest {
	b, err := json.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("clone a manifest: %v", err)) // strings and numbers only
	}
	n := newManifest(m.VM)
	if err := json.Unmarshal(b, n); err != nil {
		panic(fmt.Sprintf("clone a manifest: %v", err))
	}
	return n
}

// parseManifest checks everything that later code relies on, so that a damaged file does no further damage.
func parseManifest(vm string, b []byte) (*manifest, error) {
	m := newManifest(vm)
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	if m.Version != manifestVersion {
		return nil, fmt.Errorf("version %d; this Drover knows version %d", m.Version, manifestVersion)
	}
	if m.VM != vm {
		return nil, fmt.Errorf("it belongs to VM %.80q", m.VM)
	}
	files := make(map[string]bool)
	for id, l := range m.Layers {
		switch {
		case l == nil || !layerPattern.MatchString(id) || !filePattern.MatchString(l.File) || files[l.File]:
			return nil, fmt.Errorf("layer %.40q is damaged", id)
		case l.Format != "qcow2" && l.Format != "raw" || l.Size <= 0:
			return nil, fmt.Errorf("layer %s has format %.20q and size %d", id, l.Format, l.Size)
		}
		files[l.File] = true
		if p := l.Parent; p != nil {
			switch {
			case p.Remote != "":
				if p.Image != "" || p.VM != "" || p.Layer != "" || !remotePattern.MatchString(p.Remote) {
					return nil, fmt.Errorf("layer %s has a damaged parent", id)
				}
			case p.Image != "" && (p.Layer != "" || p.VM != "" || !imagePattern.MatchString(p.Image)),
				p.Image == "" && !layerPattern.MatchString(p.Layer),
				p.VM != "" && !idPattern.MatchString(p.VM),
				p.Image == "" && p.VM == "" && m.Layers[p.Layer] == nil:
				return nil, fmt.Errorf("layer %s has a damaged parent", id)
			}
		}
	}
	for id := range m.Layers {
		seen := 0
		for l := m.Layers[id]; l.Parent != nil && l.Parent.VM == "" && l.Parent.Layer != ""; l = m.Layers[l.Parent.Layer] {
			if seen++; seen > len(m.Layers) {
				return nil, fmt.Errorf("layer %s is its own ancestor", id)
			}
		}
	}
	for d, id := range m.Disks {
		if !diskPattern.MatchString(d) || m.Layers[id] == nil {
			return nil, fmt.Errorf("disk %.80q has no layer", d)
		}
	}
	for name, s := range m.Snapshots {
		if s == nil || !idPattern.MatchString(name) || s.Memory != "" && !memPattern.MatchString(s.Memory) {
			return nil, fmt.Errorf("snapshot %.80q is damaged", name)
		}
		for d, id := range s.Disks {
			if !diskPattern.MatchString(d) || m.Layers[id] == nil {
				return nil, fmt.Errorf("snapshot %s: disk %.80q has no layer", name, d)
			}
		}
	}
	return m, nil
}

func (m *manifest) active(id string) bool {
	for _, a := range m.Disks {
		if a == id {
			return true
		}
	}
	return false
}

// children are the layers of the same VM right above id.
func (m *manifest) children(id string) []string {
	var out []string
	for c, l := range m.Layers {
		if l.Parent != nil && l.Parent.VM == "" && l.Parent.Layer == id {
			out = append(out, c)
		}
	}
	slices.Sort(out)
	return out
}

func (m *manifest) heldBySnapshot(id string) bool {
	for _, s := range m.Snapshots {
		for _, l := range s.Disks {
			if l == id {
				return true
			}
		}
	}
	return false
}

// collect drops the layers that nobody can reach; outside are those that other VMs hold.
func (m *manifest) collect(outside map[string][]string) {
	keep := make(map[string]bool)
	var mark func(id string)
	mark = func(id string) {
		l := m.Layers[id]
		if l == nil || keep[id] {
			return
		}
		keep[id] = true
		if l.Parent != nil && l.Parent.VM == "" {
			mark(l.Parent.Layer)
		}
	}
	for _, id := range m.Disks {
		mark(id)
	}
	for _, s := range m.Snapshots {
		for _, id := range s.Disks {
			mark(id)
		}
	}
	for id := range outside {
		mark(id)
	}
	maps.DeleteFunc(m.Layers, func(id string, _ *layer) bool { return !keep[id] })
	for _, l := range m.Layers {
		if l.Merging != "" && m.Layers[l.Merging] == nil {
			l.Merging = ""
		}
	}
}

// files are the names that the manifest knows in the VM's directory.
func (m *manifest) files() map[string]bool {
	f := map[string]bool{manifestName: true}
	for _, l := range m.Layers {
		f[l.File] = true
	}
	for _, s := range m.Snapshots {
		if s.Memory != "" {
			f[s.Memory] = true
		}
	}
	return f
}

// save makes the manifest durable, then the cache's.
func (s *Store) save(m *manifest) error {
	for id, l := range m.Layers {
		l.Frozen = !m.active(id)
	}
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	if _, err := parseManifest(m.VM, b); err != nil {
		return fmt.Errorf("save the layers of VM %s: internal error: %w", m.VM, err)
	}
	dir := vmDir(m.VM)
	s.step("before manifest")
	if err := s.writeSynced(dir+"/"+manifestName+".new", b); err != nil {
		return fmt.Errorf("save the layers of VM %s: %w", m.VM, err)
	}
	s.step("manifest written")
	if err := s.root.Rename(dir+"/"+manifestName+".new", dir+"/"+manifestName); err != nil {
		return fmt.Errorf("save the layers of VM %s: %w", m.VM, err)
	}
	// From here readers may see it, so the cache follows even if the sync fails.
	s.mu.Lock()
	s.vms[m.VM] = m.clone()
	s.mu.Unlock()
	if err := s.syncDir(dir); err != nil {
		return fmt.Errorf("save the layers of VM %s: %w", m.VM, err)
	}
	s.step("manifest in place")
	return nil
}

func (s *Store) writeSynced(name string, b []byte) (err error) {
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.Sync()
}

func (s *Store) syncDir(name string) error {
	d, err := s.root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// load reads a VM's manifest from the directory.
func (s *Store) load(vm string) (*manifest, error) {
	f, err := s.root.Open(vmDir(vm) + "/" + manifestName)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 16<<20))
	if err != nil {
		return nil, err
	}
	return parseManifest(vm, b)
}
