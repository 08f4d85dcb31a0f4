package cli

import (
	"context"
	"fmt"
	"os"
	"strings"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/unit"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

const repositoryLong = `A repository keeps restore points of VMs: their disks cut into blocks, each distinct block stored once, compressed and encrypted. It lies in a directory (also on NFS)
or in an S3 bucket, and is served by the manager or by a host; hosts send it only blocks that it lacks.

The commands below "open" work on a repository directly, by its location, without a manager: that is how everything is restored when all else is lost.`

func (a *App) repositoryCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "repository", Aliases: []string{"repo"}, Short: "Repositories: deduplicating storage of restore points", Long: repositoryLong,
		Example: "  drover repository create main --location /backup\n  drover repository list\n  drover repository open /backup points"}
	cmd.AddCommand(a.repositoryCreateCommand(), a.repositorySetCommand(), a.listCommand(repositoryKind(), "repository"), a.showCommand(repositoryKind()),
		a.rmCommand(repositoryKind(), "Let go of repositories; what they hold stays where it is", "also one that policies use"),
		a.repositoryCollectCommand(), a.repositoryScrubCommand(), a.repositoryRekeyCommand(), a.repositoryServeCommand())
	cmd.AddCommand(a.directCommands()...)
	return cmd
}

// repositoryFlags are those of create and set. What can't change is only there for create.
type repositoryFlags struct {
	description, host, location, collect, scrub string
	quota, bandwidth                            bytesFlag
	parallel                                    int32
	windows, mirrors                            []string
	readOnly                                    bool
	scrubShare                                  float64
	s3                                          s3Flags
	labels                                      labelFlags
}

// s3Flags say how to reach a bucket.
type s3Flags struct {
	endpoint, region, accessKey, secretFile, caFile, lock string
	insecure                                              bool
}

const envS3Secret = "DROVER_S3_SECRET_KEY"

func (f *s3Flags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.endpoint, "s3-endpoint", "", "S3 server, HOST:PORT (default AWS)")
	fs.StringVar(&f.region, "s3-region", "", "region of the bucket")
	fs.StringVar(&f.accessKey, "s3-access-key", "", "access key")
	fs.StringVar(&f.secretFile, "s3-secret-key-file", "", "`file` with the secret key (default $"+envS3Secret+")")
	fs.StringVar(&f.caFile, "s3-ca", "", "PEM `file` of the CA of the server's certificate")
	fs.BoolVar(&f.insecure, "s3-insecure", false, "plain HTTP")
	fs.StringVar(&f.lock, "object-lock", "", "nobody can delete objects for this time, such as 30d (needs a bucket with Object Lock)")
}

// spec reads the files that the flags name. It is nil if no flag is given.
func (f *s3Flags) spec(a *App) (*v1.S3Spec, error) {
	if *f == (s3Flags{}) && a.Getenv(envS3Secret) == "" {
		return nil, nil
	}
	s := &v1.S3Spec{Endpoint: f.endpoint, Region: f.region, AccessKey: f.accessKey, Insecure: f.insecure, SecretKey: a.Getenv(envS3Secret)}
	if f.secretFile != "" {
		b, err := os.ReadFile(f.secretFile)
		if err != nil {
			return nil, err
		}
		s.SecretKey = strings.TrimSpace(string(b))
	}
	if f.caFile != "" {
		b, err := os.ReadFile(f.caFile)
		if err != nil {
			return nil, err
		}
		s.Ca = string(b)
	}
	if f.lock != "" {
		d, err := unit.ParseSpan(f.lock)
		if err != nil {
			return nil, usage("--object-lock: %v", err)
		}
		s.ObjectLock = durationpb.New(d)
	}
	return s, nil
}

