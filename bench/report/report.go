package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// What is better.
const (
	Less = "less"
	More = "more"
)

// Row is one number of the table. Ratio is how many times better than the peer, or, with a goal and no peer, than
// the goal: above 1 is better.
type Row struct {
	Name     string   `json:"name"`
	Unit     string   `json:"unit"`
	Ours     float64  `json:"ours"`
	Peer     *float64 `json:"peer"`
	PeerName string   `json:"peer_name"`
	Limit    *float64 `json:"limit"` // what no implementation can beat, if that is known
	Ratio    *float64 `json:"ratio"`
	Goal     *float64 `json:"goal"`
	Met      *bool    `json:"met"`
	Better   string   `json:"better"`
	Note     string   `json:"note,omitempty"`
	Machine  string   `json:"machine"` // where it was measured
}

// Report collects rows.
type Report struct {
	W    io.Writer
	rows []Row
}

// Say prints a line while numbers are being taken.
func (r *Report) Say(format string, args ...any) { fmt.Fprintf(r.W, format+"\n", args...) }

// Add takes a row and fills in what follows from the rest.
func (r *Report) Add(x Row) {
	x.Ours = Round(x.Ours)
	for _, p := range []**float64{&x.Peer, &x.Limit} {
		if *p != nil {
			*p = Ptr(Round(**p))
		}
	}
	if x.Peer != nil && *x.Peer > 0 && x.Ours > 0 && x.Ratio == nil {
		ratio := x.Ours / *x.Peer
		if x.Better == Less {
			ratio = 1 / ratio
		}
		x.Ratio = Ptr(Round(ratio))
	}
	if x.Goal != nil && x.Met == nil {
		x.Met = Ptr(x.Ours <= *x.Goal)
		if x.Better == More {
			x.Met = Ptr(x.Ours >= *x.Goal)
		}
	}
	r.rows = append(r.rows, x)
}

// Machine says in a line where this was measured.
func Machine(now time.Time) string {
	model, threads := "unknown CPU", 0
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for l := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				threads++
			}
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%s, %d threads, Linux %s, load %s, %s", model, threads, strings.TrimSpace(string(kernel)), Load(), now.UTC().Format("2006-01-02 15:04 UTC"))
}

// Load is the machine's, of the last minute.
func Load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// Table is for people.
func (r *Report) Table(where string) error {
	fmt.Fprintf(r.W, "\nmeasured on: %s\n\n", where)
	t := tabwriter.NewWriter(r.W, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tOURS\tPEER\tRATIO\tLIMIT\tGOAL\tMET\tNOTE")
	for _, x := range r.rows {
		goal := number(x.Goal)
		if x.Goal != nil {
			goal = map[string]string{Less: "≤ ", More: "≥ "}[x.Better] + goal
		}
		met := "-"
		if x.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*x.Met]
		}
		note := x.Note
		if x.PeerName != "" {
			note = strings.TrimSuffix("peer: "+x.PeerName+"; "+note, "; ")
		}
		fmt.Fprintf(t, "%s\t%s %s\t%s\t%s\t%s\t%s\t%s\t%s\n", x.Name, number(&x.Ours), x.Unit, number(x.Peer), number(x.Ratio), number(x.Limit), goal, met, note)
	}
	fmt.Fprintln(t, "\t\t\t\t\t\t\t")
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(r.W, "RATIO: how many times as good as the peer; more is better.")
	return nil
}

// Write puts the rows into a file as a JSON list.
func (r *Report) Write(path, where string) error {
	rows := slices.Clone(r.rows)
	for i := range rows {
		rows[i].Machine = where
	}
	b, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func number(f *float64) string {
	if f == nil {
		return "-"
	}
	return strconv.FormatFloat(*f, 'f', -1, 64)
}

// Round keeps three digits that count.
func Round(f float64) float64 {
	if f == 0 || math.IsInf(f, 0) || math.IsNaN(f) {
		return f
	}
	if math.Abs(f) >= 100 {
		return math.Round(f)
	}
	scale := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(f))))
	return math.Round(f*scale) / scale
}

// Ptr is for the fields of Row that may be missing.
func Ptr[T any](v T) *T { return &v }

// Ms is d in milliseconds.
func Ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Median is the middle value.
func Median(v []float64) float64 { return Quantile(v, 0.5) }

// Quantile interpolates between the values beside it.
func Quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	at := q * float64(len(s)-1)
	lo, hi := int(math.Floor(at)), int(math.Ceil(at))
	return s[lo] + (s[hi]-s[lo])*(at-math.Floor(at))
}
