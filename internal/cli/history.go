package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/manifest"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func (a *App) taskCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "task", Short: "Long operations: imports, snapshots, clones", Example: "  drover task list\n  drover task log ID --follow"}
	cancel := &cobra.Command{
		Use: "cancel ID…", Short: "Ask tasks to stop and undo", Args: want("ID", "[ID…]"), ValidArgsFunction: a.everyArg(taskKind()), Example: "  drover task cancel ID",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return eachName(args, func(name string) error {
				t, err := c.Task.Cancel(ctx, &v1.CancelTaskRequest{Name: name})
				if err != nil {
					return err
				}
				return a.printDone(taskKind(), t, "is asked to stop")
			})
		}),
	}
	a.outputFlag(cancel)
	var follow bool
	log := &cobra.Command{
		Use: "log ID", Short: "Print what a task has written down", Args: want("ID"), ValidArgsFunction: a.firstArg(taskKind()), Example: "  drover task log ID --follow",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			s, err := c.Task.Log(ctx, &v1.TaskLogRequest{Name: args[0], Follow: follow})
			return each(s, err, func(l *v1.TaskLogLine) error {
				_, err := fmt.Fprintf(a.Out, "%s %s\n", clockTime(l.GetTime()), table.Clean(l.GetLine()))
				return err
			})
		}),
	}
	log.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the task ends")
	var timeout time.Duration
	wait := &cobra.Command{
		Use: "wait ID…", Short: "Wait until tasks have ended; fails if one fails", Args: want("ID", "[ID…]"), ValidArgsFunction: a.everyArg(taskKind()), Example: "  drover task wait ID",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return eachName(args, func(name string) error {
				t, err := a.waitTask(ctx, c, name, timeout)
				if err != nil {
					return err
				}
				return a.printDone(taskKind(), t, "succeeded")
			})
		}),
	}
	wait.Flags().DurationVar(&timeout, "timeout", 0, "how long to wait (default: for ever)")
	a.outputFlag(wait)
	cmd.AddCommand(a.listCommand(taskKind(), "task"), a.showCommand(taskKind()), log, wait, cancel)
	return cmd
}

// span is a stretch of history on the command line.
type span struct{ since, until string }

func (s *span) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.since, "since", "", "not before: a time (2006-01-02T15:04:05Z, 2006-01-02), or so long ago (90m, 36h)")
	cmd.Flags().StringVar(&s.until, "until", "", "not after: likewise")
}

func (s *span) times(now time.Time) (since, until *timestamppb.Timestamp, err error) {
	if since, err = parseTime("since", s.since, now); err != nil {
		return nil, nil, err
	}
	until, err = parseTime("until", s.until, now)
	return since, until, err
}

func parseTime(flag, s string, now time.Time) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return timestamppb.New(now.Add(-d)), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return timestamppb.New(t), nil
		}
	}
	return nil, usage("--%s %q: give a time such as 2006-01-02T15:04:05Z, or a length of time such as 90m", flag, s)
}

func clockTime(t *timestamppb.Timestamp) string {
	if t == nil {
		return strings.Repeat("-", 19)
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05")
}

// eventFlags choose events.
type eventFlags struct{ kind, name, severity string }

func (f *eventFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.kind, "kind", "", "of this kind of object: vm, host, …")
	cmd.Flags().StringVar(&f.name, "name", "", "of the object of this name")
	cmd.Flags().StringVar(&f.severity, "severity", "", "at least: info, warning or error")
	register(cmd, "kind", words(kindNames()...))
	register(cmd, "severity", words(unit.Words(v1.Severity(0).Descriptor())...))
}

func kindNames() []string {
	var out []string
	for _, k := range kinds() {
		out = append(out, k.name)
	}
	return out
}

func (a *App) eventCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "event", Short: "What happened", Example: "  drover event list --kind vm --name web\n  drover event watch"}
	var f, wf eventFlags
	var s span
	var limit int
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List what happened, the newest last", Args: want(), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  drover event list --since 1h --severity warning",
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) (err error) {
			req := &v1.ListEventsRequest{Kind: f.kind, Name: f.name}
			if req.MinSeverity, err = flagEnum[v1.Severity]("severity", f.severity, req.MinSeverity); err != nil {
				return err
			}
			if req.Since, req.Until, err = s.times(a.now()); err != nil {
				return err
			}
			events, err := pages(limit, func(size int32, token string) ([]*v1.Event, string, error) {
				req.PageSize, req.PageToken = size, token
				l, err := c.Event.List(ctx, req)
				return l.GetEvents(), l.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			slices.Reverse(events)
			return a.printEvents(events)
		}),
	}
	f.add(list)
	s.add(list)
	list.Flags().IntVar(&limit, "limit", 100, "at most so many of the newest (0: all)")
	a.outputFlag(list)
	var backlog int32
	watch := &cobra.Command{
		Use: "watch", Short: "Print what happens as it happens", Args: want(), ValidArgsFunction: cobra.NoFileCompletions, Example: "  drover event watch --kind vm",
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) (err error) {
			req := &v1.WatchEventsRequest{Kind: wf.kind, Name: wf.name, Backlog: backlog}
			if req.MinSeverity, err = flagEnum[v1.Severity]("severity", wf.severity, req.MinSeverity); err != nil {
				return err
			}
			st, err := c.Event.Watch(ctx, req)
			return each(st, err, func(e *v1.Event) error {
				if a.output == "json" {
					return a.jsonLine(e)
				}
				_, err := fmt.Fprintln(a.Out, a.eventLine(e))
				return err
			})
		}),
	}
	wf.add(watch)
	watch.Flags().Int32Var(&backlog, "backlog", 10, "begin with so many that happened before")
	a.outputFlag(watch)
	cmd.AddCommand(list, watch)
	return cmd
}

