package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/backup/files"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

func (a *App) backupCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "backup", Short: "Restore points: make, list, look into, test, copy them",
		Long:    "A restore point is a VM as it was at one moment, in a repository. It is called REPOSITORY/ID; where one is wanted, REPOSITORY/VM or VM means the newest of that VM.",
		Example: "  drover backup create web\n  drover backup list web\n  drover backup files web root:/etc\n  drover backup status"}
	cmd.AddCommand(a.backupCreateCommand(), a.backupListCommand(), a.showPointCommand(), a.backupKeepCommand(), a.backupCopyCommand(), a.backupTestCommand(),
		a.backupFilesCommand(), a.backupGetCommand(), a.backupStatusCommand(),
		a.rmCommand(pointKind(), "Delete restore points; collection reclaims their space", ""))
	return cmd
}

func quiesceFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "quiesce", "", "freeze the guest's file systems by its agent: try, require or never (default try)")
	register(cmd, "quiesce", words(unit.Words(v1.Quiesce(0).Descriptor())...))
}

func (a *App) backupCreateCommand() *cobra.Command {
	var w waitFlags
	var quiesce string
	req := &v1.CreateBackupRequest{}
	cmd := &cobra.Command{
		Use: "create VM…", Short: "Back up VMs now, running or not", Args: want("VM", "[VM…]"), ValidArgsFunction: a.everyArg(vmKind()),
		Long: `Back up VMs now. All disks of a VM are taken at one moment. Only what changed since its last point in that repository is read, where the host can prove it; else all is
read, and only what the repository lacks is stored. The guest is not slowed by a slow repository.`,
		Example: "  drover backup create web\n  drover backup create db --quiesce require --keep\n  drover backup create web --repository offsite --full",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) (err error) {
			if req.Quiesce, err = flagEnum[v1.Quiesce]("quiesce", quiesce, req.Quiesce); err != nil {
				return err
			}
			return eachName(args, func(vm string) error {
				one := &v1.CreateBackupRequest{Vm: vm, Repository: req.Repository, Quiesce: req.Quiesce, Memory: req.Memory, Full: req.Full, Keep: req.Keep}
				t, err := c.Backup.Create(ctx, one)
				if err != nil {
					return err
				}
				return a.taskDone(ctx, c, t, w, "backed up "+vm)
			})
		}),
	}
	fs := cmd.Flags()
	fs.StringVar(&req.Repository, "repository", "", "where to (default: as the VM's policy says, or the only one)")
	quiesceFlag(cmd, &quiesce)
	fs.BoolVar(&req.Memory, "memory", false, "keep the running guest's memory, too")
	fs.BoolVar(&req.Full, "full", false, "read all, trust no tracking of changes")
	fs.BoolVar(&req.Keep, "keep", false, "never prune this point")
	register(cmd, "repository", a.names(repositoryKind(), ""))
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) backupListCommand() *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{
		Use: "list [VM]", Aliases: []string{"ls"}, Short: "List restore points, of a VM or of all", Args: want("[VM]"), ValidArgsFunction: a.firstArg(vmKind()),
		Example: "  drover backup list\n  drover backup list web -o wide\n  drover backup list --filter 'status.repository = \"offsite\"'",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if f.order == "" {
				f.order = "status.vm, status.time"
			}
			if len(args) > 0 {
				only := "status.vm = " + quote(args[0])
				if f.filter != "" {
					only += " AND (" + f.filter + ")"
				}
				f.filter = only
			}
			items, _, err := pointKind().all(ctx, c, &v1.ListRequest{Filter: f.filter, OrderBy: f.order}, f.limit)
			if err != nil {
				return err
			}
			return a.printList(pointKind(), items)
		}),
	}
	f.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) showPointCommand() *cobra.Command {
	var picture string
	cmd := &cobra.Command{
		Use: "show POINT", Short: "Show all of a restore point", Args: want("POINT"), ValidArgsFunction: a.firstArg(pointKind()),
		Example: "  drover backup show main/web\n  drover backup show main/web --screenshot boot.png",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			p, err := c.Backup.Get(ctx, &v1.GetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			if picture != "" {
				png := p.GetStatus().GetTest().GetScreenshot()
				if len(png) == 0 {
					return fmt.Errorf("point %q: no screenshot is kept with it; make one by `drover backup test %s`", args[0], args[0])
				}
				if err := os.WriteFile(picture, png, 0o644); err != nil {
					return err
				}
				a.say("screenshot of its last boot test: %s", picture)
			}
			if t := p.GetStatus().GetTest(); t != nil {
				t.Screenshot = nil
			}
			return a.printOne(pointKind(), p)
		}),
	}
	cmd.Flags().StringVar(&picture, "screenshot", "", "write the screenshot of its last boot test to a PNG `file`")
	a.outputFlag(cmd)
	return cmd
}

