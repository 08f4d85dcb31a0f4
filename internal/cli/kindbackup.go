package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func repositoryKind() *kind {
	return &kind{
		name: "repository", plural: "repositories", alias: []string{"repo"}, rank: 5, empty: &v1.Repository{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Repository.List(ctx, r)
			return pageOf(l.GetRepositories(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Repository.Get(ctx, &v1.GetRequest{Name: n}))
		},
		create: func(ctx context.Context, c *client.Client, o object, dry bool) (object, error) {
			r, err := c.Repository.Create(ctx, &v1.CreateRepositoryRequest{Repository: o.(*v1.Repository), ValidateOnly: dry})
			return one(r.GetRepository(), err)
		},
		update: func(ctx context.Context, c *client.Client, o object, m *fieldmaskpb.FieldMask, dry bool) (object, error) {
			return one(c.Repository.Update(ctx, &v1.UpdateRepositoryRequest{Repository: o.(*v1.Repository), Mask: m, ValidateOnly: dry}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Repository.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Repository.Watch(ctx, r)
			return changes(s, err, (*v1.RepositoryChange).GetRepository, f)
		},
		columns: []column{
			nameColumn("NAME"),
			mark("STATE", repositoryState),
			num("POINTS", func(r *v1.Repository) string { return fmt.Sprint(r.GetStatus().GetPoints()) }),
			num("VMS", func(r *v1.Repository) string { return fmt.Sprint(r.GetStatus().GetVms()) }),
			num("GUESTS SEE", func(r *v1.Repository) string { return unit.Size(r.GetStatus().GetLogicalBytes()) }),
			num("STORED", func(r *v1.Repository) string { return unit.Size(r.GetStatus().GetStoredBytes()) }),
			num("RATIO", func(r *v1.Repository) string {
				return ratio(r.GetStatus().GetLogicalBytes(), r.GetStatus().GetStoredBytes())
			}),
			num("FREE", func(r *v1.Repository) string { return sizeOr(r.GetStatus().GetFreeBytes(), "-") }),
			at("LAST BACKUP", func(now time.Time, r *v1.Repository) string { return unit.Age(now, r.GetStatus().GetLastBackup()) }),
			col("SERVED BY", func(r *v1.Repository) string {
				if h := r.GetSpec().GetHost(); h != "" {
					return h
				}
				return "manager"
			}),
			col("LOCATION", func(r *v1.Repository) string { return r.GetSpec().GetLocation() }),
			wide(num("DEDUPE", func(r *v1.Repository) string { return times(r.GetStatus().GetDedupeRatio()) })),
			wide(num("COMPRESSION", func(r *v1.Repository) string { return times(r.GetStatus().GetCompressionRatio()) })),
			wide(num("RECLAIMABLE", func(r *v1.Repository) string { return unit.Size(r.GetStatus().GetReclaimableBytes()) })),
			wide(at("COLLECTED", func(now time.Time, r *v1.Repository) string { return unit.Age(now, r.GetStatus().GetLastCollect()) })),
			wide(at("SCRUBBED", func(now time.Time, r *v1.Repository) string { return unit.Age(now, r.GetStatus().GetLastScrub()) })),
			wide(labelsColumn()),
		},
	}
}

func times(v float64) string {
	if v <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f×", v)
}

func ratio(whole, part int64) string {
	if part <= 0 {
		return "-"
	}
	return times(float64(whole) / float64(part))
}

func sizeOr(n int64, none string) string {
	if n == 0 {
		return none
	}
	return unit.Size(n)
}

func repositoryState(r *v1.Repository) table.Cell {
	st := r.GetStatus()
	c := table.Cell{Text: unit.Word(st.GetPhase())}
	switch st.GetPhase() {
	case v1.RepositoryPhase_REPOSITORY_PHASE_READY:
		c.Colour = table.Green
	case v1.RepositoryPhase_REPOSITORY_PHASE_PENDING, v1.RepositoryPhase_REPOSITORY_PHASE_UNSPECIFIED:
		c.Colour = table.Yellow
	default:
		c.Colour = table.Red
	}
	if m := st.GetMessage(); m != "" && c.Colour != table.Green {
		c.Text += ": " + m
	}
	return c
}

func pointKind() *kind {
	return &kind{
		name: "point", plural: "points", alias: []string{"restore-point", "backup", "backups"}, rank: 90, empty: &v1.RestorePoint{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Backup.List(ctx, r)
			return pageOf(l.GetPoints(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Backup.Get(ctx, &v1.GetRequest{Name: n}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Backup.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Backup.Watch(ctx, r)
			return changes(s, err, (*v1.RestorePointChange).GetPoint, f)
		},
		columns: []column{
			nameColumn("POINT"),
			col("VM", func(p *v1.RestorePoint) string { return p.GetStatus().GetVm() }),
			at("AGE", func(now time.Time, p *v1.RestorePoint) string { return unit.Age(now, p.GetStatus().GetTime()) }),
			mark("CONSISTENCY", pointState),
			num("DISKS", func(p *v1.RestorePoint) string { return fmt.Sprint(len(p.GetStatus().GetDisks())) }),
			num("GUEST SEES", func(p *v1.RestorePoint) string { return unit.Size(p.GetStatus().GetLogicalBytes()) }),
			num("READ", func(p *v1.RestorePoint) string { return unit.Size(p.GetStatus().GetReadBytes()) }),
			num("STORED", func(p *v1.RestorePoint) string { return unit.Size(p.GetStatus().GetAddedBytes()) }),
			col("KEPT", func(p *v1.RestorePoint) string {
				if p.GetSpec().GetKeep() {
					return "yes"
				}
				return ""
			}),
			mark("TEST", pointTest),
			wide(col("POLICY", func(p *v1.RestorePoint) string { return p.GetStatus().GetPolicy() })),
			wide(col("FULL READ", func(p *v1.RestorePoint) string { return p.GetStatus().GetFullRead() })),
			wide(col("TIME", func(p *v1.RestorePoint) string { return p.GetStatus().GetTime().AsTime().Local().Format(time.DateTime) })),
			wide(col("TOOK", func(p *v1.RestorePoint) string {
				return p.GetStatus().GetDuration().AsDuration().Round(time.Millisecond).String()
			})),
		},
	}
}

func pointState(p *v1.RestorePoint) table.Cell {
	if d := p.GetStatus().GetDamage(); len(d) > 0 {
		return table.Cell{Text: "DAMAGED: " + d[0], Colour: table.Red}
	}
	c := table.Cell{Text: p.GetStatus().GetConsistency()}
	if p.GetStatus().GetMemory() && c.Text != "memory" {
		c.Text += "+memory"
	}
	return c
}

func pointTest(p *v1.RestorePoint) table.Cell {
	t := p.GetStatus().GetTest()
	switch {
	case t.GetTime() == nil:
		return table.Cell{Text: "-", Colour: table.Dim}
	case t.GetPassed():
		return table.Cell{Text: "passed", Colour: table.Green}
	}
	return table.Cell{Text: "failed: " + strings.Join(t.GetChecks(), "; "), Colour: table.Red}
}

func policyKind() *kind {
	return &kind{
		name: "policy", plural: "policies", alias: []string{"backup-policy"}, rank: 6, empty: &v1.BackupPolicy{},
		list: func(ctx context.Context, c *client.Client, r *v1.ListRequest) (page, error) {
			l, err := c.Policy.List(ctx, r)
			return pageOf(l.GetPolicies(), l, err)
		},
		get: func(ctx context.Context, c *client.Client, n string) (object, error) {
			return one(c.Policy.Get(ctx, &v1.GetRequest{Name: n}))
		},
		create: func(ctx context.Context, c *client.Client, o object, dry bool) (object, error) {
			return one(c.Policy.Create(ctx, &v1.CreateBackupPolicyRequest{Policy: o.(*v1.BackupPolicy), ValidateOnly: dry}))
		},
		update: func(ctx context.Context, c *client.Client, o object, m *fieldmaskpb.FieldMask, dry bool) (object, error) {
			return one(c.Policy.Update(ctx, &v1.UpdateBackupPolicyRequest{Policy: o.(*v1.BackupPolicy), Mask: m, ValidateOnly: dry}))
		},
		delete: func(ctx context.Context, c *client.Client, r *v1.DeleteRequest) (object, error) {
			return one(c.Policy.Delete(ctx, r))
		},
		watch: func(ctx context.Context, c *client.Client, r *v1.WatchRequest, f func(change) error) error {
			s, err := c.Policy.Watch(ctx, r)
			return changes(s, err, (*v1.BackupPolicyChange).GetPolicy, f)
		},
		columns: []column{
			nameColumn("NAME"),
			col("WHEN", policyWhen),
			col("REPOSITORY", func(p *v1.BackupPolicy) string {
				out := []string{p.GetSpec().GetRepository()}
				for _, c := range p.GetSpec().GetCopies() {
					out = append(out, c.GetRepository())
				}
				return strings.Join(out, " → ")
			}),
			col("KEEP", func(p *v1.BackupPolicy) string { return retentionWords(p.GetSpec().GetRetention()) }),
			num("VMS", func(p *v1.BackupPolicy) string { return fmt.Sprint(p.GetStatus().GetVms()) }),
			mark("PROTECTED", func(p *v1.BackupPolicy) table.Cell {
				st := p.GetStatus()
				c := table.Cell{Text: fmt.Sprintf("%d of %d", st.GetProtected(), st.GetVms()), Colour: table.Green}
				switch {
				case st.GetAtRisk() > 0:
					c.Text, c.Colour = c.Text+fmt.Sprintf(", %d at risk", st.GetAtRisk()), table.Red
				case st.GetLate() > 0:
					c.Text, c.Colour = c.Text+fmt.Sprintf(", %d late", st.GetLate()), table.Yellow
				case st.GetVms() == 0:
					c.Colour = table.Dim
				}
				return c
			}),
			at("LAST RUN", func(now time.Time, p *v1.BackupPolicy) string { return unit.Age(now, p.GetStatus().GetLastRun()) }),
			at("NEXT RUN", func(now time.Time, p *v1.BackupPolicy) string {
				switch t := p.GetStatus().GetNextRun(); {
				case p.GetSpec().GetPaused():
					return "paused"
				case t == nil:
					return "-"
				case t.AsTime().Before(now):
					return "now"
				default:
					return "in " + unit.Span(t.AsTime().Sub(now))
				}
			}),
			wide(col("SELECT", selectorWords)),
			wide(col("DESCRIPTION", func(p *v1.BackupPolicy) string { return p.GetSpec().GetDescription() })),
		},
	}
}

func policyWhen(p *v1.BackupPolicy) string {
	out := strings.Join(p.GetSpec().GetSchedules(), "; ")
	if rpo := p.GetSpec().GetRpo(); rpo != nil {
		if out != "" {
			out += "; "
		}
		out += "within " + unit.Span(rpo.AsDuration())
	}
	if out == "" {
		return "by hand"
	}
	return out
}

func retentionWords(r *v1.Retention) string {
	var out []string
	for _, x := range []struct {
		name string
		n    int32
	}{{"last", r.GetLast()}, {"hourly", r.GetHourly()}, {"daily", r.GetDaily()}, {"weekly", r.GetWeekly()}, {"monthly", r.GetMonthly()}, {"yearly", r.GetYearly()}} {
		if x.n != 0 {
			out = append(out, fmt.Sprintf("%s=%d", x.name, x.n))
		}
	}
	if w := r.GetWithin(); w != nil {
		out = append(out, "within="+unit.Span(w.AsDuration()))
	}
	return strings.Join(out, ",")
}

func selectorWords(p *v1.BackupPolicy) string {
	s := p.GetSpec().GetSelect()
	var out []string
	if s.GetAll() {
		out = append(out, "all")
	}
	if s.GetFilter() != "" {
		out = append(out, s.GetFilter())
	}
	for _, x := range []struct {
		name string
		list []string
	}{{"vms", s.GetVms()}, {"sites", s.GetSites()}, {"projects", s.GetProjects()}, {"except", s.GetExcept()}} {
		if len(x.list) > 0 {
			out = append(out, x.name+" "+strings.Join(x.list, ","))
		}
	}
	return strings.Join(out, "; ")
}
