package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/clock"
	"drover/internal/hostnet"

	"connectrpc.com/connect"
)

// PutImage uploads a file as an image, unless one of that name is ready already, and waits until it is ready.
func (f *Fleet) PutImage(ctx context.Context, name, path string) error {
	got, err := f.API.Image.Get(ctx, &v1.GetRequest{Name: name})
	if connect.CodeOf(err) == connect.CodeNotFound {
		got, err = f.API.Image.Create(ctx, &v1.CreateImageRequest{Image: &v1.Image{Meta: &v1.Meta{Name: name}, Spec: &v1.ImageSpec{}}})
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	if got.GetStatus().GetPhase() == v1.ImagePhase_IMAGE_PHASE_WAITING {
		if err := f.upload(ctx, name, path); err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
	}
	var failed error
	err = follow(ctx, f.API.Image.Watch, &v1.WatchRequest{Filter: fmt.Sprintf("meta.name = %q", name)}, func(c *v1.ImageChange) bool {
		if st := c.GetImage().GetStatus(); st.GetPhase() == v1.ImagePhase_IMAGE_PHASE_FAILED {
			failed = errors.New(st.GetMessage())
		}
		return failed != nil || c.GetImage().GetStatus().GetPhase() == v1.ImagePhase_IMAGE_PHASE_READY
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	return nil
}

func (f *Fleet) upload(ctx context.Context, name, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	at := f.API.Base + "/upload/images/" + url.PathEscape(name)
	head, err := http.NewRequestWithContext(ctx, http.MethodHead, at, nil)
	if err != nil {
		return err
	}
	resp, err := f.API.HTTP.Do(head)
	if err != nil {
		return err
	}
	resp.Body.Close()
	// What an upload that was cut off has brought is there.
	offset, err := strconv.ParseInt(resp.Header.Get("Upload-Offset"), 10, 64)
	if err != nil {
		return fmt.Errorf("upload: %s", resp.Status)
	}
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	put, err := http.NewRequestWithContext(ctx, http.MethodPut, fmt.Sprintf("%s?offset=%d&last=1", at, offset), file)
	if err != nil {
		return err
	}
	if resp, err = f.API.HTTP.Do(put); err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // the status says enough if this fails
		return fmt.Errorf("upload: %s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	return nil
}

// AwaitVM waits until the VM is as ok wants it; nil is said of one that does not exist. The error tells the last state.
func (f *Fleet) AwaitVM(ctx context.Context, name string, ok func(*v1.VM) bool) (*v1.VM, error) {
	var last *v1.VM
	err := follow(ctx, f.API.VM.Watch, &v1.WatchRequest{Filter: fmt.Sprintf("meta.name = %q", name)}, func(c *v1.VMChange) bool {
		switch c.GetKind() {
		case v1.ChangeKind_CHANGE_KIND_ADDED, v1.ChangeKind_CHANGE_KIND_MODIFIED:
			last = c.GetVm()
			return ok(last)
		case v1.ChangeKind_CHANGE_KIND_RESET:
			last = nil
		case v1.ChangeKind_CHANGE_KIND_DELETED:
			last = nil
			return ok(nil)
		case v1.ChangeKind_CHANGE_KIND_SYNCED:
			return last == nil && ok(nil)
		}
		return false
	})
	if err != nil {
		return last, fmt.Errorf("VM %s (%s): %w", name, describe(last), err)
	}
	return last, nil
}

// describe says how a VM is, in a line.
func describe(vm *v1.VM) string {
	if vm == nil {
		return "does not exist"
	}
	st := vm.GetStatus()
	s := fmt.Sprintf("%s on %s, wanted %s, generation %d seen %d", phaseWord(st.GetPhase()), st.GetOwner(),
		strings.ToLower(strings.TrimPrefix(vm.GetSpec().GetPower().String(), "POWER_")), vm.GetMeta().GetGeneration(), st.GetObservedGeneration())
	for _, m := range append([]string{st.GetMessage(), st.GetBusy()}, st.GetRestartRequired()...) {
		if m != "" {
			s += "; " + m
		}
	}
	return s
}

func phaseWord(p v1.VMPhase) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(p.String(), "VM_PHASE_")), "_", " ")
}

// Phase is for AwaitVM: the VM is in the phase, and the host has seen its present spec.
func Phase(p v1.VMPhase) func(*v1.VM) bool {
	return func(vm *v1.VM) bool {
		return vm.GetStatus().GetPhase() == p && vm.GetStatus().GetObservedGeneration() == vm.GetMeta().GetGeneration()
	}
}

// Gone is for AwaitVM.
func Gone(vm *v1.VM) bool { return vm == nil }

// Address waits for the address that the site's DHCP server gave to a NIC.
func (f *Fleet) Address(ctx context.Context, vm *v1.VM, nic string) (string, error) {
	mac := ""
	for _, n := range vm.GetSpec().GetNics() {
		if n.GetName() == nic {
			mac = n.GetMac()
		}
	}
	if mac == "" {
		return "", fmt.Errorf("VM %s has no NIC %s", vm.GetMeta().GetName(), nic)
	}
	var addr string
	err := retry(ctx, func() error {
		st, err := f.Status(ctx)
		if err != nil {
			return err
		}
		for _, l := range st.Leases {
			if strings.EqualFold(l.MAC, mac) {
				addr = l.Address.String()
				return nil
			}
		}
		return fmt.Errorf("VM %s: NIC %s has no lease yet", vm.GetMeta().GetName(), nic)
	})
	return addr, err
}

// Get asks by HTTP from a node: the host part must be an address. It repeats until there is an answer with status 200.
func (f *Fleet) Get(ctx context.Context, node, url string) (string, error) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return f.Dial(ctx, node, network, addr)
	}}}
	var body string
	err := retry(ctx, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if body = string(b); err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(body))
		}
		return err
	})
	if err != nil {
		return body, fmt.Errorf("GET %s from %s: %w", url, node, err)
	}
	return body, nil
}

