package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "drover/api/drover/v1"
	"drover/internal/backup"
	"drover/internal/disk"
	"drover/internal/nbd"
	"drover/internal/qemu"
	"drover/internal/qga"
	"drover/internal/resource"
)

const (
	bootTestDefault = 5 * time.Minute
	bootTestMost    = time.Hour
	bootConsole     = 1 << 20 // of what a tested guest prints is kept, the newest
	checkAgain      = 500 * time.Millisecond
)

// bootTest starts a point in a machine that nobody else sees and that is thrown away: its disks are empty layers over the point, its
// NICs are on networks that QEMU plays, which lead nowhere.
type bootTest struct {
	a     *agent
	req   *v1.NodeTestRequest
	id    string // of everything that it makes
	dir   string
	m     *machine // for the VM's own rules of devices; no actor runs it
	vm    *v1.VM
	point backup.PointReader
	tell  func(string)

	life    context.Context
	proc    *qemu.Process
	agent   *qga.Client
	port    int // of the loopback, that leads to the guest's
	console bootConsoleText
	fresh   []*disk.Fresh
	work    sync.WaitGroup
}

// TestPoint starts a point where nobody else sees it, and checks it. What fails in the guest is a result, not an error.
func (n *node) TestPoint(ctx context.Context, req *v1.NodeTestRequest, stream *connect.ServerStream[v1.NodeTestProgress]) error {
	wait := bootTestDefault
	if d := req.GetCheck().GetTimeout(); d != nil {
		wait = min(d.AsDuration(), bootTestMost)
	}
	t := &bootTest{a: n.a, req: req, id: resource.NewUID(), tell: func(s string) {
		// A stream that is cut ends ctx.
		_ = stream.Send(&v1.NodeTestProgress{Step: s})
	}}
	r, err := t.run(ctx, wait)
	if err != nil {
		return fmt.Errorf("test restore point %s: %w", req.GetPoint(), err)
	}
	return stream.Send(&v1.NodeTestProgress{Step: "tested", Done: true, Result: r})
}

func (t *bootTest) run(ctx context.Context, wait time.Duration) (res *v1.PointTest, err error) {
	// It ends with the agent, too.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(t.a.life, cancel)
	defer stop()
	t.life = ctx
	defer func() { err = errors.Join(err, t.clean(context.WithoutCancel(ctx))) }()
	defer cancel()
	t.tell("opening the restore point")
	repo, done, err := t.a.vault(ctx, t.req.GetSource())
	if err != nil {
		return nil, err
	}
	defer done()
	if t.point, err = repo.OpenPoint(ctx, t.req.GetPoint()); err != nil {
		return nil, fmt.Errorf("open it in repository %s: %w", t.req.GetSource().GetVault().GetRepository(), err)
	}
	defer t.point.Close()
	spec, closers, err := t.prepare(ctx)
	defer func() {
		// The console is followed until QEMU is gone.
		if t.proc != nil {
			if _, kerr := t.proc.Kill(context.WithoutCancel(ctx)); kerr != nil {
				err = errors.Join(err, kerr)
				t.proc.Serial().Close()
			}
		}
		t.work.Wait()
		for _, c := range closers {
			c()
		}
	}()
	defer cancel()
	if err != nil {
		return nil, err
	}
	t.tell("starting it")
	if t.proc, err = qemu.Start(ctx, spec, qemu.Attach{}, qemu.Options{
		Binary: t.a.cfg.QEMU, Dir: t.dir, UID: t.m.local.User, GID: t.m.local.User, OOM: 500, Log: t.a.log,
	}); err != nil {
		return nil, err
	}
	t.work.Go(func() { t.console.follow(t.proc.Serial()) })
	began := t.a.clk.Now()
	if err := t.proc.QMP().Cont(ctx); err != nil {
		return nil, err
	}
	t.agent = qga.New(t.proc.Agent(), qga.Options{Timeout: guestAnswer})
	res = &v1.PointTest{Time: timestamppb.New(began), Passed: true}
	limit, end := context.WithCancelCause(ctx)
	defer end(nil)
	late := time.AfterFunc(wait, func() { end(fmt.Errorf("not within %s", wait)) })
	defer late.Stop()
	for _, c := range t.checks() {
		t.tell(c.what)
		text, cerr := t.await(limit, c)
		line := c.what + ": " + text
		if cerr != nil {
			line, res.Passed = c.what+": failed: "+cerr.Error(), false
		}
		res.Checks = append(res.Checks, line)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	res.BootTime = durationpb.New(t.a.clk.Now().Sub(began))
	res.Screenshot = t.screenshot(ctx)
	if !res.Passed {
		if said := t.console.last(5); said != "" {
			res.Checks = append(res.Checks, "the console's last words: "+said)
		}
	}
	return res, nil
}

// clean leaves nothing of it.
func (t *bootTest) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	var errs []error
	if t.dir != "" {
		errs = append(errs, qemu.Clean(ctx, t.dir), os.RemoveAll(t.dir))
	}
	for _, d := range t.fresh {
		errs = append(errs, d.Discard())
	}
	if t.m != nil && t.m.local.User != 0 {
		t.a.mu.Lock()
		delete(t.a.users, t.m.local.User)
		t.a.mu.Unlock()
	}
	return errors.Join(errs...)
}

