package httpapi

import (
	v1 "drover/api/drover/v1"
	"drover/internal/manager"
	"drover/internal/resource"

	"github.com/prometheus/client_golang/prometheus"
)

// backupDescs are the metrics of repositories and backups.
type backupDescs struct {
	logical, unique, stored, reclaimable, free, dedupe, compression, points, phase *prometheus.Desc // by repository
	state                                                                          *prometheus.Desc // VMs, by state
	newest                                                                         *prometheus.Desc // by VM
	success, duration, read, added, failures                                       *prometheus.Desc // by VM and policy
}

func newBackupDescs() backupDescs {
	repo := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc("drover_repository_"+name, help, append([]string{"repository"}, more...), nil)
	}
	run := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("drover_backup_"+name, help, []string{"vm", "policy"}, nil)
	}
	return backupDescs{
		logical: repo("logical_bytes", "Bytes of all disks of all points, as guests see them."), unique: repo("unique_bytes", "Bytes of distinct blocks."),
		stored: repo("stored_bytes", "Bytes that the repository takes."), reclaimable: repo("reclaimable_bytes", "Bytes that wait for collection."),
		free: repo("free_bytes", "Bytes free where the repository is."), dedupe: repo("dedupe_ratio", "Logical bytes for each unique one."),
		compression: repo("compression_ratio", "Unique bytes for each stored one."), points: repo("points", "Restore points."),
		phase:    repo("phase", "1 for the phase that the repository is in.", "phase"),
		state:    prometheus.NewDesc("drover_protection_state", "VMs by how they are protected.", []string{"state"}, nil),
		newest:   prometheus.NewDesc("drover_backup_last_point_timestamp_seconds", "Time of a VM's newest whole restore point.", []string{"vm"}, nil),
		success:  run("last_success_timestamp_seconds", "When the last backup that succeeded ended."),
		duration: run("duration_seconds", "Time that the last backup took that succeeded."), read: run("read_bytes", "Bytes that it read."),
		added: run("added_bytes", "Bytes that it added to the repository."), failures: run("failures", "Tries that failed since."),
	}
}

func (d backupDescs) all() []*prometheus.Desc {
	return []*prometheus.Desc{d.logical, d.unique, d.stored, d.reclaimable, d.free, d.dedupe, d.compression, d.points, d.phase, d.state, d.newest, d.success, d.duration, d.read, d.added, d.failures}
}

func (d backupDescs) describe(c chan<- *prometheus.Desc) {
	for _, x := range d.all() {
		c <- x
	}
}

func (d backupDescs) collect(c chan<- prometheus.Metric, n manager.BackupCounts) {
	send := func(desc *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	for _, r := range n.Repositories {
		st, name := r.GetStatus(), r.Meta.Name
		send(d.logical, float64(st.GetLogicalBytes()), name)
		send(d.unique, float64(st.GetUniqueBytes()), name)
		send(d.stored, float64(st.GetStoredBytes()), name)
		send(d.reclaimable, float64(st.GetReclaimableBytes()), name)
		send(d.free, float64(st.GetFreeBytes()), name)
		send(d.dedupe, st.GetDedupeRatio(), name)
		send(d.compression, st.GetCompressionRatio(), name)
		send(d.points, float64(st.GetPoints()), name)
		send(d.phase, 1, name, resource.Word(st.GetPhase()))
	}
	for _, s := range []v1.ProtectionState{
		v1.ProtectionState_PROTECTION_STATE_PROTECTED, v1.ProtectionState_PROTECTION_STATE_LATE, v1.ProtectionState_PROTECTION_STATE_AT_RISK, v1.ProtectionState_PROTECTION_STATE_UNCOVERED,
	} {
		send(d.state, float64(n.States[resource.Word(s)]), resource.Word(s))
	}
	for _, vm := range n.VMs {
		if vm.LastPoint != nil {
			send(d.newest, float64(vm.LastPoint.Seconds), vm.Vm)
		}
	}
	for _, r := range n.Records {
		send(d.failures, float64(r.Failures), r.Vm, r.Policy)
		if r.LastSuccess == nil {
			continue
		}
		send(d.success, float64(r.LastSuccess.Seconds), r.Vm, r.Policy)
		send(d.duration, r.Duration.AsDuration().Seconds(), r.Vm, r.Policy)
		send(d.read, float64(r.ReadBytes), r.Vm, r.Policy)
		send(d.added, float64(r.AddedBytes), r.Vm, r.Policy)
	}
}
