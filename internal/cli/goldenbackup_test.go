package cli

import (
	"time"

	v1 "drover/api/drover/v1"

	"google.golang.org/protobuf/types/known/durationpb"
)

func sampleRepositories() []object {
	return []object{
		&v1.Repository{Meta: meta("main", 30*24*time.Hour), Spec: &v1.RepositorySpec{Location: "/backup"}, Status: &v1.RepositoryStatus{
			Phase: v1.RepositoryPhase_REPOSITORY_PHASE_READY, Points: 42, Vms: 6, LogicalBytes: 4 << 40, StoredBytes: 600 << 30, FreeBytes: 300 << 30, DedupeRatio: 3.4, CompressionRatio: 2.01,
			ReclaimableBytes: 5 << 30, LastBackup: ago(3 * time.Hour), LastCollect: ago(20 * time.Hour), LastScrub: ago(6 * 24 * time.Hour)}},
		&v1.Repository{Meta: meta("offsite", time.Hour), Spec: &v1.RepositorySpec{Location: "s3://backups/drover", Host: "h3"}, Status: &v1.RepositoryStatus{Phase: v1.RepositoryPhase_REPOSITORY_PHASE_PENDING}},
		&v1.Repository{Meta: meta("old", time.Hour), Spec: &v1.RepositorySpec{Location: "/mnt/old"}, Status: &v1.RepositoryStatus{Phase: v1.RepositoryPhase_REPOSITORY_PHASE_LOCKED, Message: "its key is not on this machine"}},
	}
}

func samplePolicies() []object {
	return []object{
		&v1.BackupPolicy{Meta: meta("gold", time.Hour), Spec: &v1.BackupPolicySpec{
			Select: &v1.PolicySelector{Filter: "meta.labels.tier = \"gold\"", Except: []string{"scratch"}}, Schedules: []string{"daily 22:00"}, Rpo: durationpb.New(4 * time.Hour), Repository: "main",
			Copies: []*v1.PolicyCopy{{Repository: "offsite"}}, Retention: &v1.Retention{Daily: 7, Weekly: 4, Within: durationpb.New(48 * time.Hour)}, Description: "what must not be lost"},
			Status: &v1.BackupPolicyStatus{Vms: 5, Protected: 3, Late: 1, AtRisk: 1, LastRun: ago(2 * time.Hour), NextRun: ago(-90 * time.Minute)}},
		&v1.BackupPolicy{Meta: meta("paused", time.Hour), Spec: &v1.BackupPolicySpec{Select: &v1.PolicySelector{All: true}, Schedules: []string{"hourly"}, Repository: "main", Paused: true}, Status: &v1.BackupPolicyStatus{Vms: 2, Protected: 1, Late: 1, NextRun: ago(0)}},
		&v1.BackupPolicy{Meta: meta("manual", time.Hour), Spec: &v1.BackupPolicySpec{Select: &v1.PolicySelector{Vms: []string{"a", "b"}, Sites: []string{"berlin"}}, Repository: "main"}},
		&v1.BackupPolicy{Meta: meta("due", time.Hour), Spec: &v1.BackupPolicySpec{Select: &v1.PolicySelector{All: true}, Schedules: []string{"hourly"}, Repository: "main"}, Status: &v1.BackupPolicyStatus{Vms: 2, Protected: 2, NextRun: ago(time.Minute)}},
	}
}

func samplePoints() []object {
	point := func(name string, st *v1.RestorePointStatus) *v1.RestorePoint {
		st.Vm, st.Disks = "web", []*v1.PointDisk{{Name: "root", SizeBytes: 10 << 30}}
		return &v1.RestorePoint{Meta: meta("main/"+name, time.Hour), Spec: &v1.RestorePointSpec{}, Status: st}
	}
	kept := point("00112233445566778899aabbccddeeff", &v1.RestorePointStatus{Time: ago(time.Hour), Consistency: "quiesced", Memory: true, LogicalBytes: 10 << 30, ReadBytes: 100 << 20, AddedBytes: 40 << 20,
		Policy: "gold", Duration: durationpb.New(1234567 * time.Microsecond), Test: &v1.PointTest{Time: ago(time.Minute), Passed: true}})
	kept.Spec.Keep = true
	return []object{
		kept,
		point("11112233445566778899aabbccddeeff", &v1.RestorePointStatus{Time: ago(25 * time.Hour), Consistency: "crash", LogicalBytes: 10 << 30, ReadBytes: 10 << 30, AddedBytes: 4 << 30, FullRead: "the first",
			Test: &v1.PointTest{Time: ago(time.Minute), Checks: []string{"agent: no answer", "tcp 22: refused"}}}),
		point("22112233445566778899aabbccddeeff", &v1.RestorePointStatus{Time: ago(50 * time.Hour), Consistency: "off", LogicalBytes: 10 << 30, Damage: []string{"root: 64 KiB at 1048576"}}),
	}
}