// pages collects a paged list; limit 0 is all.
func pages[T any](limit int, next func(size int32, token string) ([]T, string, error)) ([]T, error) {
	if limit < 0 {
		return nil, usage("--limit %d: must not be negative", limit)
	}
	var out []T
	token := ""
	for {
		size := 1000
		if limit > 0 {
			size = min(size, limit-len(out))
		}
		items, t, err := next(int32(size), token)
		if err != nil {
			return nil, err
		}
		out = append(out, items...)
		if t == "" || limit > 0 && len(out) >= limit {
			return out, nil
		}
		token = t
	}
}

func severityColour(s v1.Severity) table.Colour {
	switch s {
	case v1.Severity_SEVERITY_ERROR:
		return table.Red
	case v1.Severity_SEVERITY_WARNING:
		return table.Yellow
	}
	return table.Plain
}

func (a *App) eventLine(e *v1.Event) string {
	on := a.coloured(a.Out)
	return fmt.Sprintf("%s  %s  %s/%s  %s", table.Paint(clockTime(e.GetTime()), table.Dim, on),
		table.Paint(fmt.Sprintf("%-7s", unit.Word(e.GetSeverity())), severityColour(e.GetSeverity()), on), table.Clean(e.GetKind()), table.Clean(e.GetName()), table.Clean(e.GetMessage()))
}

// jsonLine writes a message as one line of JSON, for streams.
func (a *App) jsonLine(m proto.Message) error { return manifest.JSONLine(a.Out, m) }

func (a *App) printEvents(events []*v1.Event) error {
	ms := make([]proto.Message, len(events))
	t := &table.Table{Headers: []string{"TIME", "SEVERITY", "OBJECT", "MESSAGE"}}
	if a.output == "wide" {
		t.Headers = append(t.Headers, "REASON", "HOST")
	}
	for i, e := range events {
		ms[i] = e
		t.Add(table.Text(clockTime(e.GetTime())), table.Cell{Text: unit.Word(e.GetSeverity()), Colour: severityColour(e.GetSeverity())}, table.Text(e.GetKind()+"/"+e.GetName()),
			table.Text(e.GetMessage()), table.Text(e.GetReason()), table.Text(e.GetHost()))
	}
	return a.printRows(t, "", ms, "no events")
}

// printRows prints what is no resource.
func (a *App) printRows(t *table.Table, kind string, ms []proto.Message, none string) error {
	switch a.output {
	case "json":
		return manifest.JSONList(a.Out, kind, ms)
	case "yaml":
		return manifest.YAML(a.Out, kind, ms...)
	case "name":
		return usage("-o name: these have no names")
	}
	if len(ms) == 0 {
		a.say("%s", none)
		return nil
	}
	return t.Write(a.Out, a.coloured(a.Out))
}

func (a *App) auditCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Who changed what", Example: "  drover audit list --principal alice --since 24h"}
	var principal, kind, name string
	var s span
	var limit int
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List calls that changed something, the newest last", Args: want(), ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "List calls that changed something or tried to. With -o json each has the object before and after.",
		Example: "  drover audit list --kind vm --name web\n  drover audit list --since 2h -o json",
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) (err error) {
			req := &v1.ListAuditRequest{Principal: principal, Kind: kind, Name: name}
			if req.Since, req.Until, err = s.times(a.now()); err != nil {
				return err
			}
			records, err := pages(limit, func(size int32, token string) ([]*v1.AuditRecord, string, error) {
				req.PageSize, req.PageToken = size, token
				l, err := c.Audit.List(ctx, req)
				return l.GetRecords(), l.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			slices.Reverse(records)
			ms := make([]proto.Message, len(records))
			t := &table.Table{Headers: []string{"TIME", "WHO", "FROM", "CALL", "OBJECT", "RESULT"}}
			for i, r := range records {
				ms[i] = r
				result := table.Cell{Text: r.GetCode(), Colour: table.Green}
				if r.GetCode() != "ok" {
					result = table.Cell{Text: r.GetCode() + ": " + r.GetMessage(), Colour: table.Red}
				}
				t.Add(table.Text(clockTime(r.GetTime())), table.Text(r.GetPrincipal()), table.Text(r.GetSource()), table.Text(strings.TrimPrefix(r.GetMethod(), "drover.v1.")),
					table.Text(strings.Trim(r.GetKind()+"/"+r.GetName(), "/")), result)
			}
			return a.printRows(t, "", ms, "no records")
		}),
	}
	list.Flags().StringVar(&principal, "principal", "", "by this user, token or host")
	list.Flags().StringVar(&kind, "kind", "", "of this kind of object")
	list.Flags().StringVar(&name, "name", "", "of the object of this name")
	list.Flags().IntVar(&limit, "limit", 100, "at most so many of the newest (0: all)")
	s.add(list)
	register(list, "kind", words(kindNames()...))
	a.outputFlag(list)
	cmd.AddCommand(list)
	return cmd
}

