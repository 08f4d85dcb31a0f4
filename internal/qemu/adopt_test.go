package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/guest"
)

// agentEnv makes the test binary act as an agent: it starts the machine in the file that it names and waits to be killed.
const agentEnv = "DROVER_QEMU_TEST_AGENT"

// agentJob is what the agent is to do.
type agentJob struct {
	Spec     Spec
	Dir      string
	UID, GID uint32
	Pending  string // a layer of disk root whose merge stands in the state, and never began
	Do       op     // done when the machine runs
}

// op is what an agent is in the middle of when it dies.
type op struct {
	Merge    string           // a layer of disk root
	Overlays map[string]Layer // a snapshot, with memory
	Memory   string           // file of the memory
	DieAt    string           // the status of the job or migration at which the agent kills itself
}

func agentMain(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var job agentJob
	if err := json.Unmarshal(b, &job); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, err := Start(ctx, job.Spec, Attach{}, Options{Dir: job.Dir, UID: job.UID, GID: job.GID})
	if err != nil {
		return err
	}
	if err := p.QMP().Cont(ctx); err != nil {
		return err
	}
	sh := bufio.NewReader(p.Serial())
	for job.Spec.Kernel != nil {
		line, err := sh.ReadString('\n')
		if err != nil {
			return err
		}
		if strings.Contains(line, "@ready") {
			break
		}
	}
	if job.Pending != "" {
		if err := p.change(func(s *state) { s.Pending = &pending{Disk: "root", Layer: job.Pending} }); err != nil {
			return err
		}
	}
	fmt.Println("ready", p.PID())
	if job.Do.DieAt != "" {
		return job.Do.run(ctx, p)
	}
	_, err = io.Copy(io.Discard, p.Serial())
	return err
}

// runAgent starts a machine from another process and returns that process and QEMU's pid.
func runAgent(t *testing.T, job agentJob) (*exec.Cmd, int) {
	t.Helper()
	b, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "job")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), agentEnv+"="+file)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := Clean(ctx, job.Dir); err != nil {
			t.Error(err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	f := strings.Fields(line)
	if err != nil || len(f) != 2 || f[0] != "ready" {
		rest, _ := io.ReadAll(out)
		t.Fatalf("the agent said %q %s (%v)", line, rest, err)
	}
	return cmd, atoi(t, f[1])
}

func TestAdoptAfterKill(t *testing.T) {
	r := newRig(t, guest.Q35, diskModules...)
	layers := []Layer{r.image(t, "l0", Qcow2, "16M"), r.image(t, "l1", Qcow2, "16M")}
	r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: layers}}
	cmd, pid := runAgent(t, agentJob{Spec: r.spec, Dir: r.opt.Dir, UID: testUID, GID: testUID, Pending: "l1"})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	ctx := testContext(t)
	if _, err := Start(ctx, r.spec, Attach{}, r.opt); err == nil || !strings.Contains(err.Error(), "already running") {
		t.Errorf("a second QEMU for the machine: %v", err)
	}
	p, err := Adopt(ctx, Options{Dir: r.opt.Dir, Log: r.opt.Log})
	if err != nil {
		t.Fatal(err)
	}
	if p.PID() != pid {
		t.Errorf("adopted %d, started %d", p.PID(), pid)
	}
	sh := &shell{conn: p.Serial(), in: newReader(p.Serial())}
	if got := sh.run(t, "echo still here"); got != "still here" {
		t.Errorf("the guest says %q", got)
	}
	// The merge never began: the layer is still there, and so it must be in the spec.
	if got := p.Spec().Disks[0].Layers; len(got) != 2 || p.state.Pending != nil {
		t.Errorf("layers after adoption: %v, pending %v", got, p.state.Pending)
	}
	if err := p.Merge(ctx, "root", "l1"); err != nil {
		t.Errorf("an operation after adoption: %v", err)
	}
	// Hand over once more, in order, with an addition that did not happen in the state file.
	err = p.change(func(s *state) {
		s.Spec.Disks = append(s.Spec.Disks, Disk{ID: "ghost", Bus: guest.VirtioBlk, Slot: 1, Layers: []Layer{{ID: "g", Path: "/none", Format: Raw}}})
		s.Spec.NICs = append(s.Spec.NICs, NIC{ID: "ghost", Adapter: guest.VirtioNet, MAC: "52:54:00:00:00:01"})
	})
	if err != nil {
		t.Fatal(err)
	}
	p.Leave()
	p, err = Adopt(ctx, Options{Dir: r.opt.Dir, Log: r.opt.Log})
	if err != nil {
		t.Fatal(err)
	}
	if s := p.Spec(); len(s.Disks) != 1 || len(s.Disks[0].Layers) != 1 || len(s.NICs) != 0 {
		t.Errorf("spec after the second adoption: %+v", s)
	}
	sh = &shell{conn: p.Serial(), in: newReader(p.Serial()), n: 100}
	sh.run(t, "true")
	fmt.Fprintln(sh.conn, "9 poweroff -f")
	exit, err := p.Wait(ctx)
	if err != nil || exit.Kind != ExitGuest {
		t.Errorf("exit of an adopted machine: %v %v", exit, err)
	}
	if _, err := Adopt(ctx, Options{Dir: r.opt.Dir}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("adopting what has ended: %v", err)
	}
	if s, err := LastSpec(r.opt.Dir); err != nil || s.Name != r.spec.Name {
		t.Errorf("last spec: %v %v", s, err)
	}
}

