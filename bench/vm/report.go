package main

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
	less = "less"
	more = "more"
)

// row is one number of the table. Ratio is how many times better than the peer, or, with a goal and no peer, than
// the goal: above 1 is better.
type row struct {
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

// report collects rows.
type report struct {
	w    io.Writer
	rows []row
}

func (r *report) say(format string, args ...any) { fmt.Fprintf(r.w, format+"\n", args...) }

// add fills in what follows from the rest.
func (r *report) add(x row) {
	x.Ours = round(x.Ours)
	for _, p := range []**float64{&x.Peer, &x.Limit} {
		if *p != nil {
			*p = ptr(round(**p))
		}
	}
	if x.Peer != nil && *x.Peer > 0 && x.Ours > 0 && x.Ratio == nil {
		ratio := x.Ours / *x.Peer
		if x.Better == less {
			ratio = 1 / ratio
		}
		x.Ratio = ptr(round(ratio))
	}
	if x.Goal != nil && x.Met == nil {
		x.Met = ptr(x.Ours <= *x.Goal)
		if x.Better == more {
			x.Met = ptr(x.Ours >= *x.Goal)
		}
	}
	r.rows = append(r.rows, x)
}

// machine says in a line where this was measured.
func machine(now time.Time) string {
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
	return fmt.Sprintf("%s, %d threads, Linux %s, load %s, %s", model, threads, strings.TrimSpace(string(kernel)), load(), now.UTC().Format("2006-01-02 15:04 UTC"))
}

// load is the machine's, of the last minute.
func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// table is for people.
func (r *report) table(where string) error {
	fmt.Fprintf(r.w, "\nmeasured on: %s\n\n", where)
	t := tabwriter.NewWriter(r.w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tOURS\tPEER\tRATIO\tLIMIT\tGOAL\tMET\tNOTE")
	for _, x := range r.rows {
		goal := number(x.Goal)
		if x.Goal != nil {
			goal = map[string]string{less: "≤ ", more: "≥ "}[x.Better] + goal
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
	fmt.Fprintln(r.w, "RATIO: how many times as good as the peer; more is better.")
	return nil
}

// write puts the rows into a file as a JSON list.
func (r *report) write(path, where string) error {
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

// round keeps three digits that count.
func round(f float64) float64 {
	if f == 0 || math.IsInf(f, 0) || math.IsNaN(f) {
		return f
	}
	if math.Abs(f) >= 100 {
		return math.Round(f)
	}
	scale := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(f))))
	return math.Round(f*scale) / scale
}

func ptr[T any](v T) *T { return &v }

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(v []float64) float64 { return quantile(v, 0.5) }

// quantile interpolates between the values beside it.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	at := q * float64(len(s)-1)
	lo, hi := int(math.Floor(at)), int(math.Ceil(at))
	return s[lo] + (s[hi]-s[lo])*(at-math.Floor(at))
}
