package manager

import (
	"context"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/history"
	"drover/internal/resource"
	"drover/internal/task"
)

// taskLine is a line of a task's log as followers get it.
type taskLine struct {
	task, line string
	at         time.Time
}

// historyQueue is how many records may wait to be written. Beyond that they are lost, and that is logged.
const historyQueue = 4096

func (m *Manager) openHistory(ctx context.Context) (err error) {
	m.pending = make(chan any, historyQueue)
	m.history, err = history.Open(ctx, history.Options{Path: m.cfg.path("history.db"), Clock: m.cfg.Clock, Log: m.log})
	return err
}

func (m *Manager) queue(record any) {
	select {
	case m.pending <- record:
	default:
		m.log.Warn("manager: history can't keep up; a record is lost")
	}
}

// record keeps an event and tells those who watch.
func (m *Manager) record(e *v1.Event) { m.queue(e) }

// written waits until all that was told to the history so far can be read in it.
func (m *Manager) written(ctx context.Context) error {
	mark := make(flushed)
	select {
	case m.pending <- mark:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-mark:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flushed is closed when what was queued before it is written.
type flushed chan struct{}

// taskLog keeps a line that a task said.
func (m *Manager) taskLog(task string, at time.Time, line string) {
	m.queue(history.TaskLine{Task: task, Time: at, Line: line})
	m.taskLines.send(taskLine{task, line, at})
}

// sample keeps measurements of a host and its VMs.
func (m *Manager) sample(host string, samples []*v1.Sample) {
	if len(samples) == 0 {
		return
	}
	list := make([]history.Sample, 0, len(samples))
	for _, s := range samples {
		if !m.measures(host, s) {
			continue
		}
		list = append(list, history.Sample{Kind: s.Kind, Name: s.Name, Metric: s.Metric, Unit: unitOf(s.Metric), Time: s.Time.AsTime(), Value: s.Value})
	}
	m.queue(list)
}

// measures reports whether a host may say that of something: of itself, its datastores, and the VMs that it holds.
func (m *Manager) measures(host string, s *v1.Sample) bool {
	if math.IsNaN(s.Value) || math.IsInf(s.Value, 0) || !s.Time.IsValid() || !metricName.MatchString(s.Metric) {
		return false
	}
	if s.Kind == resource.KindVM {
		vm, ok := m.VMs.cache.Get(s.Name)
		return ok && vm.GetStatus().GetOwner() == host
	}
	if s.Kind == resource.KindDatastore {
		d, ok := m.Datastores.cache.Get(s.Name)
		return ok && d.Spec.Host == host
	}
	return s.Kind == resource.KindHost && s.Name == host
}

var metricName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// unitOf is the unit of what a host measures. As Prometheus has it, the name says it: what ends in _total counts up.
func unitOf(metric string) string {
	name, _ := strings.CutSuffix(metric, "_total")
	switch {
	case strings.HasSuffix(name, "bytes"):
		return "bytes"
	case strings.HasSuffix(name, "seconds"):
		return "s"
	case name == "cpu_load":
		return "ratio"
	}
	return "1"
}

// writeHistory writes what waits, as much as there is at once, until ctx ends and nothing waits any more.
func (m *Manager) writeHistory(ctx context.Context) {
	for {
		var first any
		select {
		case first = <-m.pending:
		default:
			select {
			case first = <-m.pending:
			case <-ctx.Done():
				return
			}
		}
		batch := &history.Batch{}
		marks := add(batch, first)
		for n := len(m.pending); n > 0; n-- {
			marks = append(marks, add(batch, <-m.pending)...)
		}
		if err := m.history.Append(context.WithoutCancel(ctx), batch); err != nil {
			m.log.Error("manager: write history", "err", err)
		}
		for _, e := range batch.Events {
			m.events.send(e)
		}
		for _, mark := range marks {
			close(mark)
		}
	}
}

func add(b *history.Batch, record any) (marks []flushed) {
	switch r := record.(type) {
	case flushed:
		return []flushed{r}
	case *v1.Event:
		b.Events = append(b.Events, r)
	case history.TaskLine:
		b.Lines = append(b.Lines, r)
	case []history.Sample:
		b.Samples = append(b.Samples, r...)
	}
	return nil
}

// Audit keeps the record of a call that changed something. It is on disk when Audit returns.
func (m *Manager) Audit(ctx context.Context, r *v1.AuditRecord) error {
	r.Time = stamp(m.cfg.Clock.Now())
	return m.history.Append(ctx, &history.Batch{Audit: []*v1.AuditRecord{r}})
}

func badToken(field string) error {
	return &resource.Error{Code: resource.Invalid, Field: field, Reason: "TOKEN_INVALID", Message: "is not a page token of this list", Remedy: "list again from the start"}
}

func beforeOf(token string) (int64, error) {
	if token == "" {
		return 0, nil
	}
	id, err := strconv.ParseInt(token, 10, 64)
	if err != nil || id <= 0 {
		return 0, badToken("page_token")
	}
	return id, nil
}

func pageOf(size int32) int {
	if size <= 0 {
		return defaultPage
	}
	return min(int(size), largestPage)
}

// ListEvents returns events, newest first.
func (m *Manager) ListEvents(ctx context.Context, req *v1.ListEventsRequest) (*v1.EventList, error) {
	before, err := beforeOf(req.PageToken)
	if err != nil {
		return nil, err
	}
	f := history.Filter{Kind: req.Kind, Name: req.Name, MinSeverity: req.MinSeverity, Before: before, Limit: pageOf(req.PageSize)}
	if req.Since != nil {
		f.Since = req.Since.AsTime()
	}
	if req.Until != nil {
		f.Until = req.Until.AsTime()
	}
	list, err := m.history.Events(ctx, f)
	if err != nil {
		return nil, err
	}
	out := &v1.EventList{Events: list}
	if len(list) == f.Limit {
		out.NextPageToken = strconv.FormatInt(list[len(list)-1].Id, 10)
	}
	return out, nil
}

// WatchEvents sends the last req.Backlog events, oldest first, and then what happens.
func (m *Manager) WatchEvents(ctx context.Context, req *v1.WatchEventsRequest, send func(*v1.Event) error) error {
	wanted := func(e *v1.Event) bool {
		return (req.Kind == "" || e.Kind == req.Kind) && (req.Name == "" || e.Name == req.Name) && e.Severity >= req.MinSeverity
	}
	var last int64
	begun := func() error {
		if req.Backlog <= 0 {
			return nil
		}
		list, err := m.history.Events(ctx, history.Filter{Kind: req.Kind, Name: req.Name, MinSeverity: req.MinSeverity, Limit: pageOf(req.Backlog)})
		for i := len(list) - 1; i >= 0 && err == nil; i-- {
			last = list[i].Id
			err = send(list[i])
		}
		return err
	}
	return m.events.listen(ctx, begun, func(e *v1.Event) error {
		if !wanted(e) || e.Id <= last {
			return nil
		}
		last = e.Id
		return send(e)
	})
}

// ListAudit returns audit records, newest first.
func (m *Manager) ListAudit(ctx context.Context, req *v1.ListAuditRequest) (*v1.AuditList, error) {
	before, err := beforeOf(req.PageToken)
	if err != nil {
		return nil, err
	}
	f := history.Filter{Kind: req.Kind, Name: req.Name, Principal: req.Principal, Before: before, Limit: pageOf(req.PageSize)}
	if req.Since != nil {
		f.Since = req.Since.AsTime()
	}
	if req.Until != nil {
		f.Until = req.Until.AsTime()
	}
	list, err := m.history.Audit(ctx, f)
	if err != nil {
		return nil, err
	}
	out := &v1.AuditList{Records: list}
	if len(list) == f.Limit {
		out.NextPageToken = strconv.FormatInt(list[len(list)-1].Id, 10)
	}
	return out, nil
}

// QueryMetrics returns series of measurements.
func (m *Manager) QueryMetrics(ctx context.Context, req *v1.QueryMetricsRequest) (*v1.QueryMetricsResponse, error) {
	if req.Kind != resource.KindVM && req.Kind != resource.KindHost && req.Kind != resource.KindDatastore {
		return nil, &resource.Error{Code: resource.Invalid, Field: "kind", Reason: "KIND_UNKNOWN", Message: "must be vm, host or datastore"}
	}
	f := history.MetricFilter{Kind: req.Kind, Name: req.Name, Metrics: req.Metrics, Step: req.Step.AsDuration()}
	if req.Since != nil {
		f.Since = req.Since.AsTime()
	}
	if req.Until != nil {
		f.Until = req.Until.AsTime()
	}
	if req.Since != nil && req.Until != nil && !f.Since.Before(f.Until) {
		return nil, &resource.Error{Code: resource.Invalid, Field: "since", Reason: "OUT_OF_RANGE", Message: "must be before until"}
	}
	series, err := m.history.Series(ctx, f)
	return &v1.QueryMetricsResponse{Series: series}, err
}

// TaskLog sends the lines that a task has said, and with follow what it says until it ends.
func (m *Manager) TaskLog(ctx context.Context, name string, follow bool, send func(*v1.TaskLogLine) error) error {
	if _, err := m.Tasks.lookup(name); err != nil {
		return err
	}
	if err := m.written(ctx); err != nil {
		return err
	}
	var after int64
	old := func() error {
		for {
			lines, err := m.history.TaskLog(ctx, name, after, largestPage)
			if err != nil || len(lines) == 0 {
				return err
			}
			for _, l := range lines {
				after = l.ID
				if err := send(&v1.TaskLogLine{Time: stamp(l.Time), Line: l.Line}); err != nil {
					return err
				}
			}
		}
	}
	if !follow {
		return old()
	}
	return m.followTask(ctx, name, old)
}

// followTask calls more whenever the task may have said something, until it has ended.
func (m *Manager) followTask(ctx context.Context, name string, more func() error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	nudge := make(chan struct{}, 1)
	go func() { // ends with ctx, which this call ends
		_ = m.taskLines.listen(ctx, func() error { return nil }, func(l taskLine) error {
			if l.task == name {
				select {
				case nudge <- struct{}{}:
				default:
				}
			}
			return nil
		})
	}()
	for {
		t, err := m.Tasks.lookup(name)
		if err != nil {
			return err
		}
		if task.Ended(t) {
			if err := m.written(ctx); err != nil {
				return err
			}
		}
		if err := more(); err != nil || task.Ended(t) {
			return err
		}
		select {
		case <-nudge:
		case <-m.cfg.Clock.After(500 * time.Millisecond): // lines are written a moment after they are said
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
