package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"drover/internal/backup"
	"drover/internal/backup/policy"
	"drover/internal/chunkstore"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"
	"drover/internal/resource"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"
	"sigs.k8s.io/yaml"
)

const directHelp = `LOCATION is a directory (with a slash in it, such as /backup or ./repo) or s3://BUCKET/PREFIX. No manager is asked. The passphrase or recovery key comes from
--passphrase-file, $DROVER_PASSPHRASE, or the terminal.`

// directCommands are the commands that open a repository by its location.
func (a *App) directCommands() []*cobra.Command {
	return []*cobra.Command{a.directInit(), a.directPoints(), a.directBackup(), a.directRestore(), a.directForget(), a.directCopy(), a.directRecompress(), a.directPassphrase(), a.directFiles(), a.directGet(), a.directNBD()}
}

func (a *App) directInit() *cobra.Command {
	var f direct
	var o chunkstore.CreateOptions
	var blockSize bytesFlag
	cmd := &cobra.Command{
		Use: "init LOCATION", Short: "Make a repository, without a manager", Long: "Make a repository in an empty place. " + directHelp, Args: want("LOCATION"),
		Example: "  drover repository init /backup\n  drover repository init s3://backups/drover --s3-endpoint s3.example:9000 --s3-access-key drover",
		RunE: a.offline(func(ctx context.Context, _ *cobra.Command, args []string) error {
			st, err := f.store(a, args[0])
			if err != nil {
				return err
			}
			if !o.Unencrypted {
				if o.Passphrase, err = f.pass.read(a, true); err != nil {
					return err
				}
				if o.Passphrase != "" {
					if err := resource.CheckPassphrase(args[0], o.Passphrase); err != nil {
						return err
					}
				}
			}
			o.BlockSize = int(blockSize)
			o.Open = f.options(a, false)
			if err := vacant(args[0]); err != nil {
				return err
			}
			r, key, err := chunkstore.Create(ctx, st, o)
			if err != nil {
				return directError(err)
			}
			if err := r.Close(); err != nil {
				return err
			}
			if key != "" {
				fmt.Fprintf(a.Out, "Recovery key (shown once, opens the repository anywhere):\n\n  %s\n\n", key)
			}
			_, err = fmt.Fprintf(a.Out, "repository %s made in %s\n", r.ID(), st)
			return err
		}),
	}
	f.add(cmd)
	cmd.Flags().Var(&blockSize, "block-size", "size of blocks (default 64K)")
	cmd.Flags().BoolVar(&o.Unencrypted, "unencrypted", false, "whoever has the storage can read it")
	cmd.Flags().BoolVar(&o.Parity, "parity", false, "Reed-Solomon shards beside each pack (a tenth more): repairs rot")
	return cmd
}

