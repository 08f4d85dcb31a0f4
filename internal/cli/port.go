package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"
	rows "drover/internal/vswitch/table"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

func (a *App) portCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "port", Short: "Ports: VM NICs on the distributed switch, and what goes through them",
		Long:    "A port is a VM NIC's place on the switch; its name is VM/NIC. It comes and goes with the NIC: change its network, profile and cable by drover vm nic set.",
		Example: "  drover port list\n  drover port drops web/nic0\n  drover port capture web/nic0 -w - | tshark -r -\n  drover port trace web/nic0 'tcp 10.0.0.5 > 10.0.0.9:80'"}
	cmd.AddCommand(a.listCommand(portKind(), "port"), a.showCommand(portKind()), a.portDropsCommand(), a.portCaptureCommand(), a.portTraceCommand())
	return cmd
}

func (a *App) portDropsCommand() *cobra.Command {
	var reasons bool
	cmd := &cobra.Command{
		Use: "drops [VM/NIC…]", Short: "Frames that were dropped, by port and reason", Args: cobra.ArbitraryArgs, ValidArgsFunction: a.everyArg(portKind()),
		Example: "  drover port drops\n  drover port drops web/nic0\n  drover port drops --reasons",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if reasons {
				return a.printReasons()
			}
			var ports []*v1.Port
			if len(args) == 0 {
				items, _, err := portKind().all(ctx, c, &v1.ListRequest{}, 0)
				if err != nil {
					return err
				}
				for _, o := range items {
					ports = append(ports, o.(*v1.Port))
				}
			}
			for _, name := range args {
				p, err := c.Port.Get(ctx, &v1.GetRequest{Name: name})
				if err != nil {
					return err
				}
				ports = append(ports, p)
			}
			return a.printDrops(ports)
		}),
	}
	cmd.Flags().BoolVar(&reasons, "reasons", false, "list all reasons and what they mean")
	a.outputFlag(cmd)
	return cmd
}

func (a *App) printDrops(ports []*v1.Port) error {
	if !a.people() {
		return a.printMessage(&v1.PortList{Ports: ports, Total: int32(len(ports))})
	}
	t := table.Table{Headers: []string{"PORT", "REASON", "FRAMES", "BYTES", "MEANING"}, Right: map[int]bool{2: true, 3: true}}
	for _, p := range ports {
		drops := slices.Clone(p.GetStatus().GetCounters().GetDrops())
		slices.SortFunc(drops, func(x, y *v1.DropCounter) int { return cmp.Compare(y.GetPackets(), x.GetPackets()) })
		for _, d := range drops {
			t.Add(table.Text(p.GetMeta().GetName()), table.Cell{Text: d.GetReason(), Colour: table.Yellow}, table.Text(fmt.Sprint(d.GetPackets())),
				table.Text(unit.Size(int64(d.GetBytes()))), table.Text(reasonText(d.GetReason())))
		}
	}
	if len(t.Rows) == 0 {
		a.say("nothing was dropped")
		return nil
	}
	return t.Write(a.Out, a.coloured(a.Out))
}

func (a *App) printReasons() error {
	t := table.Table{Headers: []string{"REASON", "MEANING"}}
	for r := rows.DropNone + 1; r < rows.Reasons; r++ {
		if _, ok := rows.ReasonOf(r.String()); ok {
			t.Add(table.Text(r.String()), table.Text(r.Text()))
		}
	}
	return t.Write(a.Out, a.coloured(a.Out))
}

// reasonText is a reason in words; one of a newer manager has none here.
func reasonText(name string) string {
	r, _ := rows.ReasonOf(name)
	if r == rows.DropNone {
		return ""
	}
	return r.Text()
}

var capturePoints = []string{"from-guest", "accepted", "to-guest", "dropped"}

