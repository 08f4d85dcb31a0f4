package host

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	v1 "drover/api/drover/v1"
	"drover/internal/clock"
)

// The ring keeps exactly the last bytes, also over a restart.
func TestRing(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		path := filepath.Join(dir, strings.Repeat("x", 1+n%100))
		size := rapid.Int64Range(1, 40).Draw(t, "size")
		r, err := openRing(path, size)
		if err != nil {
			t.Fatal(err)
		}
		before := r.written
		var all []byte
		for range rapid.IntRange(0, 10).Draw(t, "writes") {
			p := rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(t, "data")
			if err := r.write(p); err != nil {
				t.Fatal(err)
			}
			all = append(all, p...)
			if rapid.Bool().Draw(t, "restart") {
				if err := r.close(); err != nil {
					t.Fatal(err)
				}
				if r, err = openRing(path, size); err != nil {
					t.Fatal(err)
				}
			}
		}
		defer r.close()
		if got := r.written - before; got != int64(len(all)) {
			t.Fatalf("counted %d bytes of %d", got, len(all))
		}
		from := before + rapid.Int64Range(0, int64(len(all))).Draw(t, "from")
		var got []byte
		buf := make([]byte, rapid.IntRange(1, 50).Draw(t, "buf"))
		for pos := from; ; {
			k, next, err := r.read(buf, pos)
			if err != nil {
				t.Fatal(err)
			}
			if k == 0 {
				break
			}
			got = append(got, buf[:k]...)
			pos = next
		}
		want := all[max(from, r.oldest())-before:]
		if !bytes.Equal(got, want) {
			t.Fatalf("from %d: %q, want %q", from-before, got, want)
		}
	})
}