// prepare makes the machine's parts. What it gives to close is to be closed when the machine is gone.
func (t *bootTest) prepare(ctx context.Context) (spec qemu.Spec, closers []func(), err error) {
	p := t.point.Point()
	t.vm = new(v1.VM)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(p.Definition, t.vm); err != nil {
		return spec, nil, fmt.Errorf("the VM's definition in it: %w", err)
	}
	if t.vm.GetSpec() == nil || t.vm.GetMeta() == nil {
		return spec, nil, errors.New("it has no definition of the VM, so that it can't be started")
	}
	t.dir = filepath.Join(t.a.cfg.RunDir, "vms", t.id)
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return spec, nil, err
	}
	l := &local{Version: 1}
	var saved snapRecord
	if b := p.Files[fileMachine]; b != nil && json.Unmarshal(b, &saved) == nil {
		l.Places = saved.Places
	}
	t.m = &machine{a: t.a, uid: t.vm.GetMeta().GetUid(), dir: t.dir, log: t.a.log, local: l, vm: t.vm}
	if err := t.a.ensureUser(t.m); err != nil {
		return spec, nil, err
	}
	s := t.vm.GetSpec()
	if k := s.GetKernelImage(); k != "" {
		t.tell("fetching image " + k)
		if err := t.a.ensureKernel(ctx, k, func(int64) {}); err != nil {
			return spec, nil, fmt.Errorf("kernel image %s: %w", k, err)
		}
		if img, err := t.a.imageOf(k); err == nil && t.req.GetImages()[k] != "" && img.GetStatus().GetSha256() != t.req.GetImages()[k] {
			return spec, nil, fmt.Errorf("kernel image %s is another than the VM ran with", k)
		}
	}
	if s.GetHardware().GetFirmware() == v1.Firmware_FIRMWARE_UEFI {
		if err := writeFile(filepath.Join(t.dir, firmwareVars), p.Files[fileVars], 0o600); p.Files[fileVars] != nil && err != nil {
			return spec, nil, err
		}
		if p.Files[fileVars] == nil {
			os.Remove(filepath.Join(t.dir, firmwareVars))
			if err := t.m.ensureVars(); err != nil {
				return spec, nil, err
			}
		}
	}
	if err := t.m.writeSeed(t.vm); err != nil {
		return spec, nil, fmt.Errorf("cloud-init seed: %w", err)
	}
	disks := s.GetDisks()
	bare := clone(t.vm)
	bare.Spec.Disks = nil
	for _, c := range bare.Spec.Cdroms {
		c.Image = "" // an empty drive
	}
	if spec, err = t.m.qemuSpec(bare); err != nil {
		return spec, nil, err
	}
	spec.Memory.Path, spec.GenerationID = filepath.Join(t.a.cfg.ShmDir, t.id), resource.NewUID()
	if err := t.networks(&spec); err != nil {
		return spec, nil, err
	}
	closers, err = t.disks(ctx, &spec, disks)
	return spec, closers, err
}