func (a *App) portCaptureCommand() *cobra.Command {
	var req v1.CapturePortRequest
	var file string
	var limit time.Duration
	cmd := &cobra.Command{
		Use: "capture VM/NIC", Short: "Write a port's frames to a pcapng file, or into Wireshark", Args: want("VM/NIC"), ValidArgsFunction: a.firstArg(portKind()),
		Long: `Copy a port's frames, on either side of its policy, into a pcapng file. Each point is an interface of the file:

  from-guest   as the guest sent it, before any rule
  accepted     what of that passed
  to-guest     what was delivered to the guest
  dropped      what was dropped, with the reason as the packet's comment

Capturing costs the port some speed and never a frame; frames that the reader is too slow for are counted and told. It ends after --time, --count or Ctrl-C.`,
		Example: "  drover port capture web/nic0 -w web.pcapng\n  drover port capture web/nic0 -w - | tshark -r -\n  drover port capture web/nic0 -w - --time 1h | wireshark -k -i -\n  drover port capture web/nic0 --points dropped -w drops.pcapng --count 100",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			for _, p := range req.GetPoints() {
				if !slices.Contains(capturePoints, p) {
					return usage("--points %s: there are %s", p, strings.Join(capturePoints, ", "))
				}
			}
			if file == "" {
				return usage("say where to write: -w FILE, or -w - for standard output")
			}
			if _, tty := terminal(a.Out); file == "-" && tty {
				return usage("-w -: a capture is no text for a terminal; give -w FILE, or pipe it into tshark -r -")
			}
			if limit < 0 || req.Count < 0 || req.SnapLength < 0 {
				return usage("--time, --count and --snaplen must not be negative")
			}
			req.Name = args[0]
			if limit != 0 {
				req.Time = durationpb.New(limit)
			}
			return a.capture(ctx, c, &req, file)
		}),
	}
	cmd.Flags().StringVarP(&file, "write", "w", "", "`FILE` to write to, - for standard output")
	cmd.Flags().StringSliceVar(&req.Points, "points", nil, "where to look: from-guest, accepted, to-guest, dropped (default all but accepted)")
	cmd.Flags().Int32Var(&req.SnapLength, "snaplen", 0, "bytes of each frame to keep (default 2048, the most)")
	cmd.Flags().Int64Var(&req.Count, "count", 0, "end after so many frames")
	cmd.Flags().DurationVar(&limit, "time", 0, "end after this time (default 1m, at most 1h)")
	register(cmd, "points", words(capturePoints...))
	return cmd
}

// capture writes what arrives until the stream or the user ends it. A file is there from the first bytes on.
func (a *App) capture(ctx context.Context, c *client.Client, req *v1.CapturePortRequest, file string) (err error) {
	s, err := c.Port.Capture(ctx, req)
	if err != nil {
		return err
	}
	var out io.Writer = a.Out
	close := func() error { return nil }
	var frames, lost int64
	err = each(s, nil, func(m *v1.CapturePortResponse) error {
		if file != "-" && frames == 0 && out == io.Writer(a.Out) {
			f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
			if err != nil {
				return err
			}
			out, close = f, f.Close
		}
		frames, lost = m.GetFrames(), m.GetLost()
		_, err := io.Copy(out, bytes.NewReader(m.GetData()))
		return err
	})
	if ctx.Err() != nil {
		err = nil // Ctrl-C is how a capture ends
	}
	err = errors.Join(err, close())
	if err == nil {
		where := file
		if file == "-" {
			where = "standard output"
		}
		a.say("%d frames written to %s, %d lost", frames, where, lost)
	}
	return err
}

