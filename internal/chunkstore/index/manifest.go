package index

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"strings"
)

const (
	manifestName = "MANIFEST"
	runPrefix    = "run-"
)

func runName() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return runPrefix + hex.EncodeToString(b[:])
}

// readManifest gives the runs' names, none if it is damaged.
func (x *Index) readManifest() []string {
	raw, err := fs.ReadFile(x.root.FS(), manifestName)
	if err != nil {
		return nil
	}
	var m struct {
		Repository string
		Runs       []string
	}
	sum, body, ok := strings.Cut(string(raw), "\n")
	if !ok || sum != checksum([]byte(body)) || json.Unmarshal([]byte(body), &m) != nil || m.Repository != hex.EncodeToString(x.o.Repository[:]) {
		x.log.Warn("index cache is not of this repository or damaged; it is built anew")
		return nil
	}
	return m.Runs
}

// writeManifest names the runs, oldest first, as they are now. The cache is whole without it: it is built anew.
func (x *Index) writeManifest() {
	m := struct {
		Repository string
		Runs       []string
	}{Repository: hex.EncodeToString(x.o.Repository[:])}
	x.mu.RLock()
	for _, r := range x.view.runs {
		m.Runs = append(m.Runs, r.name)
	}
	x.mu.RUnlock()
	body, err := json.Marshal(m)
	if err == nil {
		err = x.writeSynced(manifestName+".new", append([]byte(checksum(body)+"\n"), body...))
	}
	if err == nil {
		err = x.root.Rename(manifestName+".new", manifestName)
	}
	if err != nil {
		x.log.Warn("cannot write the index cache's manifest", "error", err)
	}
}

func checksum(b []byte) string { return fmt.Sprintf("%08x", crc32.Checksum(b, castagnoli)) }

// load opens the runs that the manifest names, and removes all other files.
func (x *Index) load() []*run {
	var runs []*run
	keep := map[string]bool{"LOCK": true, manifestName: true}
	for _, name := range x.readManifest() {
		r, err := openRun(x.root, name, x.o.Repository)
		if err != nil {
			x.log.Warn("index run is dropped; its packs are read again", "error", err)
			continue
		}
		keep[name] = true
		runs = append(runs, r)
	}
	entries, err := fs.ReadDir(x.root.FS(), ".")
	if err != nil {
		x.log.Warn("cannot list the index cache", "error", err)
	}
	for _, e := range entries {
		if !keep[e.Name()] && strings.HasPrefix(e.Name(), runPrefix) {
			_ = x.root.Remove(e.Name()) // tried again at the next opening
		}
	}
	return runs
}

func (x *Index) writeSynced(name string, b []byte) error {
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}
