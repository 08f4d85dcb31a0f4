package host

import (
	"context"
	"errors"
	"sync"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/qemu"
	"drover/internal/qga"
)

// How often the guest agent is asked. It is asked at once when its port opens; where it has never answered, rarely.
const (
	guestFirst  = 2 * time.Second
	guestSlow   = 60 * time.Second
	guestAnswer = 5 * time.Second
)

// guestWatch asks the guest agent of one process what the guest is.
type guestWatch struct {
	client *qga.Client
	wake   chan struct{}
	done   chan struct{}
	end    context.CancelFunc

	mu     sync.Mutex
	status *v1.GuestStatus
	byMAC  map[string][]string
}

func (g *guestWatch) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// holdGuest begins to watch the guest of a process.
func (m *machine) holdGuest(p *qemu.Process) {
	conn := p.Agent()
	if conn == nil {
		return
	}
	ctx, end := context.WithCancel(m.a.life)
	g := &guestWatch{
		client: qga.New(conn, qga.Options{Timeout: guestAnswer}), wake: make(chan struct{}, 1), done: make(chan struct{}), end: end,
	}
	m.mu.Lock()
	m.guest = g
	m.mu.Unlock()
	go m.watchGuest(ctx, g)
}

func (m *machine) releaseGuest() {
	m.mu.Lock()
	g := m.guest
	m.guest = nil
	m.mu.Unlock()
	if g == nil {
		return
	}
	g.end()
	if err := g.client.Close(); err != nil {
		m.log.Debug("guest agent's port not closed", "err", err)
	}
	<-g.done
}

// watchGuest asks at once when the guest opens or closes the port, soon after that until there are addresses, and
// slowly after.
func (m *machine) watchGuest(ctx context.Context, g *guestWatch) {
	defer close(g.done)
	wait := backoff{min: guestFirst, max: guestSlow}
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
			wait.reset()
		case <-m.a.clk.After(wait.next()):
		}
		before := len(g.addresses())
		changed := g.ask(ctx)
		if changed {
			m.poke()
		}
		if len(g.addresses()) > 0 && before == 0 {
			wait.last = guestSlow
		}
	}
}

// ask reports whether anything is different from before.
func (g *guestWatch) ask(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, guestAnswer)
	defer cancel()
	st := &v1.GuestStatus{}
	byMAC := map[string][]string{}
	if err := g.client.Ping(ctx); err == nil {
		st.Agent = true
		if os, err := g.client.OSInfo(ctx); err == nil {
			st.Os, st.Kernel = os.PrettyName, os.KernelRelease
		}
		if name, err := g.client.HostName(ctx); err == nil {
			st.Hostname = name
		}
		if nics, err := g.client.NetworkInterfaces(ctx); err == nil {
			for _, n := range nics {
				for _, a := range n.Addrs {
					if a.Addr().IsLoopback() {
						continue
					}
					byMAC[n.MAC] = append(byMAC[n.MAC], a.String())
					if !a.Addr().IsLinkLocalUnicast() {
						st.Addresses = append(st.Addresses, a.Addr().String())
					}
				}
			}
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !st.Agent && g.status == nil {
		return false
	}
	if !st.Agent && !errors.Is(ctx.Err(), context.Canceled) {
		// What was known last stays, but that nobody answers is told.
		old := clone(g.status)
		old.Agent = false
		st, byMAC = old, g.byMAC
	}
	changed := !equal(st, g.status) || len(byMAC) != len(g.byMAC)
	for mac, addrs := range byMAC {
		changed = changed || len(addrs) != len(g.byMAC[mac])
	}
	g.status, g.byMAC = st, byMAC
	return changed
}

func (g *guestWatch) addresses() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.status.GetAddresses()
}

func (m *machine) watchOfGuest() *guestWatch {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guest
}

func (m *machine) guestStatus() *v1.GuestStatus {
	g := m.watchOfGuest()
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.status == nil {
		return nil
	}
	return clone(g.status)
}

// guestAddresses puts what the guest says of its interfaces to the NICs with the same MAC.
func (m *machine) guestAddresses(nics []*v1.NICStatus) {
	g := m.watchOfGuest()
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range nics {
		n.Addresses = append([]string(nil), g.byMAC[n.GetMac()]...)
	}
}

// askAgent asks the guest to shut down, the second rung of a graceful stop. That there is no agent is no failure: the
// power is cut when the time is up.
func (m *machine) askAgent(ctx context.Context) {
	m.stage = stopAgent
	g := m.watchOfGuest()
	if g == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, guestAnswer)
	defer cancel()
	if err := g.client.Shutdown(ctx, qga.PowerDown); err != nil {
		m.log.Info("the guest agent was asked to shut down and did not answer", "err", err)
	}
}
