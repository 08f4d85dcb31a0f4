package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// joinOVS starts an Open vSwitch of our own in the pair's namespace, with the userspace datapath (this kernel may have no other) and segmentation
// offload, without which it would drop what guests leave uncut.
func (b *bench) joinOVS(p *pair) error {
	dir, err := os.MkdirTemp(b.dir, "ovs")
	if err != nil {
		return err
	}
	db, sock := filepath.Join(dir, "conf.db"), "unix:"+filepath.Join(dir, "db.sock")
	if err := run(p.sw, "ovsdb-tool", "create", db, "/usr/share/openvswitch/vswitch.ovsschema"); err != nil {
		return err
	}
	if err := b.daemon(p, dir, "ovsdb-server", db, "--remote=p"+sock, "--unixctl="+filepath.Join(dir, "db.ctl")); err != nil {
		return err
	}
	vsctl := func(args ...string) error {
		return run(p.sw, "ovs-vsctl", append([]string{"--db=" + sock, "--timeout=10"}, args...)...)
	}
	err = vsctl("--no-wait", "init", "--", "set", "Open_vSwitch", ".", "other_config:userspace-tso-enable=true")
	if err != nil {
		return err
	}
	if err := b.daemon(p, dir, "ovs-vswitchd", sock, "--unixctl="+filepath.Join(dir, "switch.ctl")); err != nil {
		return err
	}
	err = vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "--", "add-port", "br0", p.a.port, "--", "add-port", "br0", p.b.port)
	if err != nil {
		return err
	}
	// A port that could not be opened is an error in its row only.
	out, err := exec.CommandContext(b.ctx, "ovs-vsctl", "--db="+sock, "--bare", "--columns=error", "list", "interface").Output()
	if err != nil {
		return err
	}
	for _, c := range out {
		if c != '\n' && c != ' ' {
			return fmt.Errorf("open vswitch: %s", out)
		}
	}
	return nil
}

// daemon starts one of Open vSwitch's and ends it with the pair.
func (b *bench) daemon(p *pair, dir, name string, args ...string) error {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(name, append(args, "--no-chdir")...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+dir, "OVS_DBDIR="+dir, "OVS_LOGDIR="+dir, "OVS_SYSCONFDIR="+dir, "GOGC=")
	if err := p.sw.Start(cmd); err != nil {
		return fmt.Errorf("start %s (package openvswitch-switch): %w", name, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	p.later(func() error {
		err := cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
			return nil
		case <-time.After(5 * time.Second):
			err = errors.Join(err, cmd.Process.Kill())
			<-done
			return err
		}
	})
	// Both open their control socket when they are ready to be asked.
	ctl := "db.ctl"
	if name == "ovs-vswitchd" {
		ctl = "switch.ctl"
	}
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(filepath.Join(dir, ctl)); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case err := <-done:
			done <- err
			b, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%s ended: %v: %s", name, err, b)
		case <-ctx.Done():
			return fmt.Errorf("%s has not opened %s: %w", name, ctl, context.Cause(ctx))
		}
	}
}
