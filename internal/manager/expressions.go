package manager

import (
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup/policy"
	"drover/internal/resource"
)

// checkExpressions adds faults for a repository's calendar expressions that can't be read.
func checkExpressions(f *resource.Faults, s *v1.RepositorySpec) {
	checkSchedules(f, "spec.collect_schedule", s.GetCollectSchedule())
	checkSchedules(f, "spec.scrub_schedule", s.GetScrubSchedule())
	for _, w := range s.GetBandwidthWindows() {
		checkWindows(f, "spec.bandwidth_windows", w.GetWindow())
	}
}

func checkPolicyExpressions(f *resource.Faults, s *v1.BackupPolicySpec) {
	checkSchedules(f, "spec.schedules", s.GetSchedules()...)
	checkWindows(f, "spec.windows", s.GetWindows()...)
	for _, c := range s.GetCopies() {
		checkSchedules(f, "spec.copies.schedules", c.GetSchedules()...)
	}
}

func checkSchedules(f *resource.Faults, field string, list ...string) {
	for _, x := range list {
		if _, err := policy.ParseSchedule(x); err != nil {
			f.Add(field, "SCHEDULE_INVALID", "%v", err)
		}
	}
}

func checkWindows(f *resource.Faults, field string, list ...string) {
	for _, x := range list {
		if _, err := policy.ParseWindow(x); err != nil {
			f.Add(field, "WINDOW_INVALID", "%v", err)
		}
	}
}

// schedules parses what was checked when it was stored; what a later version can read and this one can't is left out.
func schedules(list ...string) (out []policy.Schedule) {
	for _, x := range list {
		if s, err := policy.ParseSchedule(x); err == nil {
			out = append(out, s)
		}
	}
	return out
}

func windows(list []string) (out []policy.Window) {
	for _, x := range list {
		if w, err := policy.ParseWindow(x); err == nil {
			out = append(out, w)
		}
	}
	return out
}

// zone is the place whose clocks a policy goes by: the named one, or the manager's.
func (m *Manager) zone(name string) *time.Location {
	if name != "" {
		if l, err := time.LoadLocation(name); err == nil {
			return l
		}
	}
	return m.cfg.Zone
}