func (a *App) metricsCommand() *cobra.Command {
	var metrics []string
	var s span
	var step time.Duration
	cmd := &cobra.Command{
		Use: "metrics KIND [NAME]", Short: "Measurements of VMs, hosts and datastores over time", Args: want("KIND", "[NAME]"), ValidArgsFunction: a.metricArgs,
		Long:    "Print the last value and the extremes of what was measured, and with -o json all points. Metrics that end in _total count up; of them the mean change in a second is shown.",
		Example: "  drover metrics vm web --since 1h\n  drover metrics host -o json --metric cpu_load --step 5m",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) (err error) {
			req := &v1.QueryMetricsRequest{Kind: args[0], Metrics: metrics}
			if len(args) > 1 {
				req.Name = args[1]
			}
			if req.Since, req.Until, err = s.times(a.now()); err != nil {
				return err
			}
			if step > 0 {
				req.Step = durationpb.New(step)
			}
			res, err := c.Metric.Query(ctx, req)
			if err != nil {
				return err
			}
			ms := make([]proto.Message, len(res.GetSeries()))
			t := &table.Table{Headers: []string{"OBJECT", "METRIC", "LAST", "MEAN", "LEAST", "MOST", "POINTS"}, Right: map[int]bool{2: true, 3: true, 4: true, 5: true, 6: true}}
			for i, x := range res.GetSeries() {
				ms[i] = x
				v := summary(x)
				t.Add(table.Text(x.GetKind()+"/"+x.GetName()), table.Text(x.GetMetric()), table.Text(v.last), table.Text(v.mean), table.Text(v.least), table.Text(v.most), table.Text(strconv.Itoa(len(x.GetPoints()))))
			}
			return a.printRows(t, "", ms, "nothing was measured")
		}),
	}
	cmd.Flags().StringSliceVar(&metrics, "metric", nil, "only this metric (repeatable)")
	cmd.Flags().DurationVar(&step, "step", 0, "how far points are apart (default: as fine as is kept)")
	s.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) metricArgs(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	kinds := map[string]*kind{"vm": vmKind(), "host": hostKind(), "datastore": datastoreKind()}
	if len(args) == 0 {
		return slices.Sorted(maps.Keys(kinds)), cobra.ShellCompDirectiveNoFileComp
	}
	if k := kinds[args[0]]; k != nil && len(args) == 1 {
		return a.names(k, "")(cmd, args, typed)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// totals are what the points of a series come to, as text.
type totals struct{ last, mean, least, most string }

func summary(s *v1.Series) totals {
	pts := s.GetPoints()
	if len(pts) == 0 {
		return totals{}
	}
	if strings.HasSuffix(s.GetMetric(), "_total") {
		two := pts[max(0, len(pts)-2):]
		last, err := rate(two, two)
		if err != nil {
			return totals{}
		}
		mean, err := rate(pts, pts)
		if err != nil {
			return totals{}
		}
		return totals{last: quantity(s, last) + "/s", mean: quantity(s, mean) + "/s"}
	}
	var sum float64
	least, most := pts[0].GetMin(), pts[0].GetMax()
	for _, p := range pts {
		sum += p.GetMean()
		least, most = min(least, p.GetMin()), max(most, p.GetMax())
	}
	return totals{quantity(s, pts[len(pts)-1].GetMean()), quantity(s, sum/float64(len(pts))), quantity(s, least), quantity(s, most)}
}

var errFewPoints = errors.New("too few points")

// rate is the change in a second of a counter between the first of from and the last of to.
func rate(from, to []*v1.Point) (float64, error) {
	if len(from) == 0 || len(to) == 0 {
		return 0, errFewPoints
	}
	a, b := from[0], to[len(to)-1]
	dt := b.GetTime().AsTime().Sub(a.GetTime().AsTime()).Seconds()
	if dt <= 0 {
		return 0, errFewPoints
	}
	return max(0, b.GetMean()-a.GetMean()) / dt, nil
}

func quantity(s *v1.Series, v float64) string {
	m := strings.TrimSuffix(s.GetMetric(), "_total")
	switch {
	case strings.HasSuffix(m, "_bytes") || s.GetUnit() == "bytes":
		return unit.Size(int64(v))
	case s.GetUnit() == "bytes/s":
		return unit.Rate(v)
	case s.GetUnit() == "ratio" || m == "cpu_load" || m == "cpu":
		return unit.Percent(v)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}