func (a *App) portTraceCommand() *cobra.Command {
	var uplink, file string
	cmd := &cobra.Command{
		Use: "trace VM/NIC PACKET", Short: "Say step by step what the switch would do with a packet, and why",
		Long: `Say step by step what the switch would do with a packet from a guest (or, with --uplink, from the physical network), and why. Nothing is sent. The rules are applied to the tables
as the host's datapath holds them, and the datapath itself is asked with the same frame: "confirmed" means that it agrees.

PACKET is a description; see docs/guide/trace.md for all words:

  arp who-has 10.0.0.1                     icmp 10.0.0.5 > 10.0.0.9
  tcp 10.0.0.5 > 10.0.0.9:80 syn           udp 10.0.0.5:68 > 255.255.255.255:67
  from 52:54:00:aa:bb:cc arp reply 10.0.0.1 is-at 52:54:00:aa:bb:cc
  dhcp offer · bpdu · nd ra · vrrp · vlan 10 icmp 10.0.0.5 > 10.0.0.9`,
		Example: "  drover port trace web/nic0 'tcp 10.0.0.5 > 10.0.0.9:80 syn'\n  drover port trace --uplink h1/up0 'to 52:54:00:aa:bb:cc icmp 10.0.0.1 > 10.0.0.5'\n  drover port trace web/nic0 --frame frame.hex",
		Args:    cobra.ArbitraryArgs, ValidArgsFunction: a.firstArg(portKind()),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			req := &v1.TracePortRequest{Uplink: uplink}
			if uplink == "" {
				if len(args) == 0 {
					return usage("say which port (VM/NIC), or --uplink HOST/DEVICE")
				}
				req.Name, args = args[0], args[1:]
			}
			req.Describe = strings.Join(args, " ")
			if file != "" {
				data, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				if req.Frame, err = frameOf(data); err != nil {
					return usage("--frame %s: %v", file, err)
				}
			}
			if (req.Describe == "") == (len(req.Frame) == 0) {
				return usage("give a description of the packet, or --frame FILE")
			}
			r, err := c.Port.Trace(ctx, req)
			if err != nil {
				return err
			}
			return a.printTrace(r)
		}),
	}
	cmd.Flags().StringVar(&uplink, "uplink", "", "the packet comes in by this uplink, `HOST/DEVICE`")
	cmd.Flags().StringVar(&file, "frame", "", "`FILE` with the frame from its Ethernet header on, as bytes or hexadecimal digits")
	a.outputFlag(cmd)
	return cmd
}

// frameOf reads a frame as bytes, or as hexadecimal digits with white space and colons.
func frameOf(data []byte) ([]byte, error) {
	text := strings.NewReplacer(" ", "", "\n", "", "\t", "", "\r", "", ":", "").Replace(string(data))
	if b, err := hex.DecodeString(text); err == nil {
		data = b
	}
	if len(data) < 14 || len(data) > 65535 {
		return nil, fmt.Errorf("%d bytes are no Ethernet frame; it has 14 to 65535", len(data))
	}
	return data, nil
}

func (a *App) printTrace(r *v1.TracePortResponse) error {
	if !a.people() {
		return a.printMessage(r)
	}
	colour := a.coloured(a.Out)
	if r.GetFrame() != "" {
		fmt.Fprintln(a.Out, table.Clean(r.GetFrame()))
	}
	for _, s := range r.GetSteps() {
		mark, c := "✓", table.Green
		if !s.GetPassed() {
			mark, c = "✗", table.Red
		}
		fmt.Fprintf(a.Out, "  %s %-12s %s\n", table.Paint(mark, c, colour), table.Clean(s.GetStage()), table.Clean(s.GetText()))
	}
	verdict, c := r.GetVerdict(), table.Green
	if verdict == "DROPPED" {
		verdict, c = "DROPPED: "+r.GetReason()+", "+reasonText(r.GetReason()), table.Red
	}
	if len(r.GetOutputs()) > 0 {
		verdict += " to " + strings.Join(r.GetOutputs(), ", ")
	}
	told := "; not tried in the datapath"
	if r.GetConfirmed() {
		told = "; the datapath agrees"
	}
	_, err := fmt.Fprintf(a.Out, "%s%s\n", table.Paint(table.Clean(verdict), c, colour), told)
	return err
}
