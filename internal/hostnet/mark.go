package hostnet

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"
)

// MaxName is the longest link name the kernel takes: IFNAMSIZ less the NUL.
const MaxName = 15

const markPrefix = "drover:"

// Mark says whose a link is. It is stored as the link's alias,
// "drover:KIND:ID", and is what ownership is decided by, never the name.
type Mark struct {
	Kind string // what the link is for: "nic", "network", "lab"
	ID   string // uid of the owner, and more if one owner has several
}

func (m Mark) String() string { return markPrefix + m.Kind + ":" + m.ID }

// Validate checks that the mark can be stored and read back.
func (m Mark) Validate() error {
	if m.Kind == "" || m.ID == "" || strings.ContainsAny(m.Kind, ": \n\x00") ||
		strings.ContainsAny(m.ID, " \n\x00") || len(m.String()) > 255 {
		return fmt.Errorf("ownership mark %q: kind and id must be set, without spaces, and kind without a colon", m)
	}
	return nil
}

// ParseMark reads an alias; ok is false for a link that is not ours.
func ParseMark(alias string) (m Mark, ok bool) {
	rest, ok := strings.CutPrefix(alias, markPrefix)
	if !ok {
		return Mark{}, false
	}
	kind, id, ok := strings.Cut(rest, ":")
	m = Mark{kind, id}
	if !ok || m.Validate() != nil {
		return Mark{}, false
	}
	return m, true
}

// Name derives a link name from an id: prefix (at most 4 bytes) and as much of
// the id's hash as fits, 55 bits or more. The same id always gives the same name.
func Name(prefix, id string) string {
	sum := sha256.Sum256([]byte(id))
	s := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))
	if len(prefix) > 4 {
		prefix = prefix[:4]
	}
	return prefix + s[:MaxName-len(prefix)]
}

// derived says whether name is what Name makes of id with some prefix.
func derived(name, id string) bool {
	for k := range min(5, len(name)) {
		if name == Name(name[:k], id) {
			return true
		}
	}
	return false
}

// CheckName applies the kernel's rules for link names, and the stricter one that
// names are printable ASCII.
func CheckName(name string) error {
	bad := name == "" || name == "." || name == ".." || len(name) > MaxName
	for _, c := range []byte(name) {
		bad = bad || c <= ' ' || c >= 0x7f || strings.IndexByte("/:%", c) >= 0
	}
	if bad {
		return fmt.Errorf("link name %q: want 1 to %d printable bytes without / : %%", name, MaxName)
	}
	return nil
}
