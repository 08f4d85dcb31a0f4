package httpapi

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/manager"
	"drover/internal/rpc"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is what Prometheus reads of the manager; as an interceptor it times calls.
type metrics struct {
	m        *manager.Manager
	registry *prometheus.Registry
	calls    *prometheus.HistogramVec
	streams  *prometheus.GaugeVec
	hosts    *prometheus.Desc
	vms      *prometheus.Desc
	tasks    *prometheus.Desc
	objects  *prometheus.Desc
	ports    *prometheus.Desc
	macs     *prometheus.Desc
	backup   backupDescs
}

func newMetrics(m *manager.Manager) *metrics {
	x := &metrics{
		m: m, registry: prometheus.NewRegistry(),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "drover_api_call_seconds", Help: "Time taken by calls of the API that answer once.", Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10},
		}, []string{"procedure", "code"}),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "drover_api_streams", Help: "Streams that are open now."}, []string{"procedure"}),
		hosts:   prometheus.NewDesc("drover_hosts", "Hosts by phase.", []string{"phase"}, nil),
		vms:     prometheus.NewDesc("drover_vms", "VMs by phase.", []string{"phase"}, nil),
		tasks:   prometheus.NewDesc("drover_tasks", "Tasks that are kept, by state.", []string{"state"}, nil),
		objects: prometheus.NewDesc("drover_objects", "Resources by kind.", []string{"kind"}, nil),
		ports:   prometheus.NewDesc("drover_ports", "Ports of the switch: active, waiting for their policy, off.", []string{"state"}, nil),
		macs:    prometheus.NewDesc("drover_registrations", "MACs that the switch knows.", nil, nil),
		backup:  newBackupDescs(),
	}
	x.registry.MustRegister(x, x.calls, x.streams, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return x
}

// Describe and Collect make metrics a collector of what is counted when it is asked for.
func (x *metrics) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{x.hosts, x.vms, x.tasks, x.objects, x.ports, x.macs} {
		c <- d
	}
	x.backup.describe(c)
}

// Collect counts the resources.
func (x *metrics) Collect(c chan<- prometheus.Metric) {
	counts := x.m.Count()
	send := func(d *prometheus.Desc, prefix string, by map[string]int) {
		for k, n := range by {
			c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), strings.ToLower(strings.TrimPrefix(k, prefix)))
		}
	}
	send(x.hosts, "HOST_PHASE_", counts.Hosts)
	send(x.vms, "VM_PHASE_", counts.VMs)
	send(x.tasks, "TASK_STATE_", counts.Tasks)
	send(x.objects, "", counts.Objects)
	send(x.ports, "", counts.Ports)
	c <- prometheus.MustNewConstMetric(x.macs, prometheus.GaugeValue, float64(counts.Registrations))
	x.backup.collect(c, x.m.CountBackups())
}

func (x *metrics) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		begin := time.Now()
		res, err := next(ctx, req)
		code := "ok"
		if err != nil {
			code = rpc.CodeOf(ctx, told(err)).String()
		}
		x.calls.WithLabelValues(strings.TrimPrefix(req.Spec().Procedure, "/drover.v1."), code).Observe(time.Since(begin).Seconds())
		return res, err
	}
}

func (x *metrics) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (x *metrics) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		g := x.streams.WithLabelValues(strings.TrimPrefix(conn.Spec().Procedure, "/drover.v1."))
		g.Inc()
		defer g.Dec()
		return next(ctx, conn)
	}
}

func (s *Server) serveMetrics(w http.ResponseWriter, r *http.Request) {
	if err := may(r.Context(), auth.VerbMetrics, kindMetric); err != nil {
		s.refuse(w, r, r.Context(), err)
		return
	}
	promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}

// largestMetrics bounds what is passed on of one host, in bytes: some 100 KiB are a host with 100 VMs.
const largestMetrics = 16 << 20

// serveHostMetrics passes on what a host's agent measures: hosts themselves talk to the manager alone.
func (s *Server) serveHostMetrics(w http.ResponseWriter, r *http.Request) {
	if err := may(r.Context(), auth.VerbMetrics, kindMetric); err != nil {
		s.refuse(w, r, r.Context(), err)
		return
	}
	res, err := s.m.HostMetrics(r.Context(), r.PathValue("host"))
	if err != nil {
		s.refuse(w, r, r.Context(), err)
		return
	}
	defer res.Body.Close()
	w.Header().Set("Content-Type", res.Header.Get("Content-Type"))
	w.WriteHeader(res.StatusCode)
	_, _ = io.Copy(w, io.LimitReader(res.Body, largestMetrics)) // either side may go; the scrape is repeated
}
