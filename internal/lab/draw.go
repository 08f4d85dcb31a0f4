package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/table"
	"drover/internal/cli/unit"
)

func parseDelay(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("delay %q: give a time with a unit, such as 20ms", s)
	}
	return d, nil
}

// drawTimeout bounds how long a status waits for a manager that may hang.
const drawTimeout = 10 * time.Second

// view is what a drawing shows. Hosts and VMs are missing when the manager does not answer; fault says why.
type view struct {
	lab    *Fleet
	status Status
	hosts  map[string]*v1.Host
	vms    map[string][]*v1.VM // by host
	info   *v1.Info
	fault  error
	colour bool
}

// Draw writes how the lab is: sites with their hosts and VMs, and the WAN between them.
func (f *Fleet) Draw(ctx context.Context, w io.Writer, colour bool) error {
	ctx, cancel := context.WithTimeout(ctx, drawTimeout)
	defer cancel()
	v := &view{lab: f, hosts: map[string]*v1.Host{}, vms: map[string][]*v1.VM{}, colour: colour}
	var err error
	if v.status, err = f.Status(ctx); err != nil {
		return err
	}
	v.fault = v.ask(ctx)
	_, err = io.WriteString(w, strings.Join(v.lines(), "\n")+"\n")
	return err
}

func (v *view) ask(ctx context.Context) (err error) {
	if v.info, err = v.lab.API.Manager.GetInfo(ctx, &v1.InfoRequest{}); err != nil {
		return err
	}
	hosts, err := v.lab.API.Host.List(ctx, &v1.ListRequest{PageSize: 1000})
	if err != nil {
		return err
	}
	for _, h := range hosts.GetHosts() {
		v.hosts[h.GetMeta().GetName()] = h
	}
	vms, err := v.lab.API.VM.List(ctx, &v1.ListRequest{PageSize: 1000})
	for _, vm := range vms.GetVms() {
		v.vms[vm.GetStatus().GetOwner()] = append(v.vms[vm.GetStatus().GetOwner()], vm)
	}
	return err
}

func (v *view) paint(s string, c table.Colour) string { return table.Paint(s, c, v.colour) }

func (v *view) lines() []string {
	l := v.lab
	out := []string{v.paint("lab "+l.Name(), table.Bold) + "   " + v.manager()}
	links := slices.Clone(v.status.Links)
	for i, s := range l.topo.Sites {
		if i == 0 || len(out) > 0 && !strings.HasPrefix(out[len(out)-1], "  ┃") {
			out = append(out, "")
		}
		out = append(out, v.site(s)...)
		if i+1 < len(l.topo.Sites) {
			// The link to the next site stands between the two; others come last.
			next := l.topo.Sites[i+1].Name
			if k := slices.IndexFunc(links, func(k LinkStatus) bool {
				return k.SiteA == s.Name && k.SiteB == next || k.SiteA == next && k.SiteB == s.Name
			}); k >= 0 {
				out = append(out, v.wan(links[k], true)...)
				links = slices.Delete(links, k, k+1)
			}
		}
	}
	for _, k := range links {
		out = append(out, "")
		out = append(out, v.wan(k, false)...)
	}
	return out
}

func (v *view) manager() string {
	n, err := v.lab.topo.Node(nodeManager)
	if err != nil {
		return ""
	}
	if v.fault != nil {
		return v.paint("the manager does not answer", table.Red) + ": " + table.Clean(firstLine(v.fault.Error()))
	}
	return fmt.Sprintf("manager %s at %s, %s", v.paint("ready", table.Green), net.JoinHostPort(n.Address.Addr().String(), managerPort), v.lab.Socket())
}

func (v *view) site(s SiteNet) []string {
	out := []string{fmt.Sprintf("%s   hosts %s, guests %s", v.paint("● "+s.Name, table.Bold), s.Management, s.Guests)}
	var rows [][]table.Cell // one table for the site, so that all columns meet
	hosts := v.lab.topo.Hosts(s.Name)
	var heads []string
	for i, n := range hosts {
		branch, below := "├─ ", "│  "
		if i == len(hosts)-1 {
			branch, below = "└─ ", "   "
		}
		heads = append(heads, branch)
		rows = append(rows, v.host(n))
		vms := v.vms[n.Name]
		for j, vm := range vms {
			twig := "├─ "
			if j == len(vms)-1 {
				twig = "└─ "
			}
			heads = append(heads, below+twig)
			rows = append(rows, v.vm(vm))
		}
	}
	t := table.Table{Headers: []string{"", "", "", ""}}
	for i, r := range rows {
		r[0].Text = heads[i] + r[0].Text
		t.Add(r...)
	}
	for _, line := range t.Lines(v.colour)[1:] {
		out = append(out, "  "+line)
	}
	return out
}

