package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/resource"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestParseDisk(t *testing.T) {
	for in, want := range map[string]*v1.DiskSpec{
		"10G": {SizeBytes: 10 << 30},
		"size=1.5G,image=debian,bus=virtio-scsi,datastore=fast,format=raw,name=root,boot=2,ro": {
			SizeBytes: 3 << 29, Image: "debian", Bus: v1.DiskBus_DISK_BUS_VIRTIO_SCSI, Datastore: "fast", Format: v1.DiskFormat_DISK_FORMAT_RAW, Name: "root", BootOrder: 2, ReadOnly: true},
		"10G,ro=no": {SizeBytes: 10 << 30},
	} {
		got, err := parseDisk("disk", in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
			t.Errorf("%q: %s", in, d)
		}
	}
	for in, want := range map[string]string{
		"": "size is empty", "10G,20G": `"20G" is not KEY=VALUE`, "size=1G,size=2G": "size is given twice", "size=": "size is empty", "colour=red": "there are name, size",
		"bus=ide": "is none of virtio-blk", "size=lots": "is not a size", "boot=x": "invalid syntax", "ro=perhaps": "neither yes nor no",
	} {
		if _, err := parseDisk("disk", in); err == nil || !strings.Contains(err.Error(), want) || exitOf(err) != exitUsage {
			t.Errorf("%q: %v; want %q", in, err, want)
		}
	}
}

func TestParseNIC(t *testing.T) {
	got, err := parseNIC("nic", "lan,adapter=e1000,mac=52:54:00:00:00:01,link=down,address=10.0.0.2/24,address=fd00::2/64,gateway=10.0.0.1")
	want := &v1.NICSpec{Network: "lan", Adapter: v1.NICAdapter_NIC_ADAPTER_E1000, Mac: "52:54:00:00:00:01", LinkDown: true, Addresses: []string{"10.0.0.2/24", "fd00::2/64"}, Gateways: []string{"10.0.0.1"}}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" || err != nil {
		t.Errorf("%v %s", err, d)
	}
	for _, in := range []string{"adapter=e1000", "network=lan,network=wan", "lan,link=sideways", "lan,adapter=token-ring"} {
		if _, err := parseNIC("nic", in); exitOf(err) != exitUsage {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func FuzzSpecs(f *testing.F) {
	f.Add("10G,image=a")
	f.Add("lan,mac=,")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := parseDisk("disk", s); err == nil && d.SizeBytes < 0 {
			t.Errorf("%q: size %d", s, d.SizeBytes)
		}
		if n, err := parseNIC("nic", s); err == nil && n.Network == "" {
			t.Errorf("%q: no network", s)
		}
	})
}