func (f *repositoryFlags) add(a *App, cmd *cobra.Command, change bool) {
	fs := cmd.Flags()
	fs.StringVar(&f.description, "description", "", "a line for people")
	fs.Var(&f.quota, "quota", "most that it may take, such as 2T (default: as much as there is room)")
	fs.Var(&f.bandwidth, "bandwidth", "most bytes a second, such as 50M (default: no limit)")
	fs.StringArrayVar(&f.windows, "bandwidth-window", nil, "another limit at some times, `WINDOW=SIZE`, such as \"mon..fri 08:00-18:00=10M\" (repeatable)")
	fs.StringVar(&f.collect, "collect", "", "when space is reclaimed (default \"daily 05:00\")")
	fs.StringVar(&f.scrub, "scrub", "", "when packs are read and checked (default \"sat 06:00\")")
	fs.Float64Var(&f.scrubShare, "scrub-share", 0, "share of packs that one scrub reads, 0 to 1 (default 0.25)")
	fs.Int32Var(&f.parallel, "parallel", 0, "backups into it at a time (default 4)")
	fs.StringSliceVar(&f.mirrors, "mirror", nil, "repository that damaged blocks are repaired from (repeatable)")
	fs.BoolVar(&f.readOnly, "read-only", false, "take no new points")
	register(cmd, "mirror", a.names(repositoryKind(), ""))
	f.s3.add(cmd)
	f.labels.add(cmd, change)
	a.outputFlag(cmd)
}

func (f *repositoryFlags) spec(a *App) (*v1.RepositorySpec, error) {
	s3, err := f.s3.spec(a)
	if err != nil {
		return nil, err
	}
	s := &v1.RepositorySpec{
		Description: f.description, Host: f.host, Location: f.location, S3: s3, QuotaBytes: int64(f.quota), BandwidthLimit: int64(f.bandwidth), CollectSchedule: f.collect,
		ScrubSchedule: f.scrub, ScrubShare: f.scrubShare, Parallel: f.parallel, ReadOnly: f.readOnly, Mirrors: f.mirrors,
	}
	for _, w := range f.windows {
		when, size, ok := strings.Cut(w, "=")
		n, err := unit.ParseSize(size)
		if !ok || err != nil {
			return nil, usage("--bandwidth-window %q: write WINDOW=SIZE, such as \"mon..fri 08:00-18:00=10M\"", w)
		}
		s.BandwidthWindows = append(s.BandwidthWindows, &v1.BandwidthWindow{Window: strings.TrimSpace(when), BandwidthLimit: n})
	}
	return s, nil
}

// passphraseFlags say where a passphrase comes from.
type passphraseFlags struct{ file string }

const envPassphrase = "DROVER_PASSPHRASE"

func (f *passphraseFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "passphrase-file", "", "`file` with the passphrase or recovery key in its first line (default $"+envPassphrase+", else asked for)")
}

// read gets the passphrase; ask says whether a terminal is asked.
func (f *passphraseFlags) read(a *App, ask bool) (string, error) {
	if f.file != "" {
		b, err := os.ReadFile(f.file)
		if err != nil {
			return "", err
		}
		line, _, _ := strings.Cut(string(b), "\n")
		return strings.TrimRight(line, "\r"), nil
	}
	if p := a.Getenv(envPassphrase); p != "" || !ask {
		return p, nil
	}
	if _, ok := terminal(a.In); !ok {
		return "", nil
	}
	return a.secret("Passphrase (or recovery key; empty for none)")
}