// Router is the node that routes for a site; what it asks reaches guests there and, over the WAN, elsewhere.
func (l *Lab) Router(site string) string { return routerNode(site) }

// Console is a VM's serial console.
type Console struct {
	stream *connect.BidiStreamForClientSimple[v1.ConsoleInput, v1.ConsoleOutput]
	cancel context.CancelFunc
	text   strings.Builder
	seen   int // how much of text Until has used up
}

// OpenConsole opens a VM's console, beginning with all that is kept. Close it.
func (f *Fleet) OpenConsole(ctx context.Context, vm string) (*Console, error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := f.API.VM.Console(ctx)
	if err == nil {
		err = s.Send(&v1.ConsoleInput{Vm: vm, Backlog: -1})
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("console of VM %s: %w", vm, err)
	}
	return &Console{stream: s, cancel: cancel}, nil
}

// Until reads until the text comes, past what an earlier Until found, and returns what was read up to and with it. It
// waits as long as the context of OpenConsole.
func (c *Console) Until(text string) (string, error) {
	for {
		all := c.text.String()[c.seen:]
		if i := strings.Index(all, text); i >= 0 {
			c.seen += i + len(text)
			return all[:i+len(text)], nil
		}
		m, err := c.stream.Receive()
		if err != nil {
			return all, fmt.Errorf("console ended before %q: %w; it said:\n%s", text, err, all[max(0, len(all)-4096):])
		}
		c.text.Write(m.GetData())
	}
}

// Send types on the console.
func (c *Console) Send(text string) error {
	return c.stream.Send(&v1.ConsoleInput{Data: []byte(text)})
}

// Close hangs up.
func (c *Console) Close() {
	_ = c.stream.CloseRequest() // the context ends it in any case
	c.cancel()
}

// QEMU is a process that runs a VM.
type QEMU struct {
	Host, UID string
	PID       int
}

// QEMUs lists those of the lab's hosts.
func (f *Fleet) QEMUs() ([]QEMU, error) {
	hosts := map[string]string{} // by the directory of guests' memory
	for _, h := range f.hostNames() {
		hosts[shmOf(f.StateDir(h))] = h
	}
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var out []QEMU
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || len(b) == 0 {
			continue // it ended, or is a zombie
		}
		for dir, h := range hosts {
			_, rest, ok := strings.Cut(string(b), dir+"/")
			if !ok || len(rest) < 36 {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				return nil, err
			}
			out = append(out, QEMU{h, rest[:36], pid})
		}
	}
	return out, nil
}

