package vault

import (
	"maps"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"drover/internal/backup"
)

// Labels of points that begin so are the manager's: a host does not say that its own backups were tested.
const testLabel = "test."

// maxFull is how much is kept of why all was read, in bytes.
const maxFull = 4096

// describe makes sure that what a host says of a point harms nobody who reads it: names become names of files, and are shown on terminals. What the
// manager said with the grant counts more.
func (g *grant) describe(p *backup.Point) error {
	if d := g.said.GetDefinition(); len(d) > 0 {
		p.Definition, p.VM, p.Labels = d, g.said.GetVm(), maps.Clone(g.said.GetLabels())
	}
	if len(p.Labels) > maxLabels {
		return invalid("point.labels", "at most %d", maxLabels)
	}
	for k, val := range p.Labels {
		if backup.ReservedLabel(k) || strings.HasPrefix(k, testLabel) {
			return invalid("point.labels", "%q is not for points of hosts", clip(k))
		}
		if !printable(k, maxName) || !printable(val, maxName) {
			return invalid("point.labels", "label %q: a name and a value have at most %d bytes of text", clip(k), maxName)
		}
	}
	if p.VM != "" && !plainName(p.VM) {
		return invalid("point.vm", "%q is no name of a VM", clip(p.VM))
	}
	for name := range p.Files {
		if !plainName(name) {
			return invalid("point.files", "%q is no name of a file", clip(name))
		}
	}
	if !printable(p.Consistency, maxName) || !printable(p.Parent, maxName) || !printable(p.Memory, maxName) {
		return invalid("point", "what it says of itself is too long, or no text")
	}
	// Why all was read may name an error of anybody's.
	p.Full = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(p.Full[:min(len(p.Full), maxFull)], ""))
	if p.Read < 0 {
		return invalid("point.read", "%d bytes", p.Read)
	}
	seen := map[string]bool{}
	for _, d := range p.Disks {
		if seen[d.Name] {
			return invalid("point.disks", "disk %q is there twice", clip(d.Name))
		}
		seen[d.Name] = true
		if !printable(d.Bitmap, maxName) {
			return invalid("point.disks", "disk %q has an impossible bitmap", clip(d.Name))
		}
	}
	return nil
}

// printable reports whether a text can be shown to people, and is not long.
func printable(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// plainName reports whether a name can be one of a file in whatever directory. An empty one is none.
func plainName(s string) bool {
	return s != "" && printable(s, maxName) && !strings.ContainsAny(s, "/\\") && s != "." && s != ".."
}

// outdated reports whether a point would be older than the VM's last here: no host makes points of the past, in whose place retention would let others go.
func (s *session) outdated(t time.Time) bool {
	if s.grant.vm == "" {
		return false
	}
	for _, p := range s.local.Chunks().Points() {
		if p.GetVmUid() == s.grant.vm && !backup.Attached(p.GetLabels()) && t.Before(p.GetTime().AsTime()) {
			return true
		}
	}
	return false
}
