package host

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	v1 "drover/api/drover/v1"
)

// switchDescs are the metrics of the switch. Counters are as of the last sample.
func switchDescs() map[string]*prometheus.Desc {
	device := func(kind, what, help string) *prometheus.Desc {
		return prometheus.NewDesc("drover_"+kind+"_"+what, help, []string{kind}, nil)
	}
	out := map[string]*prometheus.Desc{
		"port_drops":    prometheus.NewDesc("drover_port_drops_total", "Frames dropped at a port, by reason.", []string{"port", "reason"}, nil),
		"uplink_drops":  prometheus.NewDesc("drover_uplink_drops_total", "Frames from an uplink that were dropped, by reason.", []string{"uplink", "reason"}, nil),
		"registrations": prometheus.NewDesc("drover_switch_registrations", "MACs in this host's datapath.", nil, nil),
		"ports":         prometheus.NewDesc("drover_switch_ports", "Ports on this host.", nil, nil),
		"uplink_active": device("uplink", "active", "Whether frames leave by an uplink now."),
	}
	for _, kind := range []string{"port", "uplink"} {
		out[kind+"_in_packets"] = device(kind, "in_packets_total", "Frames into the switch.")
		out[kind+"_in_bytes"] = device(kind, "in_bytes_total", "Bytes into the switch.")
		out[kind+"_out_packets"] = device(kind, "out_packets_total", "Frames out of the switch.")
		out[kind+"_out_bytes"] = device(kind, "out_bytes_total", "Bytes out of the switch.")
	}
	return out
}

// collect gives the metrics of the switch.
func (f *fabric) collect(descs map[string]*prometheus.Desc, ch chan<- prometheus.Metric) {
	f.mu.Lock()
	s := f.shown
	ports := slices.Collect(maps.Values(s.ports))
	f.mu.Unlock()
	emit := func(kind, name string, c *v1.PortCounters) {
		for what, v := range map[string]uint64{"in_packets": c.GetInPackets(), "in_bytes": c.GetInBytes(), "out_packets": c.GetOutPackets(), "out_bytes": c.GetOutBytes()} {
			ch <- prometheus.MustNewConstMetric(descs[kind+"_"+what], prometheus.CounterValue, float64(v), name)
		}
		for _, d := range c.GetDrops() {
			ch <- prometheus.MustNewConstMetric(descs[kind+"_drops"], prometheus.CounterValue, float64(d.GetPackets()), name, d.GetReason())
		}
	}
	for _, p := range ports {
		emit("port", p.GetName(), p.GetStatus().GetCounters())
	}
	for name, u := range s.uplinks {
		emit("uplink", name, u.GetCounters())
		active := 0.0
		if u.GetActive() {
			active = 1
		}
		ch <- prometheus.MustNewConstMetric(descs["uplink_active"], prometheus.GaugeValue, active, name)
	}
	ch <- prometheus.MustNewConstMetric(descs["registrations"], prometheus.GaugeValue, float64(s.status.GetRegistrations()))
	ch <- prometheus.MustNewConstMetric(descs["ports"], prometheus.GaugeValue, float64(s.status.GetPorts()))
}
