package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	v1 "drover/api/drover/v1"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// stretchedName is the network of the switch's act: one segment on a VLAN in each site and between the sites.
const stretchedName = "stretched"

// stretched shows the distributed switch: one segment in two sites, and what a bad neighbour on it can't do.
func (d *demo) stretched() error {
	d.act("One switch over both sites, and a bad neighbour on it")
	ctx, cancel := context.WithTimeout(d.ctx, demoTimeout)
	defer cancel()
	_, err := d.f.API.Network.Create(ctx, &v1.CreateNetworkRequest{Network: &v1.Network{Meta: &v1.Meta{Name: stretchedName}, Spec: &v1.NetworkSpec{
		Description: "one segment in both sites", Physical: &v1.PhysicalSegment{Vlan: 30}, Overlay: &v1.Overlay{}, Profile: "secure", Prefixes: []string{"192.0.2.0/24"},
	}}})
	if err != nil && connect.CodeOf(err) != connect.CodeAlreadyExists {
		return err
	}
	d.say("network %s: VLAN 30 in each site, VXLAN between them; its ports follow the profile secure", stretchedName)
	guests := []struct{ name, site, address string }{{"app-east", "east", "192.0.2.1"}, {"app-west", "west", "192.0.2.2"}, {"evil", "east", "192.0.2.66"}}
	_, err = d.step("VMs app-east, app-west and evil on it", func(note func(string)) error {
		for _, g := range guests {
			spec := &v1.VMSpec{
				KernelImage: "tiny", Cpus: 1, MemoryBytes: 128 << 20, Description: "guest on the stretched segment",
				Nics:      []*v1.NICSpec{{Name: "eth0", Network: stretchedName, Addresses: []string{g.address + "/24"}}},
				CloudInit: &v1.CloudInit{Enabled: true, Hostname: g.name},
			}
			if _, err := d.ensureVM(ctx, g.name, g.site, spec); err != nil {
				return err
			}
		}
		for _, g := range guests {
			note("waiting for " + g.name)
			if _, err := d.f.AwaitVM(ctx, g.name, Phase(v1.VMPhase_VM_PHASE_RUNNING)); err != nil {
				return err
			}
		}
		note("waiting for an answer across the sites")
		return retry(ctx, func() error {
			_, err := d.exec(ctx, "app-east", "/bin/busybox", "ping", "-c", "1", "-W", "1", "192.0.2.2")
			return err
		})
	})
	if err != nil {
		return err
	}
	if err := d.pingAcross(ctx); err != nil {
		return err
	}
	for _, f := range []func(context.Context) error{d.floodMACs, d.spoofARP, d.captureAndTrace} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return nil
}

// pingAcross quotes a ping from one site to the other.
func (d *demo) pingAcross(ctx context.Context) error {
	said, err := d.exec(ctx, "app-east", "/bin/busybox", "ping", "-c", "3", "-q", "192.0.2.2")
	if err != nil {
		return err
	}
	if _, line, ok := strings.Cut(said, "round-trip "); ok {
		d.say("app-east to app-west, 192.0.2.2, on the same segment: round trip %s", strings.TrimSpace(line))
	}
	return nil
}

// port is a port's state and its drops of one reason.
func (d *demo) port(ctx context.Context, name, reason string) (p *v1.Port, dropped uint64, err error) {
	if p, err = d.f.API.Port.Get(ctx, &v1.GetRequest{Name: name}); err != nil {
		return nil, 0, err
	}
	for _, c := range p.GetStatus().GetCounters().GetDrops() {
		if c.GetReason() == reason {
			dropped = c.GetPackets()
		}
	}
	return p, dropped, nil
}

// awaitDrops waits until a port tells at least so many drops of a reason.
func (d *demo) awaitDrops(ctx context.Context, name, reason string, least uint64) (dropped uint64, err error) {
	err = retry(ctx, func() error {
		var err error
		if _, dropped, err = d.port(ctx, name, reason); err == nil && dropped < least {
			err = fmt.Errorf("port %s has dropped %d frames for %s", name, dropped, reason)
		}
		return err
	})
	return dropped, err
}

// send has a guest put frames on its NIC by hand, and says how many its driver took.
func (d *demo) send(ctx context.Context, vm, query string) (sent uint64, err error) {
	said, err := d.exec(ctx, vm, "/bin/busybox", "wget", "-q", "-O", "-", "http://127.0.0.1/frame/send?"+query)
	if err != nil {
		return 0, err
	}
	var told struct{ Sent uint64 }
	if err := json.Unmarshal([]byte(said), &told); err != nil {
		return 0, fmt.Errorf("VM %s says %q: %w", vm, said, err)
	}
	return told.Sent, nil
}