func (v *view) host(n Node) []table.Cell {
	h := v.hosts[n.Name]
	p, alive := v.lab.alive(n.Name)
	state := table.Cell{Text: unit.Word(h.GetStatus().GetPhase()), Colour: table.Yellow}
	switch {
	case !alive:
		state = table.Cell{Text: "agent down", Colour: table.Red}
	case h == nil:
		state.Text = "running"
	case h.GetStatus().GetPhase() == v1.HostPhase_HOST_PHASE_READY:
		state.Colour = table.Green
	case h.GetStatus().GetPhase() == v1.HostPhase_HOST_PHASE_UNREACHABLE:
		state.Colour = table.Red
	}
	what := n.Address.Addr().String()
	if alive {
		what += " pid " + strconv.Itoa(p.PID)
	}
	rest := ""
	if st := h.GetStatus(); st != nil {
		rest = fmt.Sprintf("%s, %d CPUs, %s of %s free", st.GetAccelerator().GetName(), st.GetCpus(), unit.Size(st.GetMemoryFreeBytes()), unit.Size(st.GetMemoryBytes()))
	}
	return []table.Cell{{Text: n.Name, Colour: table.Bold}, state, table.Text(what), {Text: rest, Colour: table.Dim}}
}

func (v *view) vm(vm *v1.VM) []table.Cell {
	st := vm.GetStatus()
	state := table.Cell{Text: unit.Word(st.GetPhase()), Colour: table.Yellow}
	switch st.GetPhase() {
	case v1.VMPhase_VM_PHASE_RUNNING:
		state.Colour = table.Green
	case v1.VMPhase_VM_PHASE_OFF:
		state.Colour = table.Dim
	case v1.VMPhase_VM_PHASE_CRASHED, v1.VMPhase_VM_PHASE_FAILED, v1.VMPhase_VM_PHASE_IO_ERROR:
		state.Colour = table.Red
	}
	var addrs []string
	for _, n := range vm.GetSpec().GetNics() {
		for _, l := range v.status.Leases {
			if strings.EqualFold(l.MAC, n.GetMac()) {
				addrs = append(addrs, l.Address.String())
			}
		}
	}
	from := vm.GetSpec().GetKernelImage()
	for _, d := range vm.GetSpec().GetDisks() {
		if from == "" {
			from = d.GetImage()
		}
	}
	rest := fmt.Sprintf("%d CPU, %s", vm.GetSpec().GetCpus(), unit.Size(vm.GetSpec().GetMemoryBytes()))
	if from != "" {
		rest += ", " + from
	}
	return []table.Cell{table.Text(vm.GetMeta().GetName()), state, table.Text(strings.Join(addrs, " ")), {Text: rest, Colour: table.Dim}}
}

// wan draws a link; between says that it stands between its two sites.
func (v *view) wan(k LinkStatus, between bool) []string {
	bar := ""
	if between {
		bar = "  ┃ "
	}
	state := wanState(k.WAN)
	out := []string{bar + "WAN " + k.Name + ": " + v.paint(state.Text, state.Colour)}
	t := table.Table{Headers: []string{"", "", "", ""}, Right: map[int]bool{1: true, 2: true}}
	t.Add(flow(k.SiteA, k.SiteB, k.AToB)...)
	t.Add(flow(k.SiteB, k.SiteA, k.BToA)...)
	for _, line := range t.Lines(v.colour)[1:] {
		out = append(out, bar+line)
	}
	if between {
		out = append(append([]string{"  ┃"}, out...), "  ┃")
	}
	return out
}

// flow is counters in words.
func flow(from, to string, p PipeCounters) []table.Cell {
	bad := table.Cell{Text: "none lost", Colour: table.Dim}
	if n := p.Lost + p.Dropped + p.Cut; n > 0 {
		bad = table.Cell{Text: fmt.Sprintf("%d lost, %d dropped, %d cut", p.Lost, p.Dropped, p.Cut), Colour: table.Yellow}
	}
	return []table.Cell{table.Text(from + " → " + to), table.Text(strconv.FormatUint(p.Packets, 10) + " packets"), table.Text(unit.Size(int64(p.Bytes))), bad}
}

// wanState is a link's parameters in words.
func wanState(w WAN) table.Cell {
	if w.Cut {
		return table.Cell{Text: "cut", Colour: table.Red}
	}
	delay := "no delay"
	if w.Delay > 0 {
		delay = w.Delay.String() + " each way"
	}
	if w.Jitter > 0 {
		delay += " ±" + w.Jitter.String()
	}
	loss := "no loss"
	if w.Loss > 0 {
		loss = strconv.FormatFloat(w.Loss*100, 'g', 3, 64) + "% loss"
	}
	band := "no limit of bandwidth"
	if w.Bandwidth > 0 {
		band = bits(w.Bandwidth)
	}
	return table.Cell{Text: delay + ", " + loss + ", " + band, Colour: table.Green}
}

func bits(n int64) string {
	for _, u := range []struct {
		n    int64
		word string
	}{{1e9, "Gbit/s"}, {1e6, "Mbit/s"}, {1e3, "kbit/s"}} {
		if n >= u.n {
			return strconv.FormatFloat(float64(n)/float64(u.n), 'f', -1, 64) + " " + u.word
		}
	}
	return strconv.FormatInt(n, 10) + " bit/s"
}

func counters(from, to string, p PipeCounters) []table.Cell {
	num := func(n uint64) table.Cell { return table.Text(strconv.FormatUint(n, 10)) }
	return []table.Cell{table.Text(from + " → " + to), num(p.Packets), table.Text(unit.Size(int64(p.Bytes))), num(p.Lost), num(p.Dropped + p.Cut)}
}