// offline makes a command that needs no manager.
func (a *App) offline(f func(context.Context, *cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error { return f(cmd.Context(), cmd, args) }
}

// withDirect opens a repository for as long as do takes.
func (f *direct) withDirect(ctx context.Context, a *App, location string, readOnly bool, do func(*chunkstore.Repository, *backup.Local) error) error {
	spareMemory() // blocks make no garbage: what collecting early costs is nothing beside them
	r, err := f.open(ctx, a, location, readOnly)
	if err != nil {
		return err
	}
	return errors.Join(directError(do(r, backup.NewLocal(r))), r.Close())
}

func (a *App) directPoints() *cobra.Command {
	var f direct
	cmd := &cobra.Command{
		Use: "points LOCATION [VM|POINT]", Short: "List the restore points in a repository, without a manager", Args: want("LOCATION", "[VM|POINT]"),
		Long:    "List restore points. With -o yaml or json all of them is printed, definitions of VMs as well. " + directHelp,
		Example: "  drover repository points /backup\n  drover repository points /backup web -o yaml",
		RunE: a.offline(func(ctx context.Context, _ *cobra.Command, args []string) error {
			return f.withDirect(ctx, a, args[0], true, func(_ *chunkstore.Repository, l *backup.Local) error {
				all, err := l.Points(ctx, "")
				if err != nil {
					return err
				}
				if len(args) > 1 {
					if slices.ContainsFunc(all, func(p backup.Point) bool { return p.VM == args[1] }) {
						all = slices.DeleteFunc(all, func(p backup.Point) bool { return p.VM != args[1] })
					} else if p, err := pointOf(ctx, l, args[1]); err != nil {
						return err
					} else {
						all = []backup.Point{p}
					}
				}
				return a.printPoints(all)
			})
		}),
	}
	f.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) printPoints(all []backup.Point) error {
	if !a.people() {
		b, err := json.MarshalIndent(all, "", "  ")
		if err == nil && a.output == "yaml" {
			b, err = yaml.JSONToYAML(b)
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.Out, strings.TrimRight(string(b), "\n"))
		return err
	}
	if len(all) == 0 {
		a.say("no points")
		return nil
	}
	t := &table.Table{Headers: []string{"POINT", "VM", "AGE", "TIME", "CONSISTENCY", "DISKS", "GUEST SEES", "READ", "STORED"}}
	for _, p := range all {
		var disks []string
		for _, d := range p.Disks {
			disks = append(disks, d.Name)
		}
		t.Add(table.Text(p.ID), table.Text(p.VM), table.Text(unit.Age(a.now(), timestamppb.New(p.Time))), table.Text(p.Time.Local().Format(time.DateTime)), table.Text(p.Consistency),
			table.Text(strings.Join(disks, ",")), table.Text(unit.Size(p.Logical)), table.Text(unit.Size(p.Read)), table.Text(unit.Size(p.Added)))
	}
	return t.Write(a.Out, a.coloured(a.Out))
}

// diskFile is one "VM/DISK=FILE" of a backup.
type diskFile struct{ vm, disk, file string }

func parseDiskFile(s string) (diskFile, error) {
	name, file, ok := strings.Cut(s, "=")
	vm, disk, part := strings.Cut(name, "/")
	if !part {
		disk = "disk0"
	}
	if !ok || vm == "" || disk == "" || file == "" {
		return diskFile{}, usage("%q: write VM/DISK=FILE, such as web/root=/dev/vg/web", s)
	}
	return diskFile{vm, disk, file}, nil
}

func (a *App) directBackup() *cobra.Command {
	var f direct
	var full bool
	var changed []string
	var limit bytesFlag
	cmd := &cobra.Command{
		Use: "backup LOCATION VM/DISK=FILE…", Short: "Back up raw disks of any origin, without a manager", Args: want("LOCATION", "VM/DISK=FILE", "[VM/DISK=FILE…]"),
		Long: `Back up raw files or block devices as the disks of VMs, each VM one restore point. Holes are skipped; only what the repository lacks is stored. What else knows which parts
changed since the last point can say so with --changed: a JSON list of {"offset": N, "length": N}; the rest is then not read. Nothing must write to the disks meanwhile: give snapshots. ` + directHelp,
		Example: "  drover repository backup /backup web/root=web.raw web/data=/dev/vg0/web-snap\n  drover repository backup /backup web/root=web.raw --changed web/root=changes.json",
		RunE: a.offline(func(ctx context.Context, _ *cobra.Command, args []string) error {
			var files []diskFile
			for _, s := range args[1:] {
				d, err := parseDiskFile(s)
				if err != nil {
					return err
				}
				files = append(files, d)
			}
			lists := map[string][]backup.Extent{}
			for _, s := range changed {
				d, err := parseDiskFile(s)
				if err != nil {
					return err
				}
				if !slices.ContainsFunc(files, func(x diskFile) bool { return x.vm == d.vm && x.disk == d.disk }) {
					return usage("--changed %q: %s/%s is not backed up here", s, d.vm, d.disk)
				}
				if lists[d.vm+"/"+d.disk], err = readExtents(d.file); err != nil {
					return err
				}
			}
			return f.withDirect(ctx, a, args[0], false, func(r *chunkstore.Repository, l *backup.Local) error {
				var vms []string
				for _, d := range files {
					if !slices.Contains(vms, d.vm) {
						vms = append(vms, d.vm)
					}
				}
				for _, vm := range vms {
					mine := slices.DeleteFunc(slices.Clone(files), func(d diskFile) bool { return d.vm != vm })
					if err := a.backupFiles(ctx, r, l, vm, mine, lists, full, int64(limit)); err != nil {
						return fmt.Errorf("back up %s: %w", vm, err)
					}
				}
				return nil
			})
		}),
	}
	f.add(cmd)
	fs := cmd.Flags()
	fs.BoolVar(&full, "full-read", false, "read all, whatever --changed says")
	fs.StringArrayVar(&changed, "changed", nil, "what changed since the last point, `VM/DISK=FILE.json` (repeatable)")
	fs.Var(&limit, "bandwidth", "most bytes a second that are read (default: no limit)")
	return cmd
}

func readExtents(path string) ([]backup.Extent, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list []struct {
		Offset int64 `json:"offset"`
		Length int64 `json:"length"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%s: %w; it must be a JSON list of {\"offset\": N, \"length\": N}", path, err)
	}
	out := []backup.Extent{} // not nil: an empty list says that nothing changed
	end := int64(0)
	for _, e := range list {
		if e.Offset < end || e.Length < 0 || e.Offset+e.Length < e.Offset {
			return nil, fmt.Errorf("%s: the extent at %d overlaps the one before it, or is negative", path, e.Offset)
		}
		end = e.Offset + e.Length
		out = append(out, backup.Extent{Offset: e.Offset, Length: e.Length})
	}
	return out, nil
}

// backupFiles makes one point of a VM's disks.
func (a *App) backupFiles(ctx context.Context, r *chunkstore.Repository, l *backup.Local, vm string, files []diskFile, changed map[string][]backup.Extent, full bool, limit int64) (err error) {
	began := a.now()
	parent, err := pointOf(ctx, l, vm)
	if err != nil {
		parent = backup.Point{}
	}
	o := backup.SessionOptions{Purpose: "backup of " + vm, VMUID: "files-" + vm}
	if parent.ID != "" {
		o.Pins = []string{parent.ID}
	}
	s, err := l.Begin(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		// After an error the session's end fails for the same reason.
		if cerr := s.Close(); err == nil {
			err = cerr
		}
	}()
	p := backup.Point{VM: vm, VMUID: o.VMUID, Time: began, Consistency: "off", Parent: parent.ID}
	bar := a.progress("back up " + vm)
	defer bar.end()
	for _, d := range files {
		has := slices.ContainsFunc(parent.Disks, func(x backup.Disk) bool { return x.Name == d.disk })
		list, told := changed[vm+"/"+d.disk]
		do := backup.DiskOptions{Name: d.disk, Incremental: told && has && !full}
		if st, err := os.Stat(d.file); err == nil && !st.Mode().IsRegular() && st.Mode().Type() != fs.ModeDevice {
			return usage("%s is no raw disk: give a file or a block device", d.file)
		}
		src, err := backup.OpenFile(d.file)
		if err != nil {
			return err
		}
		do.Size = src.Size()
		if has {
			do.ParentPoint, do.ParentDisk = parent.ID, d.disk
		}
		so := backup.StoreOptions{BlockSize: r.BlockSize(), Incremental: do.Incremental, Progress: func(x backup.Progress) {
			bar.set(d.disk, float64(x.Position)/float64(max(1, x.Size)))
		}}
		if do.Incremental {
			so.Dirty = backup.Each(list)
		}
		if limit > 0 {
			so.Limit = backup.NewLimiter(a.Clock, limit)
		}
		res, st, err := a.storeFile(ctx, s, src, do, so)
		if err := errors.Join(err, src.Close()); err != nil {
			return fmt.Errorf("%s: %w", d.file, err)
		}
		p.Disks = append(p.Disks, backup.Disk{Name: d.disk, Size: do.Size})
		p.Logical += do.Size
		p.Read += st.Read
		p.Lacked += res.Stored
		p.Added += res.Packed
		if !do.Incremental && has {
			p.Full = "all was read: nothing said what changed"
		}
	}
	if p, err = s.Commit(ctx, p); err != nil {
		return err
	}
	bar.end()
	_, err = fmt.Fprintf(a.Out, "%s  %s: %s read, %s new, %s stored in %v\n", p.ID, vm, unit.Size(p.Read), unit.Size(p.Lacked), unit.Size(p.Added), a.now().Sub(began).Round(time.Millisecond))
	return err
}

func (a *App) storeFile(ctx context.Context, s backup.Session, src backup.Source, do backup.DiskOptions, so backup.StoreOptions) (backup.DiskResult, backup.StoreResult, error) {
	w, err := s.Disk(ctx, do)
	if err != nil {
		return backup.DiskResult{}, backup.StoreResult{}, err
	}
	st, err := backup.Store(ctx, w, src, so)
	if err != nil {
		return backup.DiskResult{}, st, err
	}
	res, err := w.Finish(ctx)
	return res, st, err
}

func (a *App) directRestore() *cobra.Command {
	var f direct
	var to string
	var disks []string
	var verify bool
	cmd := &cobra.Command{
		Use: "restore LOCATION POINT", Short: "Write the disks of a restore point to raw files, without a manager", Args: want("LOCATION", "POINT"),
		Long:    "Write the disks of a point to a directory as DISK.raw, with holes, and the VM's definition as VM.json. POINT is an id, the beginning of one, or a VM's name for its newest. " + directHelp,
		Example: "  drover repository restore /backup web --to /var/tmp/web\n  drover repository restore s3://backups/drover web --disk root --to . --verify",
		RunE: a.offline(func(ctx context.Context, _ *cobra.Command, args []string) error {
			return f.withDirect(ctx, a, args[0], true, func(_ *chunkstore.Repository, l *backup.Local) error {
				p, err := pointOf(ctx, l, args[1])
				if err != nil {
					return err
				}
				for _, d := range disks {
					if !slices.ContainsFunc(p.Disks, func(x backup.Disk) bool { return x.Name == d }) {
						return &failure{code: exitNotFound, err: fmt.Errorf("point %s of %s has no disk %q", p.ID, p.VM, d)}
					}
				}
				return a.restoreFiles(ctx, l, p, disks, to, verify)
			})
		}),
	}
	f.add(cmd)
	cmd.Flags().StringVar(&to, "to", ".", "`directory` to write to")
	cmd.Flags().StringSliceVar(&disks, "disk", nil, "only this disk (repeatable)")
	cmd.Flags().BoolVar(&verify, "verify", false, "read what was written again and compare it")
	return cmd
}

func (a *App) restoreFiles(ctx context.Context, l *backup.Local, p backup.Point, disks []string, dir string, verify bool) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r, err := l.OpenPoint(ctx, p.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	bar := a.progress("restore " + p.VM)
	defer bar.end()
	for _, d := range p.Disks {
		if len(disks) > 0 && !slices.Contains(disks, d.Name) {
			continue
		}
		began := a.now()
		path := filepath.Join(dir, filepath.Base(d.Name)+".raw")
		written, err := restoreFile(ctx, r, d, path, backup.RestoreOptions{Blank: true, Verify: verify, Progress: func(x backup.Progress) {
			bar.set(d.Name, float64(x.Position)/float64(max(1, x.Size)))
		}})
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.Name, err)
		}
		fmt.Fprintf(a.Out, "%s: %s, %s of data in %v\n", path, unit.Size(d.Size), unit.Size(written), a.now().Sub(began).Round(time.Millisecond))
	}
	p = r.Point()
	if len(p.Definition) > 0 {
		path := filepath.Join(dir, filepath.Base(p.VM)+".json")
		if err := os.WriteFile(path, p.Definition, 0o600); err != nil {
			return err
		}
		fmt.Fprintf(a.Out, "%s: the VM's definition\n", path)
	}
	for name, b := range p.Files {
		path := filepath.Join(dir, filepath.Base(p.VM)+"."+filepath.Base(name))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return err
		}
		fmt.Fprintf(a.Out, "%s\n", path)
	}
	return nil
}

func restoreFile(ctx context.Context, r backup.PointReader, d backup.Disk, path string, o backup.RestoreOptions) (written int64, err error) {
	disk, err := r.Disk(ctx, d.Name)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	sink, err := backup.CreateFile(path, d.Size)
	if errors.Is(err, fs.ErrExist) {
		return 0, &failure{code: exitConflict, err: fmt.Errorf("%s is there already", path), hint: "move it away, or give another directory by --to; nothing is written over"}
	}
	if err != nil {
		return 0, err
	}
	res, err := backup.Restore(ctx, disk, sink, o)
	if err := errors.Join(err, sink.Close()); err != nil {
		// What is there is not the disk; other parts of a damaged one are read over NBD.
		return 0, errors.Join(err, os.Remove(path))
	}
	return res.Written, nil
}

func (a *App) directForget() *cobra.Command {
	var f direct
	var keep, vm string
	var dry bool
	cmd := &cobra.Command{
		Use: "forget LOCATION [POINT…]", Short: "Delete restore points by id or by a retention, without a manager", Args: want("LOCATION", "[POINT…]"),
		Long:    "Delete points. Their space is reclaimed by \"drover repository collect LOCATION\". With --keep those go that no rule keeps, for each VM by itself. " + directHelp,
		Example: "  drover repository forget /backup 0123456789ab\n  drover repository forget /backup --keep daily=7,weekly=4 --dry-run",
		RunE: a.offline(func(ctx context.Context, _ *cobra.Command, args []string) error {
			if keep == "" && len(args) == 1 || keep != "" && len(args) > 1 {
				return usage("repository forget: name points, or give --keep RETENTION")
			}
			return f.withDirect(ctx, a, args[0], dry, func(r *chunkstore.Repository, l *backup.Local) error {
				var gone []backup.Point
				for _, name := range args[1:] {
					p, err := pointOf(ctx, l, name)
					if err != nil {
						return err
					}
					if p.VM == name || p.VMUID == name {
						return usage("%q is a VM; name points by id, or give --keep RETENTION --vm %s", name, name)
					}
					gone = append(gone, p)
				}
				if keep != "" {
					var err error
					if gone, err = a.retain(ctx, l, keep, vm); err != nil {
						return err
					}
				}
				var ids []string
				for _, p := range gone {
					ids = append(ids, p.ID)
				}
				verb := "forgotten"
				if dry {
					verb = "would be forgotten"
				} else if len(ids) > 0 {
					if err := l.Forget(ctx, "by hand", ids...); err != nil {
						return err
					}
				}
				for _, p := range gone {
					fmt.Fprintf(a.Out, "%s  %s of %s %s\n", p.ID, p.VM, p.Time.Local().Format(time.DateTime), verb)
				}
				return nil
			})
		}),
	}
	f.add(cmd)
	cmd.Flags().StringVar(&keep, "keep", "", "retention, such as daily=7,weekly=4")
	cmd.Flags().StringVar(&vm, "vm", "", "with --keep: only points of this VM")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would go")
	return cmd
}

// retain finds the points that a retention does not keep, VM by VM.
func (a *App) retain(ctx context.Context, l *backup.Local, keep, vm string) ([]backup.Point, error) {
	rule, err := parseRetention("keep", keep)
	if err != nil {
		return nil, err
	}
	all, err := l.Points(ctx, "")
	if err != nil {
		return nil, err
	}
	byVM := map[string][]policy.Point{}
	known := map[string]backup.Point{}
	for _, p := range all {
		if vm == "" || p.VM == vm {
			known[p.ID] = p
			byVM[p.VMUID] = append(byVM[p.VMUID], policy.Point{ID: p.ID, Time: p.Time})
		}
	}
	kept := policy.Retention{
		Last: int(rule.GetLast()), Hourly: int(rule.GetHourly()), Daily: int(rule.GetDaily()), Weekly: int(rule.GetWeekly()), Monthly: int(rule.GetMonthly()),
		Yearly: int(rule.GetYearly()), Within: rule.GetWithin().AsDuration(),
	}
	var gone []backup.Point
	for _, points := range byVM {
		for _, v := range kept.Choose(points, a.now().Local(), true) {
			if !v.Kept {
				gone = append(gone, known[v.Point.ID])
			}
		}
	}
	slices.SortFunc(gone, func(x, y backup.Point) int { return x.Time.Compare(y.Time) })
	return gone, nil
}
