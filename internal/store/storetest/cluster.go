package storetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// envMember has the arguments of a member: NAME DIR CLIENT-URL PEER-URL CLUSTER.
const envMember = "DROVER_TEST_STORE_MEMBER"

// MaybeMember is called first by TestMain. In a process that is to be a member it never returns.
func MaybeMember() {
	arg := os.Getenv(envMember)
	if arg == "" {
		return
	}
	fmt.Fprintln(os.Stderr, runMember(arg))
	os.Exit(1)
}

func runMember(arg string) error {
	f := strings.Fields(arg)
	client, err := url.Parse(f[2])
	if err != nil {
		return err
	}
	peer, err := url.Parse(f[3])
	if err != nil {
		return err
	}
	c := embed.NewConfig()
	c.Name, c.Dir, c.InitialCluster = f[0], f[1], f[4]
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	c.UnsafeNoFsync = true
	c.TickMs, c.ElectionMs = 50, 500
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	<-e.Server.ReadyNotify()
	fmt.Println("ready", e.Server.MemberID())
	return <-e.Err()
}

// Member is one etcd of a cluster.
type Member struct {
	// URL is where clients reach it.
	URL  string
	cmd  *exec.Cmd
	args string
	out  *bufio.Scanner
}

// Start begins its process, the first time or again.
func (m *Member) Start(t testing.TB) {
	t.Helper()
	m.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])
	m.cmd.Env = append(os.Environ(), envMember+"="+m.args)
	m.cmd.Stderr = os.Stderr
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.out = bufio.NewScanner(out)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// Ready waits until it takes part in the cluster.
func (m *Member) Ready(t testing.TB) {
	t.Helper()
	if !m.out.Scan() || !strings.HasPrefix(m.out.Text(), "ready") {
		t.Fatalf("member %s did not start: %q", m.args, m.out.Text())
	}
}

// Kill ends it as a power cut would.
func (m *Member) Kill(t testing.TB) {
	t.Helper()
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	_ = m.cmd.Wait() // killed
}

// StartCluster starts n members on loopback, each a process, until the test ends.
func StartCluster(t testing.TB, n int) []*Member {
	t.Helper()
	dir := t.TempDir()
	ports := FreePorts(t, 2*n)
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("m%d=http://127.0.0.1:%d", i, ports[2*i+1]))
	}
	ms := make([]*Member, n)
	for i := range ms {
		ms[i] = &Member{URL: fmt.Sprintf("http://127.0.0.1:%d", ports[2*i])}
		ms[i].args = fmt.Sprintf("m%d %s %s http://127.0.0.1:%d %s", i, filepath.Join(dir, fmt.Sprint(i)), ms[i].URL, ports[2*i+1], strings.Join(list, ","))
		ms[i].Start(t)
		t.Cleanup(func() { ms[i].Kill(t) })
	}
	for _, m := range ms {
		m.Ready(t)
	}
	return ms
}

// FreePorts are n TCP ports of loopback that nothing listens on.
func FreePorts(t testing.TB, n int) []int {
	t.Helper()
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports
}
