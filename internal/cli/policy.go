package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

const policyLong = `A policy says which VMs are backed up, when, where to, and how long points are kept. VMs that match are covered from the moment they exist.

  --schedule  "daily 22:00"   "mon..fri 12:00,18:00"   "hourly"   "*/15m"   "1st sun 03:00"
  --rpo 4h    no VM's newest point is older (in place of a schedule, or beside one)
  --window    "22:00-06:00"   "sat,sun"   runs begin only then
  --keep      last=7,daily=14,weekly=8,monthly=12,yearly=3,within=2d
  --copy      REPOSITORY, or REPOSITORY:daily=30,monthly=12 with its own retention

Everything else is a field, named as in files for drover apply: --set parallel_per_host=1 --set test.share=0.1 --set test.check.agent=on --set notify.mail=ops@example.org`

func (a *App) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Backup policies: what, when, where to, how long", Long: policyLong,
		Example: "  drover policy create nightly --all --schedule 'daily 22:00' --repository main --keep daily=7,weekly=4\n  drover policy preview nightly\n  drover backup status"}
	cmd.AddCommand(a.policyCreateCommand(), a.policySetCommand(), a.listCommand(policyKind(), "policy"), a.showCommand(policyKind()),
		a.rmCommand(policyKind(), "Delete policies; restore points stay", ""), a.policyRunCommand(), a.policyPreviewCommand(), a.policyPauseCommand(true), a.policyPauseCommand(false))
	return cmd
}

type policyFlags struct {
	description, filter, repository, rpo, keep, zone, quiesce string
	all                                                       bool
	vms, sites, except                                        []string
	schedules, windows, copies, set                           []string
	labels                                                    labelFlags
}

func (f *policyFlags) add(a *App, cmd *cobra.Command, change bool) {
	fs := cmd.Flags()
	fs.StringVar(&f.description, "description", "", "a line for people")
	fs.StringVar(&f.filter, "select", "", `VMs that match, such as 'meta.labels.env = "prod"'`)
	fs.BoolVar(&f.all, "all", false, "all VMs")
	fs.StringSliceVar(&f.vms, "vm", nil, "a VM by name (repeatable)")
	fs.StringSliceVar(&f.sites, "site", nil, "VMs in this site (repeatable)")
	fs.StringSliceVar(&f.except, "except", nil, "but not this VM (repeatable)")
	fs.StringArrayVar(&f.schedules, "schedule", nil, "when, such as \"daily 22:00\" (repeatable)")
	fs.StringVar(&f.rpo, "rpo", "", "no newest point is older than this, such as 4h")
	fs.StringArrayVar(&f.windows, "window", nil, "runs begin only then, such as \"22:00-06:00\" (repeatable)")
	fs.StringVar(&f.zone, "time-zone", "", "of schedules and windows, such as Europe/Berlin (default: the manager's)")
	fs.StringVar(&f.repository, "repository", "", "first copy")
	fs.StringArrayVar(&f.copies, "copy", nil, "further copy, `REPOSITORY[:RETENTION]` (repeatable)")
	fs.StringVar(&f.keep, "keep", "", "retention, such as daily=7,weekly=4 (default last=7,weekly=4)")
	quiesceFlag(cmd, &f.quiesce)
	fs.StringArrayVar(&f.set, "set", nil, "another field, `FIELD=VALUE` (repeatable)")
	register(cmd, "repository", a.names(repositoryKind(), ""))
	register(cmd, "copy", a.names(repositoryKind(), ""))
	register(cmd, "vm", a.names(vmKind(), ""))
	register(cmd, "except", a.names(vmKind(), ""))
	register(cmd, "site", a.names(siteKind(), ""))
	register(cmd, "set", func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		var out []string
		for _, p := range paths((&v1.BackupPolicySpec{}).ProtoReflect().Descriptor(), "") {
			if strings.HasPrefix(p, typed) {
				out = append(out, p+"=")
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	})
	f.labels.add(cmd, change)
	a.outputFlag(cmd)
}

// parseRetention reads "daily=7,weekly=4,within=2d".
func parseRetention(flag, s string) (*v1.Retention, error) {
	r := &v1.Retention{}
	for part := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		n, err := strconv.ParseInt(value, 10, 32)
		to := map[string]*int32{"last": &r.Last, "hourly": &r.Hourly, "daily": &r.Daily, "weekly": &r.Weekly, "monthly": &r.Monthly, "yearly": &r.Yearly}[key]
		switch {
		case ok && key == "within":
			d, err := unit.ParseSpan(value)
			if err != nil {
				return nil, usage("--%s %q: %v", flag, s, err)
			}
			r.Within = durationpb.New(d)
		case !ok || to == nil || err != nil || n < 0:
			return nil, usage("--%s %q: write last=N, hourly=N, daily=N, weekly=N, monthly=N, yearly=N, within=SPAN, with commas between", flag, s)
		default:
			*to = int32(n)
		}
	}
	return r, nil
}