// disks are empty layers in the host's own datastore, over what the agent serves of the point.
func (t *bootTest) disks(ctx context.Context, spec *qemu.Spec, disks []*v1.DiskSpec) (closers []func(), err error) {
	st, err := t.a.stores.at(t.a.stores.ownPath())
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(t.a.cfg.ShmDir, t.id+".nbd")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chown(socket, int(t.m.local.User), int(t.m.local.User)), os.Chmod(socket, 0o600)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	exports := map[string]nbd.Export{}
	var all []qemu.Disk
	for i, d := range disks {
		reader, rerr := t.point.Disk(ctx, d.GetName())
		if errors.Is(rerr, backup.ErrNotFound) {
			continue // it was not in the backup
		}
		if err = rerr; err != nil {
			err = fmt.Errorf("disk %s of it: %w", d.GetName(), err)
			break
		}
		x := backup.NewExport(t.life, reader, 0)
		closers = append(closers, func() { x.Close(); reader.Close() })
		name := "d" + strconv.Itoa(i)
		exports[name] = bare{x}
		f, ferr := st.NewFresh(max(x.Size(), 512), "")
		if err = ferr; err != nil {
			break
		}
		t.fresh = append(t.fresh, f)
		if err = f.Flush(ctx); err != nil {
			break
		}
		bus := resource.BusOf(d.GetBus())
		slot := t.m.local.place(placeDisk, string(bus), d.GetName())
		all = append(all, qemu.Disk{ID: diskID(bus, slot), Bus: bus, Slot: slot, Boot: int(d.GetBootOrder()), Serial: serial(d.GetName()), Cache: qemu.Unsafe,
			Layers: []qemu.Layer{
				{ID: "r-" + name, Format: qemu.Raw, Shared: true, Remote: &qemu.RemoteBase{Socket: socket, Export: name}},
				{ID: "l-" + name, Path: filepath.Join(t.a.stores.ownPath(), f.File()), Format: qemu.Qcow2},
			}})
	}
	// The seed's disk comes last.
	spec.Disks = append(all, spec.Disks...)
	s := nbd.NewServer(nbd.ServerOptions{Log: t.a.log, Lookup: func(_ context.Context, name string, _ nbd.Peer) (nbd.Export, func(), error) {
		if x := exports[name]; x != nil {
			return x, func() {}, nil
		}
		return nil, nil, nbd.ErrNoExport
	}})
	t.work.Go(func() {
		if err := s.Serve(t.life, l); err != nil {
			t.a.log.Warn("a restore point that is tested can't be read any more", "err", err)
		}
	})
	if err == nil && len(all) == 0 && len(disks) > 0 {
		err = errors.New("it has none of the VM's disks")
	}
	return closers, err
}

// address finds the guest's own in a network config.
var address = regexp.MustCompile(`\b(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})/(\d{1,2})\b`)

// networks puts each NIC on a network of its own. The first is in the guest's subnet, if its cloud-init says which, and has the port
// that is to answer forwarded.
func (t *bootTest) networks(spec *qemu.Spec) error {
	for i := range spec.NICs {
		n := &spec.NICs[i]
		n.User, n.Queues, n.MTU = &qemu.UserNet{}, 0, 0
		want := int(t.req.GetCheck().GetTcpPort())
		if i > 0 || want == 0 {
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		t.port = l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			return err
		}
		f := qemu.Forward{Host: t.port, Guest: want}
		if a := address.FindStringSubmatch(t.vm.GetSpec().GetCloudInit().GetNetworkConfig()); a != nil {
			if _, subnet, err := net.ParseCIDR(a[0]); err == nil {
				n.User.Net, f.Addr = subnet.String(), a[1]
			}
		}
		n.User.Forward = []qemu.Forward{f}
	}
	return nil
}

// bootCheck is one thing that is tried until it succeeds.
type bootCheck struct {
	what string
	try  func(context.Context) (text string, err error)
	once bool // a failure is final
}