func (a *App) backupKeepCommand() *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use: "keep POINT…", Short: "Never prune restore points, or let them be pruned again", Args: want("POINT", "[POINT…]"), ValidArgsFunction: a.everyArg(pointKind()),
		Example: "  drover backup keep main/web\n  drover backup keep main/0123… --off",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return eachName(args, func(name string) error {
				p, err := c.Backup.Update(ctx, &v1.UpdateRestorePointRequest{
					Point: &v1.RestorePoint{Meta: &v1.Meta{Name: name}, Spec: &v1.RestorePointSpec{Keep: !off}}, Mask: maskOf("spec.keep"),
				})
				if err != nil {
					return err
				}
				if off {
					return a.printDone(pointKind(), p, "is pruned when its time comes")
				}
				return a.printDone(pointKind(), p, "is kept")
			})
		}),
	}
	cmd.Flags().BoolVar(&off, "off", false, "let it be pruned again")
	a.outputFlag(cmd)
	return cmd
}

func (a *App) backupCopyCommand() *cobra.Command {
	var w waitFlags
	req := &v1.CopyPointsRequest{}
	var limit bytesFlag
	cmd := &cobra.Command{
		Use: "copy [POINT…] --to REPOSITORY", Short: "Copy restore points to another repository; only what it lacks is sent", Args: want("[POINT…]"), ValidArgsFunction: a.everyArg(pointKind()),
		Example: "  drover backup copy main/web --to offsite\n  drover backup copy --from main --vm web --to offsite --bandwidth 20M",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if req.To == "" || len(args) == 0 && req.From == "" {
				return usage("backup copy: name points, or a repository by --from, and where to by --to")
			}
			req.Points, req.BandwidthLimit = args, int64(limit)
			t, err := c.Backup.Copy(ctx, req)
			if err != nil {
				return err
			}
			return a.taskDone(ctx, c, t, w, "copied to "+req.To)
		}),
	}
	fs := cmd.Flags()
	fs.StringVar(&req.To, "to", "", "repository to copy to")
	fs.StringVar(&req.From, "from", "", "copy all points of this repository")
	fs.StringVar(&req.Vm, "vm", "", "with --from: only points of this VM")
	fs.Var(&limit, "bandwidth", "most bytes a second (default: no limit)")
	for _, n := range []string{"to", "from"} {
		register(cmd, n, a.names(repositoryKind(), ""))
	}
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

// checkFlags are what a boot test demands.
type checkFlags struct {
	agent   bool
	port    int32
	exec    []string
	console string
	timeout time.Duration
}

func (f *checkFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVar(&f.agent, "agent", false, "the guest agent must answer")
	fs.Int32Var(&f.port, "port", 0, "this TCP port must answer")
	fs.StringArrayVar(&f.exec, "exec", nil, "this program must exit with 0 in the guest: the program, then its arguments (repeat the flag)")
	fs.StringVar(&f.console, "console", "", "this text must appear on the serial console")
	fs.DurationVar(&f.timeout, "boot-timeout", 0, "how long the guest may take (default 5m)")
}