// KillQEMU ends a VM's process as a crash would.
func (f *Fleet) KillQEMU(ctx context.Context, uid string) error {
	all, err := f.QEMUs()
	if err != nil {
		return err
	}
	for _, q := range all {
		if q.UID != uid {
			continue
		}
		start, err := startTime(q.PID)
		if err != nil {
			return nil
		}
		return kill(ctx, q.PID, Process{PID: q.PID, Start: start}.alive)
	}
	return fmt.Errorf("no QEMU runs VM %s", uid)
}

// Leftovers lists what VMs have left on the hosts: processes, TAPs, sockets, memory, cgroups, records, disks. With no VM
// there must be none.
func (f *Fleet) Leftovers() ([]string, error) {
	var out []string
	qemus, err := f.QEMUs()
	if err != nil {
		return nil, err
	}
	for _, q := range qemus {
		out = append(out, fmt.Sprintf("process %d of VM %s on host %s", q.PID, q.UID, q.Host))
	}
	for _, h := range f.hostNames() {
		left, err := f.hostLeftovers(h)
		if err != nil {
			return nil, err
		}
		out = append(out, left...)
	}
	return out, nil
}

func (f *Fleet) hostLeftovers(h string) ([]string, error) {
	var out []string
	state := f.StateDir(h)
	shm, cgroup := tracesOf(state)
	patterns := []string{filepath.Join(f.RunDir(h), "vms/*"), filepath.Join(state, "vms/*"), filepath.Join(state, "datastore/vms/*"),
		filepath.Join(state, "datastore/*.tmp"), filepath.Join(shm, "*"), filepath.Join(cgroup, "vm-*")}
	for _, dir := range f.cfg.Datastores[h] {
		patterns = append(patterns, filepath.Join(dir, "vms/*"))
	}
	for _, p := range patterns {
		found, err := filepath.Glob(p)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	n, err := f.Net(h)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	taps, err := n.Owned(hostnet.MarkNIC)
	if err != nil {
		return nil, err
	}
	for _, t := range taps {
		out = append(out, fmt.Sprintf("TAP %s (%s) on host %s", t.Name, t.Mark, h))
	}
	return out, nil
}

// AwaitTask waits for a task's end. One that did not succeed is an error.
func (f *Fleet) AwaitTask(ctx context.Context, name string) error {
	var last *v1.Task
	err := follow(ctx, f.API.Task.Watch, &v1.WatchRequest{Filter: fmt.Sprintf("meta.name = %q", name)}, func(c *v1.TaskChange) bool {
		if c.GetTask() != nil {
			last = c.GetTask()
		}
		switch last.GetStatus().GetState() {
		case v1.TaskState_TASK_STATE_SUCCEEDED, v1.TaskState_TASK_STATE_FAILED, v1.TaskState_TASK_STATE_CANCELLED:
			return true
		}
		return false
	})
	if err == nil && last.GetStatus().GetState() != v1.TaskState_TASK_STATE_SUCCEEDED {
		err = errors.New(last.GetStatus().GetMessage())
	}
	if err != nil {
		return fmt.Errorf("task %s (%s of %s, %s): %w", name, last.GetSpec().GetKind(), last.GetSpec().GetTarget(), last.GetStatus().GetState(), err)
	}
	return nil
}

// AwaitHost waits until the manager says that a host is in a phase. READY counts from the host's next word on: what the
// manager knew before is nothing new. A heartbeat is no change that a watch would tell.
func (f *Fleet) AwaitHost(ctx context.Context, name string, phase v1.HostPhase) error {
	since := f.now()
	err := retry(ctx, func() error {
		h, err := f.API.Host.Get(ctx, &v1.GetRequest{Name: name})
		if err != nil {
			return err
		}
		st := h.GetStatus()
		if st.GetPhase() != phase || phase == v1.HostPhase_HOST_PHASE_READY && st.GetLastHeartbeat().AsTime().Before(since) {
			return fmt.Errorf("it is %s, last heard of at %s", st.GetPhase(), st.GetLastHeartbeat().AsTime())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("host %s is not %s: %w (log: %s)", name, phase, err, tail(f.LogPath(name)))
	}
	return nil
}

func (f *Fleet) now() time.Time { return clock.Real().Now() }