func (t *bootTest) checks() []bootCheck {
	c := t.req.GetCheck()
	var out []bootCheck
	if c.GetConsole() != "" {
		out = append(out, bootCheck{what: fmt.Sprintf("the console shows %q", c.GetConsole()), try: func(context.Context) (string, error) {
			if t.console.has(c.GetConsole()) {
				return "yes", nil
			}
			return "", errors.New("it does not")
		}})
	}
	if c.GetAgent() || len(c.GetExec()) > 0 || c.GetConsole() == "" && c.GetTcpPort() == 0 {
		out = append(out, bootCheck{what: "the guest agent answers", try: func(ctx context.Context) (string, error) { return "yes", t.agent.Ping(ctx) }})
	}
	if c.GetTcpPort() != 0 {
		out = append(out, bootCheck{what: fmt.Sprintf("TCP port %d answers", c.GetTcpPort()), try: t.answers})
	}
	if x := c.GetExec(); len(x) > 0 {
		out = append(out, bootCheck{what: strings.Join(x, " "), once: true, try: func(ctx context.Context) (string, error) {
			st, err := t.agent.Run(ctx, qga.Command{Path: x[0], Args: x[1:]})
			if err == nil && (st.Code != 0 || st.Signal != 0) {
				err = fmt.Errorf("exit code %d: %s", st.Code, lastLine(append(st.Out, st.Err...)))
			}
			return "exit code 0", err
		}})
	}
	return out
}

// await tries until it succeeds or ctx ends.
func (t *bootTest) await(ctx context.Context, c bootCheck) (string, error) {
	for {
		text, err := c.try(ctx)
		if err == nil || c.once {
			return text, err
		}
		if st, serr := t.proc.QMP().QueryStatus(t.life); serr != nil || st.Status == "io-error" || st.Status == "guest-panicked" || st.Status == "shutdown" {
			if serr != nil {
				return "", fmt.Errorf("QEMU ended: %w", serr)
			}
			return "", fmt.Errorf("the machine stopped (%s): %w", st.Status, err)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		case <-t.a.clk.After(checkAgain):
		}
	}
}

// answers tells whether somebody speaks behind the port. QEMU takes a connection before it knows whether the guest does: only a byte
// from the guest is an answer. Servers that wait to be spoken to are sent a request as of HTTP.
func (t *bootTest) answers(ctx context.Context) (string, error) {
	if t.port == 0 {
		return "", errors.New("the VM has no NIC")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(t.port)))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	got := make([]byte, 1)
	for _, say := range []string{"", "GET / HTTP/1.0\r\n\r\n"} {
		if _, err := io.WriteString(conn, say); err != nil {
			return "", err
		}
		if err := conn.SetReadDeadline(t.a.clk.Now().Add(time.Second)); err != nil {
			return "", err
		}
		_, err = conn.Read(got)
		if err == nil {
			return "yes", nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return "", errors.New("the connection is closed at once")
		}
	}
	return "", errors.New("nobody speaks there")
}

// screenshot is a picture of the screen; nil if there is none.
func (t *bootTest) screenshot(ctx context.Context) []byte {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var out bytes.Buffer
	screen, err := t.proc.Screen(ctx)
	if err == nil {
		err = png.Encode(&out, screen)
	}
	if err != nil {
		t.a.log.Debug("no picture of a tested point's screen", "err", err)
		return nil
	}
	return out.Bytes()
}

// bootConsoleText is what a guest prints, the newest bootConsole bytes of it.
type bootConsoleText struct {
	mu   sync.Mutex
	text []byte
}

func (c *bootConsoleText) follow(r io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		c.mu.Lock()
		c.text = append(c.text, buf[:n]...)
		if over := len(c.text) - 2*bootConsole; over > 0 {
			c.text = append(c.text[:0], c.text[len(c.text)-bootConsole:]...)
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *bootConsoleText) has(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Contains(c.text, []byte(text))
}

// last are the last lines, made safe to show.
func (c *bootConsoleText) last(lines int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := strings.Split(strings.TrimSpace(string(c.text)), "\n")
	return printable(strings.Join(all[max(0, len(all)-lines):], " | "))
}

func lastLine(b []byte) string {
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return printable(all[len(all)-1])
}

func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	return s[:min(len(s), 500)]
}
