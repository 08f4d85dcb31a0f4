package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// runMember is one etcd of an ordinary cluster, in a process of its own. arg: NAME DIR CLIENT-URL PEER-URL CLUSTER.
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
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(slog.New(slog.NewTextHandler(os.Stderr, nil)), slog.LevelError+1))
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	<-e.Server.ReadyNotify()
	fmt.Println("ready", e.Server.MemberID())
	return <-e.Err()
}

type member struct {
	cmd  *exec.Cmd
	args string
	out  *bufio.Scanner
	url  string
}

func (m *member) start(t *testing.T) {
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

func (m *member) ready(t *testing.T) {
	t.Helper()
	if !m.out.Scan() || !strings.HasPrefix(m.out.Text(), "ready") {
		t.Fatalf("member %s did not start: %q", m.args, m.out.Text())
	}
}

func (m *member) kill(t *testing.T) {
	t.Helper()
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	_ = m.cmd.Wait() // killed
}

// startCluster starts n members on loopback, each a process.
func startCluster(t *testing.T, n int) []*member {
	t.Helper()
	dir := t.TempDir()
	ports := freePorts(t, 2*n)
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("m%d=http://127.0.0.1:%d", i, ports[2*i+1]))
	}
	ms := make([]*member, n)
	for i := range ms {
		ms[i] = &member{url: fmt.Sprintf("http://127.0.0.1:%d", ports[2*i])}
		ms[i].args = fmt.Sprintf("m%d %s %s http://127.0.0.1:%d %s", i, filepath.Join(dir, fmt.Sprint(i)), ms[i].url, ports[2*i+1], strings.Join(list, ","))
		ms[i].start(t)
		t.Cleanup(func() { ms[i].kill(t) })
	}
	for _, m := range ms {
		m.ready(t)
	}
	return ms
}

func freePorts(t *testing.T, n int) []int {
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

// leaderOf asks the cluster which member leads.
func leaderOf(t *testing.T, s *Store, ms []*member) int {
	t.Helper()
	for i, m := range ms {
		st, err := s.client.Status(testContext(t), m.url)
		if err != nil {
			t.Fatal(err)
		}
		if st.Leader == st.Header.MemberId {
			return i
		}
	}
	t.Fatal("the cluster has no leader")
	return 0
}

func TestExternalClusterLosesItsLeader(t *testing.T) {
	ctx := testContext(t)
	ms := startCluster(t, 3)
	var urls []string
	for _, m := range ms {
		urls = append(urls, m.url)
	}
	s, err := Open(ctx, Options{Endpoints: urls, Logger: testLog(t), RequestTimeout: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	vms := vmsOf(t, s)
	cache := runCache(t, vms, defaultRing)
	sub := cache.Subscribe(0)
	next(t, sub)

	var last int64
	write := func(i int) {
		t.Helper()
		vm := newVM(fmt.Sprintf("vm-%03d", i), int32(i))
		for {
			err := vms.Create(ctx, vm)
			if err == nil {
				last = vm.Meta.Revision
				return
			}
			t.Logf("write %d: %v", i, err)
			// Unavailable means unknown: it may be there already.
			if got, gerr := vms.Get(ctx, vm.Meta.Name); gerr == nil && got.Spec.Cpus == int32(i) {
				last = got.Meta.Revision
				return
			}
			if !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
				t.Fatalf("write %d: %v", i, err)
			}
		}
	}
	const before, after = 20, 60
	for i := range before {
		write(i)
	}
	dead := leaderOf(t, s, ms)
	ms[dead].kill(t)
	killed := time.Now()
	for i := before; i < after; i++ {
		write(i)
		if i == before {
			t.Logf("the first write after the leader's death took %v", time.Since(killed))
		}
	}
	if err := cache.WaitRevision(ctx, last); err != nil {
		t.Fatal(err)
	}
	if cache.Len() != after {
		t.Errorf("the cache has %d objects of %d", cache.Len(), after)
	}
	seen := 0
	for seen < after {
		for _, e := range next(t, sub) {
			if want := fmt.Sprintf("vm-%03d", seen); e.Type != Put || e.Name != want {
				t.Fatalf("the follower got %v of %s, want %s", e.Type, e.Name, want)
			}
			seen++
		}
	}

	// A second death takes the majority: requests fail in time and say so; nothing is lost when one is back.
	other := (dead + 1) % 3
	ms[other].kill(t)
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	wantErr(t, vms.Create(short, newVM("lost", 1)), ErrUnavailable)
	ms[other].start(t)
	ms[other].ready(t)
	write(after)
	if err := cache.WaitRevision(ctx, last); err != nil {
		t.Fatal(err)
	}
	if _, ok := cache.Get(fmt.Sprintf("vm-%03d", after)); !ok {
		t.Error("the watch did not go on")
	}

	// A backup of the cluster becomes the state of an embedded server.
	dir := t.TempDir()
	file, err := os.Create(filepath.Join(dir, "backup"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Backup(ctx, file, time.Unix(0, 0))
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(ctx, file.Name(), filepath.Join(dir, "state"), testLog(t)); err != nil {
		t.Fatal(err)
	}
	// The write that failed without a majority may have come through after all.
	live, _, err := vms.List(ctx)
	if err != nil || len(live) < after+1 {
		t.Fatalf("the cluster has %d objects, %v", len(live), err)
	}
	moved, _, err := vmsOf(t, openTest(t, filepath.Join(dir, "state"))).List(ctx)
	if err != nil || len(moved) != len(live) {
		t.Errorf("moved to an embedded server: %d objects, %v; want %d", len(moved), err, len(live))
	}
}
