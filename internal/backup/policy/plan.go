package policy

import (
	"cmp"
	"slices"
	"time"
)

// Candidate is a run of a VM under a policy.
type Candidate struct {
	Policy *Policy
	VM     VM
	Run    Run
}

// Bounds are how many backups may run at a time; 0 bounds nothing.
type Bounds struct {
	Host, Datastore int
	// Repository is by name.
	Repository map[string]int
}

// Load counts backups that run.
type Load struct {
	policy, policyHost, host, datastore, repository map[string]int
	vm                                              map[string]bool
}

// Active is a backup that runs, for Load.Add.
type Active struct {
	Policy, VM, Host, Repository string
	Datastores                   []string
}

// Add counts a backup that runs.
func (l *Load) Add(a Active) {
	if l.vm == nil {
		l.policy, l.policyHost, l.host = map[string]int{}, map[string]int{}, map[string]int{}
		l.datastore, l.repository, l.vm = map[string]int{}, map[string]int{}, map[string]bool{}
	}
	if a.Policy != "" {
		l.policy[a.Policy]++
		l.policyHost[a.Policy+"/"+a.Host]++
	}
	l.host[a.Host]++
	l.repository[a.Repository]++
	for _, d := range a.Datastores {
		l.datastore[d]++
	}
	l.vm[a.VM] = true
}

// refuses says what is in the way of one more backup; "" if nothing is.
func (l *Load) refuses(c Candidate, b Bounds) string {
	full := func(n, bound int) bool { return bound > 0 && n >= bound }
	p := c.Policy
	switch {
	case l.vm[c.VM.Name]:
		return "another backup of it runs"
	case full(l.policy[p.Name], p.Parallel):
		return "its policy runs as many as it may"
	case full(l.policyHost[p.Name+"/"+c.VM.Host], p.PerHost):
		return "its policy runs as many on host " + c.VM.Host + " as it may"
	case full(l.host[c.VM.Host], b.Host):
		return "host " + c.VM.Host + " runs as many as it may"
	case full(l.repository[p.Repository], b.Repository[p.Repository]):
		return "repository " + p.Repository + " takes as many as it may"
	}
	for _, d := range c.VM.Datastores {
		if full(l.datastore[d], b.Datastore) {
			return "datastore " + d + " is read by as many as may"
		}
	}
	return ""
}

// Plan chooses from all candidates those that are to begin now, and says of those that are due what they wait for, by "POLICY/VM". Higher priority goes first,
// then what has been due longest. A VM is backed up for one policy at a time. running is counted on.
func Plan(all []Candidate, running *Load, b Bounds, now time.Time) (start []Candidate, wait map[string]string) {
	due := slices.DeleteFunc(slices.Clone(all), func(c Candidate) bool { return c.Run.At.IsZero() || c.Run.At.After(now) })
	slices.SortStableFunc(due, func(x, y Candidate) int {
		return cmp.Or(cmp.Compare(y.Policy.Priority, x.Policy.Priority), x.Run.At.Compare(y.Run.At), x.Run.Slot.Compare(y.Run.Slot),
			cmp.Compare(x.VM.Name, y.VM.Name), cmp.Compare(x.Policy.Name, y.Policy.Name))
	})
	wait = map[string]string{}
	for _, c := range due {
		if why := running.refuses(c, b); why != "" {
			wait[c.Policy.Name+"/"+c.VM.Name] = why
			continue
		}
		running.Add(Active{Policy: c.Policy.Name, VM: c.VM.Name, Host: c.VM.Host, Repository: c.Policy.Repository, Datastores: c.VM.Datastores})
		start = append(start, c)
	}
	return start, wait
}