// TestAdoptNeverTakesAnotherProcess puts this test's own pid in the state file, with another start time.
func TestAdoptNeverTakesAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	self, err := readProcStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for name, st := range map[string]state{
		"start time": {PID: os.Getpid(), StartTime: self.startTime + 1, BootID: boot},
		"boot":       {PID: os.Getpid(), StartTime: self.startTime, BootID: "another"},
		"no process": {PID: 1 << 22, StartTime: 1, BootID: boot},
	} {
		st.Version, st.Spec = stateVersion, small(guest.Q35)
		st.Spec.Memory.Path = filepath.Join(dir, "ram")
		if err := st.write(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Adopt(testContext(t), Options{Dir: dir}); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %v", name, err)
		}
		if err := Clean(testContext(t), dir); err != nil { // and this test is still there to say so
			t.Errorf("%s: clean: %v", name, err)
		}
	}
}

// TestAdoptAfterPowerLoss finds a state file that never reached the disk.
func TestAdoptAfterPowerLoss(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, stateFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Adopt(testContext(t), Options{Dir: dir}); !errors.Is(err, ErrNotRunning) {
		t.Error(err)
	}
	if err := Clean(testContext(t), dir); err != nil {
		t.Error(err)
	}
}

// TestConfinement looks at QEMU from outside.
func TestConfinement(t *testing.T) {
	r := newRig(t, guest.Q35)
	r.spec.Disks = []Disk{{ID: "root", Bus: guest.VirtioBlk, Layers: []Layer{r.image(t, "root", Qcow2, "16M")}}}
	cgroup := cgroup2(t)
	r.opt.Cgroup = cgroup
	p := r.start(t, Attach{})
	proc := "/proc/" + strconv.Itoa(p.PID())
	b, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for _, line := range strings.Split(string(b), "\n") {
		k, v, _ := strings.Cut(line, ":")
		status[k] = strings.Join(strings.Fields(v), " ")
	}
	id := fmt.Sprintf("%[1]d %[1]d %[1]d %[1]d", testUID)
	for k, want := range map[string]string{
		"Uid": id, "Gid": id, "Groups": "", "Seccomp": "2", "NoNewPrivs": "1",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
	} {
		if status[k] != want {
			t.Errorf("%s is %q, want %q", k, status[k], want)
		}
	}
	// Every thread, not only the first.
	tasks, err := os.ReadDir(proc + "/task")
	if err != nil || len(tasks) < 2 {
		t.Errorf("threads: %v %v", tasks, err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(filepath.Join(proc, "task", task.Name(), "status"))
		if err != nil || !strings.Contains(string(b), "Seccomp:\t2") {
			t.Errorf("thread %s is not confined: %v", task.Name(), err)
		}
	}
	if sid, err := unix.Getsid(p.PID()); err != nil || sid != p.PID() {
		t.Errorf("session %d, %v", sid, err)
	}
	if b, err := os.ReadFile(proc + "/oom_score_adj"); err != nil || strings.TrimSpace(string(b)) != "200" {
		t.Errorf("OOM score %s %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs")); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(p.PID()) {
		t.Errorf("cgroup has %q %v", b, err)
	}
	// Its stderr must never block it.
	b, err = os.ReadFile(proc + "/fdinfo/2")
	if err != nil {
		t.Fatal(err)
	}
	_, flags, _ := strings.Cut(string(b), "flags:")
	n, err := strconv.ParseInt(strings.Fields(flags)[0], 8, 64)
	if err != nil || n&unix.O_NONBLOCK == 0 {
		t.Errorf("stderr flags %o %v", n, err)
	}
	checkFDs(t, proc, r)
}

// checkFDs holds QEMU's open files against a list.
func checkFDs(t *testing.T, proc string, r *rig) {
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	images := 0
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(proc, "fd", fd.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		switch {
		case strings.HasPrefix(to, "socket:"), strings.HasPrefix(to, "anon_inode:"), strings.HasPrefix(to, "pipe:"):
		case to == "/dev/null", to == "/dev/urandom", strings.HasPrefix(to, r.opt.Dir+"/"+stderrFIFO), to == r.spec.Memory.Path, to == r.spec.Kernel.Image:
		case strings.HasPrefix(to, "/memfd:"): // translated code and the like
		case to == r.spec.Disks[0].Layers[0].Path:
			images++
		default:
			t.Errorf("descriptor %s is %s", fd.Name(), to)
		}
	}
	if images == 0 {
		t.Error("the image is not open")
	}
}

// cgroup2 makes a cgroup in the v2 hierarchy, wherever it is mounted.
func cgroup2(t *testing.T) string {
	t.Helper()
	root, err := cgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, cgroupName(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func cgroupRoot() (string, error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("no cgroup v2 hierarchy is mounted; mount one with: mount -t cgroup2 none /sys/fs/cgroup")
}