func TestImageName(t *testing.T) {
	for in, want := range map[string]string{
		"/srv/Debian_12.QCOW2.xz": "debian-12 false", "https://example.org/a/b/disk.img.zst?x=1": "disk true", "http://h/": " true", "x.tar.gz": "x false",
		strings.Repeat("a", 80) + ".iso": strings.Repeat("a", 63) + " false", "C:\\odd name.ova": "c-odd-name false",
	} {
		name, remote := imageName(in)
		if got := fmt.Sprint(name, " ", remote); got != want {
			t.Errorf("imageName(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestExitOf(t *testing.T) {
	for want, errs := range map[int][]error{
		exitOK:           {nil},
		exitFailed:       {errors.New("x"), connect.NewError(connect.CodeInternal, errors.New("x"))},
		exitUsage:        {usage("x"), connect.NewError(connect.CodeInvalidArgument, errors.New("x")), fmt.Errorf("name: %w", usage("x"))},
		exitNotFound:     {connect.NewError(connect.CodeNotFound, errors.New("x")), &resource.Error{Code: resource.NotFound}},
		exitConflict:     {connect.NewError(connect.CodeAlreadyExists, errors.New("x")), connect.NewError(connect.CodeAborted, errors.New("x"))},
		exitPrecondition: {connect.NewError(connect.CodeFailedPrecondition, errors.New("x")), connect.NewError(connect.CodeResourceExhausted, errors.New("x"))},
		exitDenied:       {connect.NewError(connect.CodePermissionDenied, errors.New("x")), connect.NewError(connect.CodeUnauthenticated, errors.New("x"))},
		exitUnavailable:  {connect.NewError(connect.CodeUnavailable, errors.New("x")), connect.NewError(connect.CodeDeadlineExceeded, errors.New("x")), context.DeadlineExceeded, syscall.ECONNREFUSED},
		exitInterrupted:  {context.Canceled, connect.NewError(connect.CodeCanceled, errors.New("x"))},
		42:               {Exit{42}},
	} {
		for _, err := range errs {
			if got := exitOf(err); got != want {
				t.Errorf("exitOf(%v) = %d; want %d", err, got, want)
			}
		}
	}
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		want string
	}{
		{&failure{code: 5, err: errors.New("no room\x1b[2J"), hint: "make some"}, 5, "drover: no room [2J\nhint:   make some\n"},
		{errors.Join(usage("a"), context.DeadlineExceeded), 2, "drover: a\ndrover: context deadline exceeded\n"},
		{errors.New("two\nlines"), 1, "drover: two\n  lines\n"},
		{Exit{3}, 3, ""},
		{context.Canceled, 130, "drover: interrupted\n"},
	} {
		a, out := bench(t, nil)
		if code := a.report(c.err); code != c.code || out.String() != c.want {
			t.Errorf("%v: code %d, %q; want %d, %q", c.err, code, out.String(), c.code, c.want)
		}
	}
}

func TestParseTime(t *testing.T) {
	for in, want := range map[string]time.Time{"90m": noon.Add(-90 * time.Minute), "2026-03-01T00:00:00Z": time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)} {
		got, err := parseTime("since", in, noon)
		if err != nil || !got.AsTime().Equal(want) {
			t.Errorf("%q: %v, %v", in, got.AsTime(), err)
		}
	}
	if _, err := parseTime("since", "yesterday", noon); exitOf(err) != exitUsage {
		t.Errorf("yesterday: %v", err)
	}
}

func TestPlainWriter(t *testing.T) {
	in := "a\x1b[31;1mb\x1b[0m\r\n\x1b]0;title\x07c\x1bP data\x1b\\d\x1b(Be\x07\x00\tf\x9bg ü"
	var whole, pieces bytes.Buffer
	if _, err := (&plainWriter{w: &whole}).Write([]byte(in)); err != nil {
		t.Fatal(err)
	}
	p := &plainWriter{w: &pieces}
	for i := range len(in) {
		if _, err := p.Write([]byte{in[i]}); err != nil {
			t.Fatal(err)
		}
	}
	want := "ab\ncde\tf\x9bg ü"
	if whole.String() != want || pieces.String() != want {
		t.Errorf("whole %q, in pieces %q; want %q", whole.String(), pieces.String(), want)
	}
}

func TestProgressLine(t *testing.T) {
	if got, want := progressLine("vm web", "starting\x1b", -1, 75*time.Second, 79), "vm web: starting 75s"; got != want {
		t.Errorf("%q; want %q", got, want)
	}
	if got, want := progressLine("image a", "convert", 0.5, time.Second, 79), "image a: convert [==========          ]  50% 1s"; got != want {
		t.Errorf("%q; want %q", got, want)
	}
	if got := progressLine(strings.Repeat("x", 100), "y", 2, time.Second, 50); len([]rune(got)) != 50 {
		t.Errorf("%q has %d columns", got, len([]rune(got)))
	}
}

func TestClip(t *testing.T) {
	if got, want := clip("\x1b[31mabc\x1b[0mdef", 4), "\x1b[31mabc\x1b[0md"; got != want {
		t.Errorf("%q; want %q", got, want)
	}
}

func TestRate(t *testing.T) {
	pt := func(s int64, v float64) *v1.Point {
		return &v1.Point{Time: &timestamppb.Timestamp{Seconds: s}, Mean: v}
	}
	if r, err := rate([]*v1.Point{pt(0, 10)}, []*v1.Point{pt(5, 20), pt(10, 60)}); err != nil || r != 5 {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := rate([]*v1.Point{pt(0, 10)}, []*v1.Point{pt(10, 5)}); err != nil || r != 0 {
		t.Errorf("a counter that began anew: %v, %v", r, err)
	}
	if _, err := rate([]*v1.Point{pt(0, 10)}, []*v1.Point{pt(0, 10)}); err == nil {
		t.Error("one point has a rate")
	}
}

func TestChangeDrives(t *testing.T) {
	drives := []*v1.CDROMSpec{{Name: "cdrom0", Image: "a"}, {Name: "cdrom1"}}
	got, err := changeDrives(drives, []string{"cdrom1=b", "cdrom0="})
	if err != nil || got[0].Image != "" || got[1].Image != "b" || drives[0].Image != "a" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := changeDrives(drives, []string{"dvd=x"}); err == nil || !strings.Contains(err.Error(), "cdrom0, cdrom1") {
		t.Errorf("%v", err)
	}
}

// TestEveryCommand: what can be run says what it does and shows an example; flags that are in the way of global ones are known.
func TestEveryCommand(t *testing.T) {
	a, _ := bench(t, nil)
	var walk func(c *cobra.Command)
	n := 0
	walk = func(c *cobra.Command) {
		n++
		path := c.CommandPath()
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: Short is %q", path, c.Short)
		}
		if c.Example == "" && c.Name() != "exit-codes" && !c.Hidden {
			t.Errorf("%s: no example", path)
		}
		for l := range strings.SplitSeq(c.Example, "\n") {
			if c.Example != "" && !strings.HasPrefix(l, "  ") {
				t.Errorf("%s: example %q is not indented", path, l)
			}
		}
		if c.Runnable() && c.Args == nil {
			t.Errorf("%s: takes any arguments", path)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(a.New())
	if n < 80 {
		t.Errorf("%d commands", n)
	}
}

// TestExample: the example reads without a fault, and in the order of need.
func TestExample(t *testing.T) {
	a, _ := bench(t, nil)
	docs, err := a.documents([]string{"../../examples/web.yaml"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range docs {
		got = append(got, d.Kind+"/"+d.Name)
	}
	if d := cmp.Diff([]string{"network/lan", "vm/web1", "vm/web2"}, got); d != "" {
		t.Error(d)
	}
}

// A guest learns of an address in its NIC's spec by a cloud-init seed: whoever gives one wants it.
func TestStaticAddressesBringASeed(t *testing.T) {
	for nic, want := range map[string]bool{"network=lan": false, "network=lan,address=192.0.2.9/24": true} {
		f := vmFlags{kernel: "tiny", nics: []string{nic}}
		s := &v1.VMSpec{}
		a := &App{}
		if err := f.nicsOf(a, s); err != nil {
			t.Fatal(err)
		}
		if err := f.cloudInitOf(a, s); err != nil {
			t.Fatal(err)
		}
		if s.GetCloudInit().GetEnabled() != want {
			t.Errorf("%s: seed %v, want %v", nic, s.GetCloudInit(), want)
		}
	}
}

// A host without a switch is not "in step", whatever it took in before.
func TestSwitchStateSaysWhatIsWrong(t *testing.T) {
	bad := []*v1.Condition{{Type: "SWITCH_UNAVAILABLE", Status: true}, {Type: "UPLINK_MISSING", Status: true}, {Type: "UPLINK_MISSING", Status: true}}
	for want, h := range map[string]*v1.HostSwitch{
		"in step":      {Status: &v1.SwitchStatus{Revision: 5}},
		"catching up":  {Status: &v1.SwitchStatus{Revision: 4}},
		"failed":       {Status: &v1.SwitchStatus{Revision: 5}, Conditions: bad},
		"unreachable":  {Status: &v1.SwitchStatus{Revision: 5}, Conditions: bad, Stale: true},
		"not heard of": {},
	} {
		if got := hostSwitchState(h, 5).Text; got != want {
			t.Errorf("state %q, want %q", got, want)
		}
	}
	if got := strings.Join(problemsOf(&v1.HostSwitch{Conditions: bad}), ","); got != "SWITCH_UNAVAILABLE,UPLINK_MISSING" {
		t.Errorf("problems: %s", got)
	}
}
