package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	v1 "drover/api/drover/v1"
)

// world is what the manager told besides VMs and registrations: datastores, networks, port profiles, other hosts, images, the host's own record. It is kept in
// STATE/world.pb, a row of length-delimited AgentChange messages.
type world struct {
	path string

	mu         sync.Mutex
	datastores map[string]*v1.Datastore
	networks   map[string]*v1.Network
	images     map[string]*v1.Image
	profiles   map[string]*v1.PortProfile
	peers      map[string]*v1.Peer
	host       *v1.Host
	dirty      bool
}

const worldFile = "world.pb"

// worldLimit bounds one message of world.pb: an image record with all its fields is a few KiB.
const worldLimit = 4 << 20

func loadWorld(dir string) (*world, error) {
	w := &world{path: filepath.Join(dir, worldFile)}
	w.clear()
	data, err := os.ReadFile(w.path)
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	if err != nil {
		return nil, err
	}
	in := bytes.NewReader(data)
	for {
		c := new(v1.AgentChange)
		err := protodelim.UnmarshalOptions{MaxSize: worldLimit}.UnmarshalFrom(in, c)
		if errors.Is(err, io.EOF) {
			return w, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w; remove the file and the manager tells it again", w.path, err)
		}
		w.put(c)
	}
}

func (w *world) clear() {
	w.datastores = map[string]*v1.Datastore{}
	w.networks = map[string]*v1.Network{}
	w.images = map[string]*v1.Image{}
	w.profiles = map[string]*v1.PortProfile{}
	w.peers = map[string]*v1.Peer{}
}

// put takes one change of anything but a VM.
func (w *world) put(c *v1.AgentChange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dirty = true
	gone := c.GetKind() == v1.ChangeKind_CHANGE_KIND_DELETED
	switch o := c.GetObject().(type) {
	case *v1.AgentChange_Datastore:
		set(w.datastores, o.Datastore.GetMeta().GetName(), o.Datastore, gone)
	case *v1.AgentChange_Network:
		set(w.networks, o.Network.GetMeta().GetName(), o.Network, gone)
	case *v1.AgentChange_Image:
		set(w.images, o.Image.GetMeta().GetName(), o.Image, gone)
	case *v1.AgentChange_Profile:
		set(w.profiles, o.Profile.GetMeta().GetName(), o.Profile, gone)
	case *v1.AgentChange_Peer:
		set(w.peers, o.Peer.GetHost(), o.Peer, gone)
	case *v1.AgentChange_Host:
		w.host = o.Host
	}
}

func set[T any](m map[string]T, name string, v T, gone bool) {
	if gone {
		delete(m, name)
	} else {
		m[name] = v
	}
}

// keep forgets what a whole list did not name. seen has "kind/name".
func (w *world) keep(seen map[string]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dirty = true
	for n := range w.datastores {
		if !seen["datastore/"+n] {
			delete(w.datastores, n)
		}
	}
	for n := range w.networks {
		if !seen["network/"+n] {
			delete(w.networks, n)
		}
	}
	for n := range w.images {
		if !seen["image/"+n] {
			delete(w.images, n)
		}
	}
	for n := range w.profiles {
		if !seen["profile/"+n] {
			delete(w.profiles, n)
		}
	}
	for n := range w.peers {
		if !seen["peer/"+n] {
			delete(w.peers, n)
		}
	}
}

// save writes the file if anything changed.
func (w *world) save() error {
	w.mu.Lock()
	if !w.dirty {
		w.mu.Unlock()
		return nil
	}
	var all []*v1.AgentChange
	for _, o := range w.datastores {
		all = append(all, &v1.AgentChange{Object: &v1.AgentChange_Datastore{Datastore: o}})
	}
	for _, o := range w.networks {
		all = append(all, &v1.AgentChange{Object: &v1.AgentChange_Network{Network: o}})
	}
	for _, o := range w.images {
		all = append(all, &v1.AgentChange{Object: &v1.AgentChange_Image{Image: o}})
	}
	for _, o := range w.profiles {
		all = append(all, &v1.AgentChange{Object: &v1.AgentChange_Profile{Profile: o}})
	}
	for _, o := range w.peers {
		all = append(all, &v1.AgentChange{Object: &v1.AgentChange_Peer{Peer: o}})
	}
	if w.host != nil {
		all = append(all, &v1.AgentChange{Object: &v1.AgentChange_Host{Host: w.host}})
	}
	w.dirty = false
	w.mu.Unlock()
	var out bytes.Buffer
	for _, c := range all {
		if _, err := protodelim.MarshalTo(&out, c); err != nil {
			return err
		}
	}
	return writeFile(w.path, out.Bytes(), 0o600)
}

func (w *world) image(name string) *v1.Image {
	w.mu.Lock()
	defer w.mu.Unlock()
	return clone(w.images[name])
}

func (w *world) datastore(name string) *v1.Datastore {
	w.mu.Lock()
	defer w.mu.Unlock()
	return clone(w.datastores[name])
}

func (w *world) network(name string) *v1.Network {
	w.mu.Lock()
	defer w.mu.Unlock()
	return clone(w.networks[name])
}

// hostRecord is this host's own record; nil if the manager has not told it yet. It is not to be changed.
func (w *world) hostRecord() *v1.Host {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.host
}

func (w *world) allDatastores() []*v1.Datastore {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*v1.Datastore
	for _, d := range w.datastores {
		out = append(out, clone(d))
	}
	return out
}

func clone[T proto.Message](m T) T { return proto.CloneOf(m) }

// imageSums are the SHA-256 of all images that the manager has.
func (w *world) imageSums() map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]bool{}
	for _, i := range w.images {
		out[i.GetStatus().GetSha256()] = true
	}
	return out
}
