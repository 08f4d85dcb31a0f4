package placement

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Host is a hypervisor as the scheduler sees it.
type Host struct {
	Name   string
	Site   string
	Labels map[string]string
	// Down, if not empty, says in words why the host is not ready.
	Down        string
	Cordoned    bool
	Maintenance bool
	Accel       string // "kvm" or "tcg"
	// CPUs are hardware threads; MemoryMiB is what VMs may have.
	CPUs, MemoryMiB                   int64
	AllocatedCPUs, AllocatedMemoryMiB int64
	// Datastores are the host's; those after the 64th are not considered.
	Datastores []Datastore
	Networks   []string
	// Features are hardware needs that the host can meet, as "uefi", "vmxnet3".
	Features  []string
	Residents []Resident
}

// Datastore is a place for disks as one host sees it.
type Datastore struct {
	Name      string
	Kind      string
	SizeBytes int64
	FreeBytes int64
	// Shared says that the datastore of this name is the same one on all hosts.
	Shared bool
	Closed bool // takes no new disks
}

// Resident is a VM that a host has already. Names are unique over all hosts.
type Resident struct {
	Name   string
	Groups []string
	Labels map[string]string
	// Terms are the VM's own; its hard anti-affinity keeps others away.
	Terms []Term
}

// Request is a VM in search of a host. If it is a resident somewhere, it is
// taken as about to leave there.
type Request struct {
	Name            string
	Groups          []string
	Labels          map[string]string
	CPUs, MemoryMiB int64
	Disks           []Disk
	Networks        []string
	Features        []string
	Accel           string // empty for any
	// Sites, Hosts and HostLabels, if given, must match; Avoid must not.
	Sites, Hosts, Avoid []string
	HostLabels          map[string]string
	Terms               []Term
}

// Disk is a disk to make room for.
type Disk struct {
	Name      string
	Bytes     int64
	Datastore string // by name; empty for any
	Kind      string // the datastore's; empty for any
}

// Scope is how near two VMs are.
type Scope int

// The scopes of affinity.
const (
	SameHost Scope = iota
	SameSite
)

func (s Scope) String() string {
	if s == SameSite {
		return "site"
	}
	return "host"
}

// Term is a wish about other VMs: to be near them, or, with Anti, away. The
// others are those in Group, or, if that is empty, those with all the Labels.
// A hard affinity that no other VM matches is met anywhere by a VM that
// matches it itself, so that the first of a group can start.
type Term struct {
	Anti   bool
	Hard   bool
	Scope  Scope
	Group  string
	Labels map[string]string
	// Weight of a preference among the VM's others; 1 if zero.
	Weight int64
}

// Options are the scheduler's policy. The zero value is the default.
type Options struct {
	// CPUOvercommit is how many vCPUs one hardware thread may carry: 4 if zero.
	CPUOvercommit float64
	// MemoryOvercommit is how much VM memory one byte may carry: 1 if zero.
	MemoryOvercommit float64
	// DatastoreReserve stays free on every datastore, in bytes.
	DatastoreReserve int64
	// Pack fills hosts one after another in place of spreading.
	Pack bool
	// Weights of the score's parts; the zero value is 1, 1, 0.5 and 4.
	Weights Weights
}

// Weights say how much each part of a score counts.
type Weights struct {
	CPU, Memory, Storage, Affinity float64
}

// defaultWeights let preferences win over all but gross imbalance.
var defaultWeights = Weights{CPU: 1, Memory: 1, Storage: 0.5, Affinity: 4}

// Validate says what is wrong with the options.
func (o Options) Validate() error {
	w := o.Weights
	for _, v := range []float64{o.CPUOvercommit, o.MemoryOvercommit, w.CPU, w.Memory, w.Storage, w.Affinity, float64(o.DatastoreReserve)} {
		if !(v >= 0 && v <= 1e18) {
			return fmt.Errorf("placement options: %v is not a possible ratio, weight or reserve: use 0 or more", v)
		}
	}
	return nil
}