func bare(mac string) string { return strings.ReplaceAll(mac, ":", "") }

// floodMACs sends what fills the table of a switch that learns, and then floods everything to everybody.
func (d *demo) floodMACs(ctx context.Context) error {
	evil, before, err := d.port(ctx, "evil/eth0", "SOURCE_MAC")
	if err != nil {
		return err
	}
	var sent, dropped uint64
	took, err := d.step("evil sends up to 100,000 frames, each from another MAC, to overflow the switch", func(func(string)) error {
		if sent, err = d.send(ctx, "evil", "count=100000&random=src&hex="+strings.Repeat("f", 12)+bare(evil.GetSpec().GetMac())+"88b5"+strings.Repeat("00", 46)); err != nil {
			return err
		}
		dropped, err = d.awaitDrops(ctx, "evil/eth0", "SOURCE_MAC", before+sent)
		return err
	})
	if err != nil {
		return err
	}
	d.say("%d sent and %d dropped at its own port (SOURCE_MAC) in %s; nothing is learned, so nothing overflows", sent, dropped-before, span(took))
	return d.pingAcross(ctx)
}

// spoofARP claims another's address.
func (d *demo) spoofARP(ctx context.Context) error {
	evil, before, err := d.port(ctx, "evil/eth0", "ARP")
	if err != nil {
		return err
	}
	mac := bare(evil.GetSpec().GetMac())
	_, err = d.step("evil tells everybody: 192.0.2.1 is me", func(func(string)) error {
		if _, err := d.send(ctx, "evil", "count=5&hex="+strings.Repeat("f", 12)+mac+"08060001080006040002"+mac+"c0000201"+strings.Repeat("f", 12)+"c0000201"+strings.Repeat("00", 18)); err != nil {
			return err
		}
		_, err := d.awaitDrops(ctx, "evil/eth0", "ARP", before+1)
		return err
	})
	if err != nil {
		return err
	}
	list, err := d.f.API.Event.List(ctx, &v1.ListEventsRequest{Kind: "port", Name: "evil/eth0"})
	if err != nil {
		return err
	}
	d.say("drover event list --kind port --name evil/eth0")
	for i, e := range list.GetEvents() {
		if i < 3 {
			d.quote(strings.NewReplacer("; ", ";\n", ". If ", ".\nIf ").Replace(e.GetMessage()))
		}
	}
	return nil
}

// captureAndTrace looks at a port, and asks what the switch would do.
func (d *demo) captureAndTrace(ctx context.Context) error {
	var frames int64
	var file bytes.Buffer
	_, err := d.step("capture of app-east's port while it pings", func(func(string)) error {
		s, err := d.f.API.Port.Capture(ctx, &v1.CapturePortRequest{Name: "app-east/eth0", Count: 6, Time: durationpb.New(20 * time.Second)})
		if err != nil {
			return err
		}
		defer s.Close()
		pinged := make(chan error, 1)
		go func() { pinged <- d.pingQuietly(ctx) }()
		for s.Receive() {
			frames = s.Msg().GetFrames()
			file.Write(s.Msg().GetData())
		}
		if err := s.Err(); err != nil && !errors.Is(err, io.EOF) {
			return errors.Join(err, <-pinged)
		}
		return <-pinged
	})
	if err != nil {
		return err
	}
	d.say("%d frames, a pcapng file of %d bytes: drover port capture app-east/eth0 -w - | tshark -r -", frames, file.Len())
	for _, ask := range []struct{ port, packet string }{
		{"app-east/eth0", "icmp 192.0.2.1 > 192.0.2.2"}, {"evil/eth0", "arp reply 192.0.2.1 is-at 52:54:00:00:00:66"},
	} {
		r, err := d.f.API.Port.Trace(ctx, &v1.TracePortRequest{Name: ask.port, Describe: ask.packet})
		if err != nil {
			return err
		}
		d.say("drover port trace %s %q", ask.port, ask.packet)
		var lines []string
		for _, st := range r.GetSteps() {
			mark := "✓"
			if !st.GetPassed() {
				mark = "✗"
			}
			lines = append(lines, fmt.Sprintf("%s %-12s %s", mark, st.GetStage(), st.GetText()))
		}
		lines = append(lines, strings.TrimSpace(r.GetVerdict()+" "+r.GetReason()+" "+strings.Join(r.GetOutputs(), ", ")))
		d.quote(strings.Join(lines, "\n"))
	}
	return nil
}

func (d *demo) pingQuietly(ctx context.Context) error {
	_, err := d.exec(ctx, "app-east", "/bin/busybox", "ping", "-c", "6", "-i", "0.5", "-q", "192.0.2.2")
	return err
}