// apply puts what the flags say into a spec, and returns the paths that were given.
func (f *policyFlags) apply(cmd *cobra.Command, s *v1.BackupPolicySpec) (changed []string, err error) {
	given := func(flag, path string) bool {
		if !cmd.Flags().Changed(flag) {
			return false
		}
		if path = "spec." + path; !slices.Contains(changed, path) {
			changed = append(changed, path)
		}
		return true
	}
	if given("description", "description") {
		s.Description = f.description
	}
	if given("repository", "repository") {
		s.Repository = f.repository
	}
	if given("schedule", "schedules") {
		s.Schedules = f.schedules
	}
	if given("window", "windows") {
		s.Windows = f.windows
	}
	if given("time-zone", "time_zone") {
		s.TimeZone = f.zone
	}
	if given("rpo", "rpo") {
		d, err := unit.ParseSpan(f.rpo)
		if err != nil {
			return nil, usage("--rpo: %v", err)
		}
		s.Rpo = nil
		if d > 0 {
			s.Rpo = durationpb.New(d)
		}
	}
	if given("keep", "retention") {
		if s.Retention, err = parseRetention("keep", f.keep); err != nil {
			return nil, err
		}
	}
	if given("quiesce", "quiesce") {
		if s.Quiesce, err = flagEnum[v1.Quiesce]("quiesce", f.quiesce, s.Quiesce); err != nil {
			return nil, err
		}
	}
	if given("copy", "copies") {
		s.Copies = nil
		for _, c := range f.copies {
			name, keep, own := strings.Cut(c, ":")
			one := &v1.PolicyCopy{Repository: name}
			if own {
				if one.Retention, err = parseRetention("copy", keep); err != nil {
					return nil, err
				}
			}
			s.Copies = append(s.Copies, one)
		}
	}
	for _, flag := range []string{"select", "all", "vm", "site", "except"} {
		if !given(flag, "select") {
			continue
		}
		if s.Select == nil {
			s.Select = &v1.PolicySelector{}
		}
		switch flag {
		case "select":
			s.Select.Filter = f.filter
		case "all":
			s.Select.All = f.all
		case "vm":
			s.Select.Vms = f.vms
		case "site":
			s.Select.Sites = f.sites
		case "except":
			s.Select.Except = f.except
		}
	}
	for _, text := range f.set {
		x, err := parseAssignment(text)
		if err != nil {
			return nil, err
		}
		if err := x.assign(s); err != nil {
			return nil, err
		}
		changed = append(changed, "spec."+x.path)
	}
	return changed, nil
}

func (a *App) policyCreateCommand() *cobra.Command {
	var f policyFlags
	var dry bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a backup policy", Long: policyLong, Args: want("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  drover policy create nightly --all --schedule 'daily 22:00' --repository main --keep daily=7,weekly=4\n  drover policy create gold --select 'meta.labels.tier = \"gold\"' --rpo 1h --repository main --copy offsite:daily=30,monthly=12 --quiesce require",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			s := &v1.BackupPolicySpec{}
			if _, err := f.apply(cmd, s); err != nil {
				return err
			}
			if s.Select == nil {
				return usage("policy create: say which VMs it covers: --all, --vm NAME, --site NAME or --select FILTER")
			}
			m, err := f.labels.labels(nil)
			if err != nil {
				return err
			}
			p, err := c.Policy.Create(ctx, &v1.CreateBackupPolicyRequest{Policy: &v1.BackupPolicy{Meta: &v1.Meta{Name: args[0], Labels: m}, Spec: s}, ValidateOnly: dry})
			if err != nil {
				return err
			}
			if dry {
				return a.printDone(policyKind(), p, "would be created")
			}
			return a.printDone(policyKind(), p, "created")
		}),
	}
	f.add(a, cmd, false)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "check everything, change nothing")
	return cmd
}

func (a *App) policySetCommand() *cobra.Command {
	var f policyFlags
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Change a backup policy", Args: want("NAME"), ValidArgsFunction: a.firstArg(policyKind()),
		Example: "  drover policy set nightly --schedule 'daily 23:00' --keep daily=14,weekly=8\n  drover policy set nightly --except scratch --set priority=10",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			old, err := c.Policy.Get(ctx, &v1.GetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			u := &updater{cmd: cmd}
			if u.paths, err = f.apply(cmd, old.Spec); err != nil {
				return err
			}
			m, err := u.label(&f.labels, old.GetMeta().GetLabels())
			if err != nil {
				return err
			}
			return u.send(ctx, a, c, policyKind(), &v1.BackupPolicy{Meta: &v1.Meta{Name: args[0], Labels: m}, Spec: old.Spec})
		}),
	}
	f.add(a, cmd, true)
	return cmd
}