func (o Options) withDefaults() Options {
	if o.CPUOvercommit == 0 {
		o.CPUOvercommit = 4
	}
	if o.MemoryOvercommit == 0 {
		o.MemoryOvercommit = 1
	}
	if o.Weights == (Weights{}) {
		o.Weights = defaultWeights
	}
	return o
}

// Validate says what is wrong with a request.
func (r Request) Validate() error {
	if r.Name == "" {
		return errors.New("placement request: no name")
	}
	if r.CPUs <= 0 || r.MemoryMiB <= 0 {
		return fmt.Errorf("placement of %s: %d CPUs and %d MiB: both must be positive", r.Name, r.CPUs, r.MemoryMiB)
	}
	for _, d := range r.Disks {
		if d.Bytes < 0 {
			return fmt.Errorf("placement of %s: disk %s: %d bytes", r.Name, d.Name, d.Bytes)
		}
	}
	for _, t := range r.Terms {
		if t.Group == "" && len(t.Labels) == 0 || t.Weight < 0 {
			return fmt.Errorf("placement of %s: an affinity needs a group or labels, and a weight of 0 or more", r.Name)
		}
	}
	return nil
}

// Code is why a host does not fit, for programs.
type Code string

// The reasons for a rejection.
const (
	NotReady    Code = "not-ready"
	Cordoned    Code = "cordoned"
	Maintenance Code = "maintenance"
	NotSelected Code = "not-selected"
	NoAccel     Code = "accel"
	NoFeature   Code = "feature"
	NoCPU       Code = "cpu"
	NoMemory    Code = "memory"
	NoNetwork   Code = "network"
	NoStorage   Code = "storage"
	Affinity    Code = "affinity"
)

// Reason is one cause of a rejection; Text is for users.
type Reason struct {
	Code Code
	Text string
}

// Part is one part of a score; Value is from 0 to 1, where 1 is best.
type Part struct {
	Name          string
	Value, Weight float64
}

// Candidate is a host that fits. Disks are datastore names in the order of the
// request's disks.
type Candidate struct {
	Host  string
	Score float64 // 0 to 1
	Parts []Part
	Disks []string
}

// Rejection is a host that does not fit, with all its reasons.
type Rejection struct {
	Host    string
	Reasons []Reason
}

// Result ranks the hosts for one request, best first. Rejected is in the order
// of names.
type Result struct {
	Candidates []Candidate
	Rejected   []Rejection
}

// Best returns the first candidate, if there is one.
func (r Result) Best() (Candidate, bool) {
	if len(r.Candidates) == 0 {
		return Candidate{}, false
	}
	return r.Candidates[0], true
}

// Explain returns one line per rejected host.
func Explain(rejected []Rejection) string {
	if len(rejected) == 0 {
		return "there is no host"
	}
	var out strings.Builder
	for i, r := range rejected {
		if i > 0 {
			out.WriteByte('\n')
		}
		out.WriteString(r.Host + ": ")
		for j, why := range r.Reasons {
			if j > 0 {
				out.WriteString("; ")
			}
			out.WriteString(why.Text)
		}
	}
	return out.String()
}

// Place ranks all hosts for one VM.
func Place(hosts []Host, r Request, o Options) (Result, error) {
	if err := errors.Join(o.Validate(), r.Validate()); err != nil {
		return Result{}, err
	}
	p := newPlan(hosts, o, map[string]bool{r.Name: true})
	return p.rank(p.prepare(&r)), nil
}

func (p *plan) rank(q *query) Result {
	var out Result
	for i, h := range p.hosts {
		if p.fits(i, q, nil) {
			c := Candidate{Host: h.Name, Disks: p.diskNames(i, q)}
			c.Score, c.Parts = p.score(i, q, true)
			out.Candidates = append(out.Candidates, c)
			continue
		}
		var why []Reason
		p.fits(i, q, &why)
		out.Rejected = append(out.Rejected, Rejection{Host: h.Name, Reasons: why})
	}
	slices.SortStableFunc(out.Candidates, func(a, b Candidate) int {
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(a.Host, b.Host))
	})
	return out
}