func (a *App) repositoryCreateCommand() *cobra.Command {
	var f repositoryFlags
	var p passphraseFlags
	var format v1.RepositoryFormat
	var blockSize bytesFlag
	var attach bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a repository, or attach one that is there", Args: want("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Make a repository at a location that is empty, or use what is there with --attach. It is encrypted unless --unencrypted is given. The recovery key that is printed opens
it anywhere, with the passphrase or without one; it is shown once. Keep it where no machine of this installation can reach it.`,
		Example: `  drover repository create main --location /backup
  drover repository create east --host h3 --location /mnt/nfs/drover --parity
  drover repository create offsite --location s3://backups/drover --s3-endpoint s3.example:9000 --s3-access-key drover --object-lock 30d
  drover repository create old --location /mnt/disk --attach --passphrase-file key`,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if f.location == "" {
				return usage("repository create: say where it lies: --location /DIRECTORY or --location s3://BUCKET/PREFIX")
			}
			spec, err := f.spec(a)
			if err != nil {
				return err
			}
			m, err := f.labels.labels(nil)
			if err != nil {
				return err
			}
			pass, err := p.read(a, !format.Unencrypted)
			if err != nil {
				return err
			}
			format.BlockSize = int32(blockSize)
			spec.Format = &format
			r, err := c.Repository.Create(ctx, &v1.CreateRepositoryRequest{
				Repository: &v1.Repository{Meta: &v1.Meta{Name: args[0], Labels: m}, Spec: spec}, Passphrase: pass, Attach: attach,
			})
			if err != nil {
				return err
			}
			if key := r.GetRecoveryKey(); key != "" && a.people() {
				fmt.Fprintf(a.Out, "Recovery key (shown once, opens the repository anywhere):\n\n  %s\n\n", key)
			} else if key != "" {
				a.say("Recovery key (shown once): %s", key)
			}
			if attach {
				return a.printDone(repositoryKind(), r.GetRepository(), "attached")
			}
			return a.printDone(repositoryKind(), r.GetRepository(), "created")
		}),
	}
	f.add(a, cmd, false)
	p.add(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.host, "host", "", "host that serves it (default the manager)")
	fs.StringVar(&f.location, "location", "", "directory on the machine that serves it, or s3://BUCKET/PREFIX")
	fs.BoolVar(&attach, "attach", false, "use the repository that is there")
	fs.Var(&blockSize, "block-size", "size of blocks (default 64K)")
	fs.BoolVar(&format.Unencrypted, "unencrypted", false, "whoever has the storage can read it")
	fs.BoolVar(&format.Parity, "parity", false, "Reed-Solomon shards beside each pack (a tenth more): repairs rot")
	fs.BoolVar(&format.Sha256, "sha256", false, "name blocks by HMAC-SHA-256 in place of BLAKE3 (slower)")
	register(cmd, "host", a.names(hostKind(), ""))
	return cmd
}

func (a *App) repositorySetCommand() *cobra.Command {
	var f repositoryFlags
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Change a repository", Args: want("NAME"), ValidArgsFunction: a.firstArg(repositoryKind()),
		Example: "  drover repository set main --bandwidth 50M --bandwidth-window '22:00-06:00=0'\n  drover repository set main --scrub 'daily 03:00' --scrub-share 0.1\n  drover repository set main --mirror offsite",
		RunE: a.runCmd(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			old, err := c.Repository.Get(ctx, &v1.GetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			u := &updater{cmd: cmd}
			for flag, path := range map[string]string{
				"description": "description", "quota": "quota_bytes", "bandwidth": "bandwidth_limit", "bandwidth-window": "bandwidth_windows", "collect": "collect_schedule",
				"scrub": "scrub_schedule", "scrub-share": "scrub_share", "parallel": "parallel", "mirror": "mirrors", "read-only": "read_only",
				"s3-endpoint": "s3.endpoint", "s3-region": "s3.region", "s3-access-key": "s3.access_key", "s3-secret-key-file": "s3.secret_key",
				"s3-ca": "s3.ca", "s3-insecure": "s3.insecure", "object-lock": "s3.object_lock",
			} {
				u.given(flag, "spec."+path)
			}
			m, err := u.label(&f.labels, old.GetMeta().GetLabels())
			if err != nil {
				return err
			}
			spec, err := f.spec(a)
			if err != nil {
				return err
			}
			return u.send(ctx, a, c, repositoryKind(), &v1.Repository{Meta: &v1.Meta{Name: args[0], Labels: m}, Spec: spec})
		}),
	}
	f.add(a, cmd, true)
	return cmd
}

// taskDone waits for a task and prints it.
func (a *App) taskDone(ctx context.Context, c *client.Client, t *v1.Task, w waitFlags, done string) error {
	if !w.on() {
		return a.printDone(taskKind(), t, "begun")
	}
	if err := a.finishTask(ctx, c, t.GetMeta().GetName(), w); err != nil {
		return err
	}
	t, err := c.Task.Get(ctx, &v1.GetRequest{Name: t.GetMeta().GetName()})
	if err != nil {
		return err
	}
	if m := t.GetStatus().GetMessage(); m != "" {
		done += ": " + m
	}
	return a.printDone(taskKind(), t, done)
}

func (a *App) repositoryCollectCommand() *cobra.Command {
	var w waitFlags
	var f direct
	cmd := &cobra.Command{
		Use: "collect NAME|LOCATION", Short: "Reclaim the space of points that were deleted, now", Args: want("NAME|LOCATION"), ValidArgsFunction: a.firstArg(repositoryKind()),
		Long:    "Reclaim space now. Backups and restores go on meanwhile. Space that a running backup or restore may still need is reclaimed by the next collection. A location is opened without a manager.",
		Example: "  drover repository collect main\n  drover repository collect /backup",
		RunE: a.named(f.collect, func(ctx context.Context, c *client.Client, args []string) error {
			t, err := c.Repository.Collect(ctx, &v1.RepositoryActionRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.taskDone(ctx, c, t, w, "collected")
		}),
	}
	f.add(cmd)
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) repositoryScrubCommand() *cobra.Command {
	var w waitFlags
	var f direct
	var share float64
	cmd := &cobra.Command{
		Use: "scrub NAME|LOCATION", Short: "Read packs, check every block, repair what can be repaired", Args: want("NAME|LOCATION"), ValidArgsFunction: a.firstArg(repositoryKind()),
		Long:    "Read and check what is stored. Damage is repaired from parity or from a mirror; what can't be is named, with the restore points that it affects, and the next backup stores the blocks anew. A location is opened without a manager.",
		Example: "  drover repository scrub main\n  drover repository scrub main --share 0.1\n  drover repository scrub /backup",
		RunE: a.named(func(ctx context.Context, a *App, location string) error { return f.scrub(ctx, a, location, share) }, func(ctx context.Context, c *client.Client, args []string) error {
			t, err := c.Repository.Scrub(ctx, &v1.ScrubRepositoryRequest{Name: args[0], Share: share})
			if err != nil {
				return err
			}
			return a.taskDone(ctx, c, t, w, "checked")
		}),
	}
	cmd.Flags().Float64Var(&share, "share", 0, "share of packs to read, those first that were longest not read (default all)")
	f.add(cmd)
	w.add(cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *App) repositoryRekeyCommand() *cobra.Command {
	var p passphraseFlags
	var rotate bool
	cmd := &cobra.Command{
		Use: "rekey NAME", Short: "Change the passphrase, or the key that new data is sealed with", Args: want("NAME"), ValidArgsFunction: a.firstArg(repositoryKind()),
		Long:    "Change the passphrase: the old one no longer opens the repository; no data is written anew. With --rotate-data-key new packs are sealed with a new key; old ones stay readable.",
		Example: "  drover repository rekey main --passphrase-file new\n  drover repository rekey main --rotate-data-key",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			pass := ""
			if p.file != "" || !rotate { // what is in the environment may be the old one
				var err error
				if pass, err = p.read(a, true); err != nil {
					return err
				}
			}
			if pass == "" && !rotate {
				return usage("repository rekey: give a new passphrase, or --rotate-data-key")
			}
			r, err := c.Repository.Rekey(ctx, &v1.RekeyRepositoryRequest{Name: args[0], Passphrase: pass, RotateDataKey: rotate})
			if err != nil {
				return err
			}
			return a.printDone(repositoryKind(), r, "has a new key")
		}),
	}
	p.add(cmd)
	cmd.Flags().BoolVar(&rotate, "rotate-data-key", false, "seal what is written from now on with a new key")
	a.outputFlag(cmd)
	return cmd
}
