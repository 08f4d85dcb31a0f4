package lab

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/unit"
	"drover/internal/osimage"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
)

// demoWAN is what lies between the demo's sites: a line across a continent.
var demoWAN = WAN{Delay: 10 * time.Millisecond}

// demoTimeout bounds one step of the demo. Guests without KVM, on few processors, are slow.
const demoTimeout = 15 * time.Minute

func (c *command) demo() *cobra.Command {
	return &cobra.Command{
		Use: "demo", Short: "Two sites, real VMs, the whole story; leaves it running", Args: cobra.NoArgs,
		Long: `Builds the images that are missing, brings up the lab "demo", runs VMs on both sites, shows what they can, and leaves all
of it running. Run again, it reuses what runs. End it by: drover lab down --name demo`,
		Example: "  drover lab demo",
		RunE: func(cmd *cobra.Command, _ []string) error {
			name := c.name
			if name == "" {
				name = "demo"
			}
			d := &demo{teller: newTeller(cmd.OutOrStdout(), coloured(cmd)), ctx: cmd.Context(), root: c.root, name: name}
			return d.play()
		},
	}
}

// demo is one telling of the story.
type demo struct {
	*teller
	ctx        context.Context
	root, name string
	f          *Fleet
	images     map[string]*osimage.Result
	key        string // file of the private key that lets people in
	public     string
}

func (d *demo) play() error {
	if err := d.check(); err != nil {
		return err
	}
	fmt.Fprintln(d.w, "Drover, shown on this machine alone: two data centers with two hosts each, joined by a WAN.")
	for _, act := range []func() error{d.buildImages, d.up, d.tinies, d.stretched, d.snapshot, d.debians, d.backups} {
		if err := act(); err != nil {
			if d.ctx.Err() != nil {
				return context.Cause(d.ctx)
			}
			return fmt.Errorf("%w\nWhat was made so far stays for a look. Run the demo again to go on, or end it: drover lab down --name %s", err, d.name)
		}
	}
	d.f.Close()
	return d.end()
}

// check finds what is missing before anything is made.
func (d *demo) check() error {
	if err := needRoot(); err != nil {
		return err
	}
	for tool, pkg := range map[string]string{"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "mmdebstrap": "mmdebstrap"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: run scripts/install-deps, or: apt-get install %s", tool, pkg)
		}
	}
	return nil
}

func (d *demo) buildImages() error {
	d.act("Images")
	d.images = map[string]*osimage.Result{}
	for _, b := range []struct {
		name, what string
		build      func(osimage.Options) (*osimage.Result, error)
	}{
		{"tiny", "a test guest: Debian's cloud kernel, busybox, a web server", func(o osimage.Options) (*osimage.Result, error) {
			return osimage.BuildTiny(d.ctx, osimage.Tiny{}, o)
		}},
		{"helper", "the helper VM, which looks into restore points", func(o osimage.Options) (*osimage.Result, error) {
			return osimage.BuildHelper(d.ctx, osimage.Helper{}, o)
		}},
		{"debian-12", "Debian 12 with cloud-init, guest agent and sshd, from packages", func(o osimage.Options) (*osimage.Result, error) {
			return osimage.BuildDebian(d.ctx, osimage.Debian{}, o)
		}},
	} {
		var res *osimage.Result
		took, err := d.step("image "+b.name+", "+b.what, func(note func(string)) (err error) {
			res, err = b.build(osimage.Options{Progress: func(s osimage.Step) { note(fmt.Sprintf("step %d of %d, %s", s.N, s.Of, s.Name)) }})
			return err
		})
		if err != nil {
			return err
		}
		d.images[b.name] = res
		if res.Cached {
			d.say("built earlier: %s, %s", res.Path, unit.Size(res.Size))
			continue
		}
		d.say("%s, %s", res.Path, unit.Size(res.Size))
		d.measured("build image "+b.name, took, "once; later runs reuse it")
	}
	return nil
}

