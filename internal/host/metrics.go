package host

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
	"drover/internal/hostnet"
)

// load keeps the machine's CPU use between two samples.
type load struct {
	mu          sync.Mutex
	busy, total uint64
	share       float64
}

func (l *load) now() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.share
}

func (l *load) measure() {
	busy, total, err := cpuTimes()
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if total > l.total && l.total > 0 {
		l.share = float64(int64(float64(busy-l.busy)/float64(total-l.total)*1000)) / 1000
	}
	l.busy, l.total = busy, total
}

// reading is one VM's counters.
type reading struct {
	name   string
	values map[string]float64
}

// metricHelp are the metrics of a VM: counters end with _total.
var metricHelp = map[string]string{
	"cpu_seconds_total":              "CPU time that QEMU used.",
	"memory_resident_bytes":          "Resident memory of QEMU.",
	"memory_bytes":                   "Memory that the guest has, as its balloon says.",
	"disk_read_bytes_total":          "Bytes that the guest read from its disks.",
	"disk_written_bytes_total":       "Bytes that the guest wrote to its disks.",
	"disk_reads_total":               "Read requests.",
	"disk_writes_total":              "Write requests.",
	"network_receive_bytes_total":    "Bytes that the guest received.",
	"network_transmit_bytes_total":   "Bytes that the guest sent.",
	"network_receive_packets_total":  "Packets that the guest received.",
	"network_transmit_packets_total": "Packets that the guest sent.",
}

// read takes one VM's counters; nil if it doesn't run.
func (m *machine) read(ctx context.Context, links map[string]hostnet.Counters) *reading {
	p := m.process()
	if p == nil {
		return nil
	}
	v := map[string]float64{}
	if st, err := p.Stats(ctx); err == nil {
		v["cpu_seconds_total"] = st.CPU.Seconds()
		v["memory_resident_bytes"] = float64(st.RSS)
		if st.Balloon > 0 {
			v["memory_bytes"] = float64(st.Balloon)
		}
		for _, d := range st.Disks {
			v["disk_read_bytes_total"] += float64(d.ReadBytes)
			v["disk_written_bytes_total"] += float64(d.WriteBytes)
			v["disk_reads_total"] += float64(d.ReadOps)
			v["disk_writes_total"] += float64(d.WriteOps)
		}
	}
	for _, n := range m.vmSpec().GetNics() {
		c, ok := links[tapName(m.uid, n.GetName())]
		if !ok {
			continue
		}
		// The TAP receives what the guest sends.
		v["network_receive_bytes_total"] += float64(c.TxBytes)
		v["network_transmit_bytes_total"] += float64(c.RxBytes)
		v["network_receive_packets_total"] += float64(c.TxPackets)
		v["network_transmit_packets_total"] += float64(c.RxPackets)
	}
	return &reading{name: m.name(), values: v}
}

// readAll takes everybody's counters.
func (a *agent) readAll(ctx context.Context) []*reading {
	if a.cfg.RepositoriesOnly {
		return nil
	}
	links := map[string]hostnet.Counters{}
	if owned, err := a.net.Owned(hostnet.MarkNIC); err == nil {
		for _, l := range owned {
			links[l.Name] = l.Counters
		}
	}
	var out []*reading
	for _, m := range a.all() {
		if r := m.read(ctx, links); r != nil {
			out = append(out, r)
		}
	}
	return out
}

// sampleTimeout bounds the taking of one sample of everything.
const sampleTimeout = 10 * time.Second

