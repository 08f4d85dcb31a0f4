package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"drover/internal/hostnet"
	"drover/internal/qemu"
)

// sweep removes what an earlier agent made and no record knows: QEMUs, sockets, memory, TAPs, cgroups.
func (a *agent) sweep(ctx context.Context) error {
	a.usersInUse(a.machines)
	var errs []error
	known := func(uid string) bool { return a.machines[uid] != nil }

	runs := filepath.Join(a.cfg.RunDir, "vms")
	for _, uid := range names(runs) {
		if known(uid) {
			continue
		}
		dir := filepath.Join(runs, uid)
		a.log.Warn("removing what is left of a VM without a record", "uid", uid)
		errs = append(errs, qemu.Clean(ctx, dir), os.RemoveAll(dir))
	}
	for _, name := range names(a.cfg.ShmDir) {
		uid, _, _ := strings.Cut(name, ".")
		m := a.machines[uid]
		if m != nil && m.local.Instant != nil && filepath.Join(a.cfg.ShmDir, name) == m.baseSocket() {
			continue
		}
		if m == nil || m.local.Run == nil {
			errs = append(errs, os.Remove(filepath.Join(a.cfg.ShmDir, name)))
		}
	}
	mine := a.tag() + "/"
	_, err := a.net.Sweep(hostnet.MarkNIC, func(mark hostnet.Mark) bool {
		rest, ok := strings.CutPrefix(mark.ID, mine)
		uid, _, _ := strings.Cut(rest, "/")
		m := a.machines[uid]
		return !ok || m != nil && m.local.Run != nil
	})
	errs = append(errs, err)
	if base := a.cgroupDir(); base != "" {
		for _, name := range names(base) {
			uid, ok := strings.CutPrefix(name, "vm-")
			if m := a.machines[uid]; ok && (m == nil || m.local.Run == nil) {
				errs = append(errs, a.removeCgroup(uid))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	return nil
}

// names lists a directory; one that is not there is empty.
func names(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