func TestConsole(t *testing.T) {
	c, err := newConsole(filepath.Join(t.TempDir(), "ring"), 1<<10, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if _, err := c.Write([]byte("x")); !errors.Is(err, errNoLine) {
		t.Errorf("typing without a line: %v", err)
	}
	ours, guest := net.Pipe()
	c.connect(ours)
	got := make(chan string, 16)
	ctx, cancel := context.WithCancel(t.Context())
	var viewers sync.WaitGroup
	// One that takes nothing never holds the guest up.
	viewers.Go(func() {
		_ = c.view(ctx, -1, true, func([]byte) error { <-ctx.Done(); return ctx.Err() })
	})
	viewers.Go(func() {
		_ = c.view(ctx, -1, true, func(b []byte) error { got <- string(b); return nil })
	})
	var text string
	for range 100 {
		if _, err := guest.Write([]byte("0123456789abcdef\n")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := guest.Write([]byte("end")); err != nil {
		t.Fatal(err)
	}
	for !strings.HasSuffix(text, "end") {
		select {
		case s := <-got:
			text += s
		case <-time.After(10 * time.Second):
			t.Fatalf("the viewer has only %q", text)
		}
	}
	// What is typed reaches the guest.
	typed := make(chan string)
	go func() {
		b := make([]byte, 8)
		n, _ := guest.Read(b)
		typed <- string(b[:n])
	}()
	if _, err := c.Write([]byte("ls\n")); err != nil {
		t.Fatal(err)
	}
	if s := <-typed; s != "ls\n" {
		t.Errorf("the guest was typed %q", s)
	}
	cancel()
	viewers.Wait()
	// A backlog is the end of what was said.
	var back []byte
	if err := c.view(t.Context(), 5, false, func(b []byte) error { back = append(back, b...); return nil }); err != nil || string(back) != "f\nend" {
		t.Errorf("backlog of 5 bytes: %q %v", back, err)
	}
	guest.Close()
	c.drained(t.Context())
}

func TestGate(t *testing.T) {
	g := newGate(noon, map[string]int32{"a": 1, "b": 1, "c": 2, "d": 3})
	may := func(uid string, at time.Time) bool { ok, _ := g.turn(uid, at); return ok }
	if !may("a", noon) || !may("b", noon) || may("c", noon) || may("d", noon) || !may("stranger", noon) {
		t.Error("at first only the first group may start, and who is not in any")
	}
	if g.settled("a", noon) {
		t.Error("one of two is up: nobody else's turn")
	}
	if !g.settled("b", noon) || !may("c", noon) || may("d", noon) {
		t.Error("the first group is up: the second's turn")
	}
	if ok, until := g.turn("d", noon.Add(time.Second)); ok || !until.Equal(noon.Add(groupWait)) {
		t.Errorf("the third group waits until %v", until)
	}
	if !may("d", noon.Add(groupWait)) {
		t.Error("a group that does not come up holds up the next for ever")
	}
}

func TestEventsAreBounded(t *testing.T) {
	e := &events{clk: clock.Real()}
	for range eventLimit + 10 {
		e.add(v1.Severity_SEVERITY_INFO, "vm", "x", "R", "m")
	}
	first, mark := e.take(100)
	if len(first) != 100 || len(e.queue) != eventLimit {
		t.Fatalf("%d events of %d kept", len(first), len(e.queue))
	}
	// While they were on the way the queue ran over: what was sent is gone, and nothing else.
	for range 50 {
		e.add(v1.Severity_SEVERITY_INFO, "vm", "x", "R", "m")
	}
	e.sent(mark)
	if got := len(e.queue); got != eventLimit-50 {
		t.Errorf("%d events wait, want %d", got, eventLimit-50)
	}
	e.sent(mark)
	if got := len(e.queue); got != eventLimit-50 {
		t.Errorf("told twice that they arrived, %d wait", got)
	}
}

func TestBackoff(t *testing.T) {
	b := backoff{min: time.Second, max: 10 * time.Second}
	top := time.Second
	for range 10 {
		got := b.next()
		if got > top || got < top*3/4 {
			t.Errorf("waits %v, want up to a quarter less than %v", got, top)
		}
		top = min(2*top, 10*time.Second)
	}
	b.reset()
	if got := b.next(); got > time.Second {
		t.Errorf("after a success it waits %v", got)
	}
}

func TestFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights
		done, err := f.enter(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan string, 2)
		for _, key := range []string{"k", "other"} {
			go func() {
				end, err := f.enter(t.Context(), key)
				if err == nil {
					end()
				}
				got <- key
			}()
		}
		synctest.Wait()
		if k := <-got; k != "other" {
			t.Errorf("%s was let in while another was at it", k)
		}
		done()
		if k := <-got; k != "k" {
			t.Errorf("%s came second", k)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		again, _ := f.enter(ctx, "k")
		if _, err := f.enter(ctx, "k"); err == nil {
			t.Error("waits beyond its context")
		}
		again()
	})
}

func driftText(changes []change) string {
	names := map[changeKind]string{addDisk: "add-disk", removeDisk: "remove-disk", growDisk: "grow-disk", changeCD: "change-cd",
		addNIC: "add-nic", removeNIC: "remove-nic", setLink: "link", moveNIC: "move-nic", addCPUs: "cpus", setMemory: "memory"}
	var out []string
	for _, c := range changes {
		out = append(out, strings.TrimSpace(names[c.kind]+" "+c.name))
	}
	return strings.Join(out, ",")
}

func TestDrift(t *testing.T) {
	base := func() *v1.VMSpec {
		return &v1.VMSpec{
			Cpus: 1, MaxCpus: 4, MemoryBytes: 512 << 20, MaxMemoryBytes: 2 << 30, Hardware: &v1.Hardware{Version: 1},
			Disks:  []*v1.DiskSpec{{Name: "a", SizeBytes: 1 << 30}},
			Cdroms: []*v1.CDROMSpec{{Name: "c"}}, Nics: []*v1.NICSpec{{Name: "n", Network: "lan", Mac: "52:54:00:00:00:0A"}},
		}
	}
	for _, c := range []struct {
		name    string
		change  func(*v1.VMSpec)
		live    string
		restart string
	}{
		{"nothing", func(*v1.VMSpec) {}, "", ""},
		{"power and words are no change", func(s *v1.VMSpec) { s.Power, s.Description = v1.Power_POWER_OFF, "x" }, "", ""},
		{"grow", func(s *v1.VMSpec) { s.Disks[0].SizeBytes = 2 << 30 }, "grow-disk a", ""},
		{"add", func(s *v1.VMSpec) { s.Disks = append(s.Disks, &v1.DiskSpec{Name: "b"}) }, "add-disk b", ""},
		{"remove", func(s *v1.VMSpec) { s.Disks = nil }, "remove-disk a", ""},
		{"bus", func(s *v1.VMSpec) { s.Disks[0].Bus = v1.DiskBus_DISK_BUS_VIRTIO_SCSI }, "", "spec.disks.a"},
		{"CD", func(s *v1.VMSpec) { s.Cdroms[0].Image = "iso" }, "change-cd c", ""},
		{"drive", func(s *v1.VMSpec) { s.Cdroms = nil }, "", "spec.cdroms.c"},
		{"link", func(s *v1.VMSpec) { s.Nics[0].LinkDown = true }, "link n", ""},
		{"network", func(s *v1.VMSpec) { s.Nics[0].Network = "dmz" }, "move-nic n", ""},
		{"the same MAC", func(s *v1.VMSpec) { s.Nics[0].Mac = "52:54:00:00:00:0a" }, "", ""},
		{"another MAC", func(s *v1.VMSpec) { s.Nics[0].Mac = "52:54:00:00:00:0b" }, "", "spec.nics.n"},
		{"NIC swap", func(s *v1.VMSpec) { s.Nics[0].Name = "m" }, "remove-nic n,add-nic m", ""},
		{"more CPUs", func(s *v1.VMSpec) { s.Cpus = 4 }, "cpus", ""},
		{"too many CPUs", func(s *v1.VMSpec) { s.Cpus = 5 }, "", "spec.cpus"},
		{"fewer CPUs", func(s *v1.VMSpec) { s.Cpus = 0 }, "", "spec.cpus"},
		{"more memory", func(s *v1.VMSpec) { s.MemoryBytes = 1 << 30 }, "memory", ""},
		{"less memory", func(s *v1.VMSpec) { s.MemoryBytes = 256 << 20 }, "memory", ""},
		{"too much memory", func(s *v1.VMSpec) { s.MemoryBytes = 3 << 30 }, "", "spec.memory_bytes"},
		{"odd memory", func(s *v1.VMSpec) { s.MemoryBytes = 513 << 20 }, "", "spec.memory_bytes"},
		{"kernel", func(s *v1.VMSpec) { s.KernelCmdline = "quiet" }, "", "spec.kernel_cmdline"},
		{"hardware", func(s *v1.VMSpec) { s.Hardware.CpuModel = "max" }, "", "spec.hardware"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			want := base()
			c.change(want)
			live, restart := drift(base(), want)
			if got := driftText(live); got != c.live {
				t.Errorf("live: %q, want %q", got, c.live)
			}
			if got := strings.Join(restart, ","); got != c.restart {
				t.Errorf("at the next start: %q, want %q", got, c.restart)
			}
		})
	}
	// A microvm has no slots: whatever changes its devices waits for a restart.
	micro := base()
	micro.Hardware.Machine = v1.MachineKind_MACHINE_KIND_MICROVM
	want := proto.CloneOf(micro)
	want.Disks, want.Nics = append(want.Disks, &v1.DiskSpec{Name: "b"}), nil
	if live, restart := drift(micro, want); len(live) != 0 || !slices.Equal(restart, []string{"spec.disks.b", "spec.nics.n"}) {
		t.Errorf("microvm: live %q, at the next start %q", driftText(live), restart)
	}
}