// sample takes metrics for the manager at a steady pace until ctx ends.
func (a *agent) sample(ctx context.Context) {
	a.load.measure()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.clk.After(a.cfg.SampleInterval):
		}
		a.load.measure()
		sctx, cancel := context.WithTimeout(ctx, sampleTimeout)
		now := timestamppb.New(a.clk.Now())
		var out []*v1.Sample
		for _, r := range a.readAll(sctx) {
			for metric, value := range r.values {
				out = append(out, &v1.Sample{Kind: "vm", Name: r.name, Metric: metric, Time: now, Value: value})
			}
		}
		cancel()
		total, avail := memory()
		for metric, value := range map[string]float64{
			"cpu_load": a.load.now(), "memory_bytes": float64(total), "memory_free_bytes": float64(avail),
		} {
			out = append(out, &v1.Sample{Kind: "host", Name: a.id.Host, Metric: metric, Time: now, Value: value})
		}
		for _, d := range a.datastoreReports() {
			if d.GetStatus().GetReady() {
				out = append(out, &v1.Sample{Kind: "datastore", Name: d.GetName(), Metric: "free_bytes", Time: now, Value: float64(d.GetStatus().GetFreeBytes())})
			}
		}
		a.reporter.addSamples(out)
	}
}

// collector gives Prometheus the counters of the moment it asks.
type collector struct {
	a     *agent
	descs map[string]*prometheus.Desc
	host  map[string]*prometheus.Desc
	net   map[string]*prometheus.Desc // of the switch
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
	for _, d := range c.host {
		ch <- d
	}
	for _, d := range c.net {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(c.a.life, sampleTimeout)
	defer cancel()
	for _, r := range c.a.readAll(ctx) {
		for metric, value := range r.values {
			kind := prometheus.GaugeValue
			if len(metric) > 6 && metric[len(metric)-6:] == "_total" {
				kind = prometheus.CounterValue
			}
			ch <- prometheus.MustNewConstMetric(c.descs[metric], kind, value, r.name)
		}
	}
	phases := map[string]float64{}
	for _, m := range c.a.all() {
		phases[phaseName(m.report().GetStatus().GetPhase())]++
	}
	for p, n := range phases {
		ch <- prometheus.MustNewConstMetric(c.host["vms"], prometheus.GaugeValue, n, p)
	}
	if c.a.fabric != nil {
		c.a.fabric.collect(c.net, ch)
	}
	total, avail := memory()
	ch <- prometheus.MustNewConstMetric(c.host["memory"], prometheus.GaugeValue, float64(total))
	ch <- prometheus.MustNewConstMetric(c.host["free"], prometheus.GaugeValue, float64(avail))
	ch <- prometheus.MustNewConstMetric(c.host["cpu"], prometheus.GaugeValue, c.a.load.now())
	for _, d := range c.a.datastoreReports() {
		ch <- prometheus.MustNewConstMetric(c.host["store_free"], prometheus.GaugeValue, float64(d.GetStatus().GetFreeBytes()), d.GetName())
		ch <- prometheus.MustNewConstMetric(c.host["store_size"], prometheus.GaugeValue, float64(d.GetStatus().GetCapacityBytes()), d.GetName())
	}
}

func (a *agent) metricsHandler() http.Handler {
	c := &collector{a: a, descs: map[string]*prometheus.Desc{}, net: switchDescs(), host: map[string]*prometheus.Desc{
		"vms":        prometheus.NewDesc("drover_host_vms", "VMs on this host, by phase.", []string{"phase"}, nil),
		"memory":     prometheus.NewDesc("drover_host_memory_bytes", "Memory of the machine.", nil, nil),
		"free":       prometheus.NewDesc("drover_host_memory_free_bytes", "Memory that is available.", nil, nil),
		"cpu":        prometheus.NewDesc("drover_host_cpu_load", "Share of CPU time in use.", nil, nil),
		"store_free": prometheus.NewDesc("drover_datastore_free_bytes", "Room in a datastore.", []string{"datastore"}, nil),
		"store_size": prometheus.NewDesc("drover_datastore_capacity_bytes", "Size of a datastore's file system.", []string{"datastore"}, nil),
	}}
	for metric, help := range metricHelp {
		c.descs[metric] = prometheus.NewDesc("drover_vm_"+metric, help, []string{"vm"}, nil)
	}
	r := prometheus.NewRegistry()
	r.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}