func (f *checkFlags) check() *v1.BootCheck {
	c := &v1.BootCheck{Agent: f.agent, TcpPort: f.port, Exec: f.exec, Console: f.console}
	if f.timeout != 0 {
		c.Timeout = durationpb.New(f.timeout)
	}
	return c
}

func (a *App) backupTestCommand() *cobra.Command {
	var w waitFlags
	var f checkFlags
	var host string
	cmd := &cobra.Command{
		Use: "test POINT", Short: "Start a restore point where nobody sees it, check it, keep the result and a screenshot", Args: want("POINT"), ValidArgsFunction: a.firstArg(pointKind()),
		Long:    "Start a restore point in a throwaway VM on an isolated network, straight from the repository. Without a check it passes when the guest agent answers, or when it runs to the end of the time.",
		Example: "  drover backup test web --agent\n  drover backup test main/web --port 80 --console 'login:'\n  drover backup test db --exec /usr/bin/pg_isready",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := c.Backup.Test(ctx, &v1.TestPointRequest{Point: args[0], Check: f.check(), Host: host})
			if err != nil {
				return err
			}
			return a.taskDone(ctx, c, t, w, "test passed")
		}),
	}
	f.add(cmd)
	cmd.Flags().StringVar(&host, "host", "", "host to run it on (default: any with room)")
	register(cmd, "host", a.names(hostKind(), ""))
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) backupFilesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "files POINT [VOLUME:/PATH]", Aliases: []string{"browse"}, Short: "List the volumes, or a directory, in a restore point", Args: want("POINT", "[PATH]"), ValidArgsFunction: a.firstArg(pointKind()),
		Long:    "Look into a restore point. Its file systems (ext4, xfs, btrfs, NTFS, FAT, also on LVM) are opened read-only in a small helper VM, never by the host's kernel.",
		Example: "  drover backup files web\n  drover backup files web root.1:/etc",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			req := &v1.BrowseRequest{Point: args[0]}
			if len(args) > 1 {
				req.Path = args[1]
			}
			l, err := c.Backup.Browse(ctx, req)
			for more := l; err == nil && more.GetMore(); {
				req.After = more.GetEntries()[len(more.GetEntries())-1].GetName()
				if more, err = c.Backup.Browse(ctx, req); err == nil {
					l.Entries = append(l.Entries, more.GetEntries()...)
				}
			}
			if err != nil {
				return err
			}
			return a.printEntries(l)
		}),
	}
	a.outputFlag(cmd)
	return cmd
}

// printEntries shows a directory or the volumes of a point.
func (a *App) printEntries(l *v1.BrowseResponse) error {
	if !a.people() {
		return a.printMessage(l)
	}
	t := &table.Table{Headers: []string{"MODE", "OWNER", "SIZE", "MODIFIED", "NAME"}}
	if len(l.GetEntries()) > 0 && l.GetEntries()[0].GetType() == "volume" {
		t = &table.Table{Headers: []string{"VOLUME", "FILE SYSTEM", "SIZE", "LABEL", "PLACE", "NOTE"}}
	}
	for _, e := range l.GetEntries() {
		if e.GetType() == "volume" {
			t.Add(table.Text(e.GetName()), table.Text(e.GetFilesystem()), table.Text(unit.Size(e.GetSize())), table.Text(e.GetLabel()), table.Text(e.GetPlace()), table.Text(e.GetNote()))
			continue
		}
		name := e.GetName()
		switch e.GetType() {
		case "directory":
			name += "/"
		case "symlink":
			name += " -> " + e.GetTarget()
		}
		mode := os.FileMode(e.GetMode() & 0o777)
		switch e.GetType() {
		case "directory":
			mode |= os.ModeDir
		case "symlink":
			mode |= os.ModeSymlink
		}
		t.Add(table.Text(mode.String()), table.Text(fmt.Sprintf("%d:%d", e.GetUid(), e.GetGid())), table.Text(unit.Size(e.GetSize())),
			table.Text(e.GetModified().AsTime().Local().Format(time.DateTime)), table.Text(name))
	}
	return t.Write(a.Out, a.coloured(a.Out))
}