func (d *demo) up() error {
	d.act("Two sites")
	ctx, cancel := context.WithTimeout(d.ctx, demoTimeout)
	defer cancel()
	_, err := Open(d.root, d.name)
	fresh := errors.Is(err, ErrNotUp)
	what := "lab " + d.name + ": switches, routers, WAN, manager, four hosts"
	took, err := d.step(what, func(note func(string)) (err error) {
		d.f, err = UpFleet(ctx, FleetConfig{Config: Config{Name: d.name, Root: d.root, WAN: demoWAN}, Progress: note})
		return err
	})
	if err != nil {
		return err
	}
	if fresh {
		d.measured("network, manager and four hosts, to ready", took, "each host joins with a one-time token, over mutual TLS")
	} else {
		d.say("it stood already")
	}
	h, err := d.f.API.Host.List(ctx, &v1.ListRequest{PageSize: 1})
	if err != nil || len(h.GetHosts()) == 0 {
		return fmt.Errorf("list hosts: %w", err)
	}
	a := h.GetHosts()[0].GetStatus().GetAccelerator()
	d.say("guests run by %s: %s", strings.ToUpper(a.GetName()), a.GetReason())
	for _, name := range []string{"tiny", "debian-12"} {
		_, err := d.f.API.Image.Get(ctx, &v1.GetRequest{Name: name})
		took, perr := d.step("image "+name+" into the library", func(func(string)) error { return d.f.PutImage(ctx, name, d.images[name].Path) })
		if perr != nil {
			return perr
		}
		if connect.CodeOf(err) == connect.CodeNotFound {
			d.measured("import image "+name, took, "uploaded, inspected, converted in a sandbox")
		}
	}
	return d.makeKey()
}

// makeKey makes the key that lets people into the Debian guests.
func (d *demo) makeKey() error {
	d.key = filepath.Join(d.f.Dir(), "demo_key")
	b, err := os.ReadFile(d.key + ".pub")
	if err == nil {
		d.public = strings.TrimSpace(string(b))
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(priv, "drover demo")
	if err != nil {
		return err
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		return err
	}
	d.public = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshPub))) + " demo"
	return errors.Join(os.WriteFile(d.key, pem.EncodeToMemory(block), 0o600), os.WriteFile(d.key+".pub", []byte(d.public+"\n"), 0o644))
}

// ensureVM has a VM run, and says whether it was made just now.
func (d *demo) ensureVM(ctx context.Context, name, site string, spec *v1.VMSpec) (fresh bool, err error) {
	spec.Power = v1.Power_POWER_ON
	spec.Placement = &v1.PlacementSpec{Site: site}
	if len(spec.Nics) == 0 {
		spec.Nics = []*v1.NICSpec{{Name: "eth0", Network: NetworkName}}
	}
	_, err = d.f.API.VM.Create(ctx, &v1.CreateVMRequest{Vm: &v1.VM{Meta: &v1.Meta{Name: name}, Spec: spec}})
	if connect.CodeOf(err) == connect.CodeAlreadyExists {
		_, err = d.f.API.VM.Start(ctx, &v1.StartVMRequest{Name: name})
		return false, err
	}
	return true, err
}

// guest waits until a VM runs and has its address.
func (d *demo) guest(ctx context.Context, name string) (*v1.VM, string, error) {
	vm, err := d.f.AwaitVM(ctx, name, Phase(v1.VMPhase_VM_PHASE_RUNNING))
	if err != nil {
		return nil, "", err
	}
	addr, err := d.f.Address(ctx, vm, "eth0")
	return vm, addr, err
}

func (d *demo) end() error {
	d.act("Measured")
	for _, l := range d.times.Lines(d.colour) {
		d.say("%s", l)
	}
	if len(d.times.Rows) == 0 {
		d.say("nothing: all of it ran already")
	}
	d.act("All of it runs on")
	f, err := OpenFleet(d.root, d.name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Draw(d.ctx, d.w, d.colour); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		self = "drover"
	}
	_, east, err := d.guest(d.ctx, "debian-east")
	if err != nil {
		return err
	}
	fmt.Fprintf(d.w, `
Try next:
   export DROVER_SOCKET=%s
   %[2]s vm list
   %[2]s vm console tiny-west                      # leave by Ctrl-]
   %[2]s vm exec debian-east -- uptime
   %[2]s lab exec east-rt ssh -o StrictHostKeyChecking=no -i %[3]s demo@%[4]s
   %[2]s switch show; %[2]s switch uplinks; %[2]s port list
   %[2]s port drops evil/eth0
   %[2]s port capture app-east/eth0 -w app.pcapng
   %[2]s port trace evil/eth0 arp reply 192.0.2.1 is-at 52:54:00:00:00:66
   %[2]s vm create mine --image debian-12 --memory 512M --network lan --start
   %[2]s lab wan --delay 50ms --loss 1%%
   %[2]s lab status
   %[2]s top
End it, and leave nothing behind:
   sudo make demo-down        # or: %[2]s lab down --name %[5]s
`, f.Socket(), self, d.key, east, d.name)
	return nil
}