func TestPlaces(t *testing.T) {
	l := &local{}
	if a, b := l.place(placeDisk, "virtio-blk", "a"), l.place(placeDisk, "virtio-blk", "b"); a != 0 || b != 1 {
		t.Errorf("places %d and %d, want 0 and 1", a, b)
	}
	if s := l.place(placeDisk, "virtio-scsi", "s"); s != 0 {
		t.Errorf("another bus begins at %d", s)
	}
	l.unplace(placeDisk, "virtio-blk", "a")
	if b := l.place(placeDisk, "virtio-blk", "b"); b != 1 {
		t.Errorf("a disk moved to place %d when another went", b)
	}
	if c := l.place(placeDisk, "virtio-blk", "c"); c != 0 {
		t.Errorf("a free place is not used: %d", c)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, c := range map[string]Config{
		"no state":          {},
		"long run dir":      {StateDir: "/s", RunDir: "/" + strings.Repeat("x", 80)},
		"listen":            {StateDir: "/s", Listen: "nothing"},
		"manager":           {StateDir: "/s", Manager: "h1"},
		"uplink name":       {StateDir: "/s", Uplinks: []string{"../x"}},
		"uplink twice":      {StateDir: "/s", Uplinks: []string{"a", "a"}},
		"overlay address":   {StateDir: "/s", OverlayAddress: "10.0.0.1:4789"},
		"no overlay":        {StateDir: "/s", OverlayAddress: "0.0.0.0"},
		"datastore name":    {StateDir: "/s", Datastores: []DatastorePath{{Name: "A", Path: "/x"}}},
		"datastore no path": {StateDir: "/s", Datastores: []DatastorePath{{Name: "a"}}},
	} {
		if err := c.Validate(); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := Config{StateDir: "/var/lib/drover/host", Uplinks: []string{"eth1", "eth2"}, OverlayAddress: "192.0.2.1"}
	if err := good.Validate(); err != nil || good.Listen == "" || good.RunDir == "" || good.ShmDir == "" {
		t.Errorf("%+v: %v", good, err)
	}
}

func TestVMsFromTheWireStayInTheirDirectory(t *testing.T) {
	a := &agent{cfg: Config{StateDir: "/state"}}
	for _, uid := range []string{"", ".", "..", "../x", "a/b", "a\x00b", strings.Repeat("a", 65), "-a"} {
		if dir, err := a.vmDir(uid); err == nil {
			t.Errorf("uid %q becomes %s", uid, dir)
		}
	}
}

func TestJournal(t *testing.T) {
	m := &machine{dir: t.TempDir(), vm: &v1.VM{Meta: &v1.Meta{Name: "x"}}}
	e, err := m.beginOperation(entry{Operation: "1", Kind: "snapshot", Snapshot: "s"})
	if err != nil || e.Done || e.Again {
		t.Fatalf("%+v %v", e, err)
	}
	if e, _ = m.beginOperation(entry{Operation: "1", Kind: "snapshot", Snapshot: "s"}); !e.Again || e.Done {
		t.Errorf("begun again: %+v", e)
	}
	if _, err := m.beginOperation(entry{Operation: "1", Kind: "delete", Snapshot: "s"}); err == nil {
		t.Error("one ID for two operations was taken")
	}
	if err := m.endOperation("1", 42); err != nil {
		t.Fatal(err)
	}
	if e, _ = m.beginOperation(entry{Operation: "1", Kind: "snapshot", Snapshot: "s"}); !e.Done || e.Result != 42 {
		t.Errorf("done: %+v", e)
	}
	ran := 0
	for range 3 {
		if err := m.once("r", "reset", func() error { ran++; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if ran != 1 {
		t.Errorf("one operation ran %d times", ran)
	}
	if _, err := m.beginOperation(entry{Operation: "open", Kind: "revert"}); err != nil {
		t.Fatal(err)
	}
	for i := range 2 * journalLimit {
		if err := m.once(strings.Repeat("z", i+1), "reset", func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	j, err := m.journal()
	if err != nil || len(j.Entries) > journalLimit {
		t.Errorf("the journal has %d entries, %v", len(j.Entries), err)
	}
	if e, _ = m.beginOperation(entry{Operation: "open", Kind: "revert"}); !e.Again {
		t.Error("an operation that is not done was forgotten")
	}
}

// A revert that changed nothing yet is forgotten with its agent: the guest may have written since. One that did is carried
// through before anything else.
func TestRevertThatWasCutOff(t *testing.T) {
	m := &machine{dir: t.TempDir(), vm: &v1.VM{Meta: &v1.Meta{Name: "x"}}, local: &local{}}
	begun := func(op string) {
		t.Helper()
		if _, err := m.beginOperation(entry{Operation: op, Kind: kindRevert, Snapshot: "s"}); err != nil {
			t.Fatal(err)
		}
	}
	left := func() (ops []string) {
		t.Helper()
		j, err := m.journal()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range j.Entries {
			if !e.Done {
				ops = append(ops, e.Operation)
			}
		}
		return ops
	}
	begun("1")
	if err := m.mendOperations(t.Context()); err != nil || m.undone || len(left()) != 0 {
		t.Errorf("begun only: %v, undone %v, left %v", err, m.undone, left())
	}
	begun("2")
	if err := m.leaveRevert("2"); err != nil || m.undone || len(left()) != 0 {
		t.Errorf("failed before it changed anything: %v, undone %v, left %v", err, m.undone, left())
	}
	begun("3")
	if err := m.commitOperation("3"); err != nil {
		t.Fatal(err)
	}
	if err := m.leaveRevert("3"); err != nil || !m.undone || len(left()) != 1 {
		t.Errorf("failed half-way: %v, undone %v, left %v", err, m.undone, left())
	}
	m.undone = false // the next agent
	if err := m.mendOperations(t.Context()); err == nil || !m.undone || len(left()) != 1 {
		t.Errorf("cut off half-way, and its record is not to be read: %v, undone %v, left %v", err, m.undone, left())
	}
	if err := m.settledRevert(); err == nil {
		t.Error("a snapshot of disks that are half-way back was allowed")
	}
	begun("4")
	if err := m.endRevert("4"); err != nil || len(left()) != 0 {
		t.Errorf("another revert succeeded: %v, left %v", err, left())
	}
}

// What is wanted and can't be written down is tried again, and not acted upon.
func TestRecordThatCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	m := &machine{
		a: &agent{}, dir: dir, log: slog.New(slog.DiscardHandler), local: &local{Held: true},
		vm: &v1.VM{Meta: &v1.Meta{Name: "x"}}, held: false, unsaved: true,
	}
	if m.take(); !m.isUnsaved() || !m.local.Held {
		t.Fatalf("nothing could be written: unsaved %v, held on disk %v", m.isUnsaved(), m.local.Held)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if m.take(); m.isUnsaved() {
		t.Fatal("it could be written and was not")
	}
	if _, l, err := loadRecord(dir); err != nil || l.Held {
		t.Errorf("on disk: %+v, %v", l, err)
	}
}

// No datastore is opened inside the agent's own directories or inside another datastore, by whatever name.
func TestDatastoresStandApart(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	inside := filepath.Join(state, "vms", "x")
	if err := os.MkdirAll(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	link, free := filepath.Join(dir, "link"), filepath.Join(dir, "free")
	if err := errors.Join(os.Symlink(state, link), os.Mkdir(free, 0o700)); err != nil {
		t.Fatal(err)
	}
	s, err := openStores(&agent{cfg: Config{StateDir: state, RunDir: filepath.Join(dir, "run")}, log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, p := range []string{state, inside, link, filepath.Join(link, "vms"), filepath.Join(state, ownStore, "vms"), filepath.Join(free, "..", "state")} {
		if _, err := s.at(p); err == nil || !strings.Contains(err.Error(), "is inside") {
			t.Errorf("%s: %v", p, err)
		}
	}
	if _, err := s.at(free); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(inside); err != nil {
		t.Error(err)
	}
}

// After a revert older specs are from before it; but a VM that is to be deleted is, and a clone is cloned once.
func TestOlderWordsAfterARevert(t *testing.T) {
	now := &v1.VM{Meta: &v1.Meta{Name: "x", Generation: 9}, Spec: &v1.VMSpec{Cpus: 2}}
	m := &machine{vm: now, held: true, least: 9, wake: make(chan struct{}, 1), local: &local{Cloned: true}, dir: t.TempDir()}
	m.want(&v1.VM{Meta: &v1.Meta{Name: "x", Generation: 8}, Spec: &v1.VMSpec{Cpus: 1}}, true)
	if m.vm != now || m.unsaved {
		t.Errorf("took %v", m.vm)
	}
	m.want(&v1.VM{Meta: &v1.Meta{Name: "x", Generation: 8, DeleteTime: timestamppb.Now()}}, true)
	if m.vm.GetMeta().GetDeleteTime() == nil {
		t.Error("a deletion was not heard")
	}
	// Its agent is nil: that a clone was tried would be a panic.
	if err := m.provision(t.Context(), &v1.VM{Spec: &v1.VMSpec{CloneFrom: &v1.CloneSource{Vm: "y"}}}); err != nil {
		t.Error(err)
	}
}