func (a *App) backupGetCommand() *cobra.Command {
	var out string
	var asTar bool
	cmd := &cobra.Command{
		Use: "get POINT VOLUME:/PATH…", Short: "Fetch files and directories out of a restore point", Args: want("POINT", "PATH", "[PATH…]"), ValidArgsFunction: a.firstArg(pointKind()),
		Long:    "Fetch files and directories out of a restore point, into a directory. Nothing that the guest named can be written outside it. With --tar the archive itself is written, with owners and all.",
		Example: "  drover backup get web root.1:/etc/hosts\n  drover backup get web root.1:/var/www --output restored\n  drover backup get web root.1:/home --tar > home.tar",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			s, err := c.Backup.Download(ctx, &v1.DownloadRequest{Point: args[0], Paths: args[1:]})
			if err != nil {
				return err
			}
			defer s.Close()
			p, err := files.ParsePath(args[1])
			if err != nil {
				return usage("%v", err)
			}
			return a.receiveFiles(ctx, &download{stream: s}, out, asTar, filepath.Base(p.Path))
		}),
	}
	cmd.Flags().StringVar(&out, "output", ".", "`directory` to write to")
	cmd.Flags().BoolVar(&asTar, "tar", false, "write a tar archive to standard output")
	return cmd
}

func (a *App) backupStatusCommand() *cobra.Command {
	var filter string
	cmd := &cobra.Command{
		Use: "status [VM]", Short: "How well each VM is protected", Args: want("[VM]"), ValidArgsFunction: a.firstArg(vmKind()),
		Example: "  drover backup status\n  drover backup status --filter 'meta.labels.env = \"prod\"' -o json",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if len(args) > 0 {
				filter = "meta.name = " + quote(args[0])
			}
			l, err := c.Backup.Protection(ctx, &v1.ListProtectionRequest{Filter: filter})
			if err != nil {
				return err
			}
			if !a.people() {
				return a.printMessage(l)
			}
			t := &table.Table{Headers: []string{"VM", "STATE", "POLICY", "LAST POINT", "NEXT RUN", "POINTS", "TEST", "MESSAGE"}}
			for _, p := range l.GetVms() {
				next, test := "-", "-"
				if n := p.GetNextRun(); n != nil {
					if next = "now"; n.AsTime().After(a.now()) {
						next = "in " + unit.Span(n.AsTime().Sub(a.now()))
					}
				}
				if p.GetLastTest() != nil {
					if test = "failed"; p.GetLastTestPassed() {
						test = "passed"
					}
				}
				t.Add(table.Text(p.GetVm()), protectionCell(p), table.Text(p.GetPolicy()), table.Text(unit.Age(a.now(), p.GetLastPoint())), table.Text(next),
					table.Text(fmt.Sprint(p.GetPoints())), table.Text(test), table.Text(strings.Trim(p.GetMessage()+"; "+p.GetLastError(), "; ")))
			}
			switch {
			case len(l.GetVms()) > 0:
			case len(args) > 0:
				return &failure{code: exitNotFound, err: fmt.Errorf("there is no VM %q", args[0]), hint: "see: drover vm list"}
			default:
				a.say("no VMs")
				return nil
			}
			return t.Write(a.Out, a.coloured(a.Out))
		}),
	}
	cmd.Flags().StringVar(&filter, "filter", "", "only VMs that match")
	a.outputFlag(cmd)
	return cmd
}

func protectionCell(p *v1.Protection) table.Cell {
	c := table.Cell{Text: strings.ReplaceAll(unit.Word(p.GetState()), "-", " ")}
	switch p.GetState() {
	case v1.ProtectionState_PROTECTION_STATE_PROTECTED:
		c.Colour = table.Green
	case v1.ProtectionState_PROTECTION_STATE_LATE:
		c.Colour = table.Yellow
	case v1.ProtectionState_PROTECTION_STATE_AT_RISK:
		c.Colour = table.Red
	default:
		c.Colour = table.Dim
	}
	return c
}