func (a *App) policyPauseCommand(on bool) *cobra.Command {
	use, short, done := "pause", "Run policies no more until they are resumed", "paused"
	if !on {
		use, short, done = "resume", "Let policies run again", "resumed"
	}
	cmd := &cobra.Command{
		Use: use + " NAME…", Short: short, Args: want("NAME", "[NAME…]"), ValidArgsFunction: a.everyArg(policyKind()), Example: "  drover policy " + use + " nightly",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return eachName(args, func(name string) error {
				p, err := c.Policy.Update(ctx, &v1.UpdateBackupPolicyRequest{
					Policy: &v1.BackupPolicy{Meta: &v1.Meta{Name: name}, Spec: &v1.BackupPolicySpec{Paused: on}}, Mask: maskOf("spec.paused"),
				})
				if err != nil {
					return err
				}
				return a.printDone(policyKind(), p, done)
			})
		}),
	}
	a.outputFlag(cmd)
	return cmd
}

func (a *App) policyRunCommand() *cobra.Command {
	var w waitFlags
	cmd := &cobra.Command{
		Use: "run NAME", Short: "Back up all that a policy covers, now", Args: want("NAME"), ValidArgsFunction: a.firstArg(policyKind()), Example: "  drover policy run nightly",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := c.Policy.Run(ctx, &v1.GetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.taskDone(ctx, c, t, w, "ran")
		}),
	}
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) policyPreviewCommand() *cobra.Command {
	var horizon string
	cmd := &cobra.Command{
		Use: "preview NAME", Short: "What will run, and what will be pruned and why", Args: want("NAME"), ValidArgsFunction: a.firstArg(policyKind()),
		Example: "  drover policy preview nightly\n  drover policy preview nightly --for 7d",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			d, err := unit.ParseSpan(horizon)
			if err != nil {
				return usage("--for: %v", err)
			}
			p, err := c.Policy.Preview(ctx, &v1.PreviewPolicyRequest{Name: args[0], Horizon: durationpb.New(d)})
			if err != nil {
				return err
			}
			if !a.people() {
				return a.printMessage(p)
			}
			return a.printPolicyPreview(p)
		}),
	}
	cmd.Flags().StringVar(&horizon, "for", "24h", "how far to look ahead, such as 24h or 7d")
	a.outputFlag(cmd)
	return cmd
}

func (a *App) printPolicyPreview(p *v1.PolicyPreview) error {
	when := func(t interface{ AsTime() time.Time }) string {
		return t.AsTime().Local().Format("Mon 2006-01-02 15:04")
	}
	fmt.Fprintf(a.Out, "Covers %d VMs; %d VMs are covered by no policy%s\n\n", len(p.GetVms()), len(p.GetUncovered()), listed(p.GetUncovered()))
	runs := &table.Table{Headers: []string{"RUN", "VM", "TO", "WHY", "LAST TIME"}}
	for _, r := range p.GetRuns() {
		runs.Add(table.Text(when(r.GetTime())), table.Text(r.GetVm()), table.Text(r.GetRepository()), table.Text(r.GetReason()), table.Text(sizeOr(r.GetExpectedBytes(), "-")))
	}
	if len(p.GetRuns()) == 0 {
		fmt.Fprintln(a.Out, "Nothing will run.")
	} else if err := runs.Write(a.Out, a.coloured(a.Out)); err != nil {
		return err
	}
	fmt.Fprintln(a.Out)
	prunes := &table.Table{Headers: []string{"POINT", "VM", "OF", "THEN", "WHY"}}
	for _, x := range p.GetPrunes() {
		then := table.Cell{Text: "kept", Colour: table.Green}
		if !x.GetKept() {
			then = table.Cell{Text: "pruned " + when(x.GetTime()), Colour: table.Yellow}
		}
		prunes.Add(table.Text(x.GetPoint()), table.Text(x.GetVm()), table.Text(when(x.GetPointTime())), then, table.Text(x.GetReason()))
	}
	if len(p.GetPrunes()) == 0 {
		_, err := fmt.Fprintln(a.Out, "There are no points yet.")
		return err
	}
	return prunes.Write(a.Out, a.coloured(a.Out))
}

func listed(names []string) string {
	if len(names) == 0 {
		return "."
	}
	more := ""
	if len(names) > 10 {
		names, more = names[:10], ", …"
	}
	return ": " + strings.Join(names, ", ") + more
}
