package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"syscall"
	"time"

	"drover/internal/host"
	"drover/internal/httpapi"
	"drover/internal/manager"
)

// roleConfig is what a role inside this program is started with.
type roleConfig struct {
	State, Run, Manager, Join, Profile string
	Verbose                            bool
}

const managerAddress = "127.0.0.1:7443"

// self runs this program again in a role.
func self(ctx context.Context, role, dir, arg string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), envRole+"="+role, envDir+"="+dir, envArg+"="+arg)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// start runs a role: of the binary under test, or inside this program.
func (o *options) start(ctx context.Context, role string, c roleConfig, env ...string) (*process, error) {
	c.Profile, c.Verbose = o.profile, o.verbose
	arg, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	cmd := self(ctx, role, "", string(arg))
	if o.drover != "" {
		args := []string{role, "--state", c.State, "--listen", managerAddress}
		if role == "host" {
			args = []string{role, "--state", c.State, "--run", c.Run, "--manager", c.Manager, "--join", c.Join,
				"--listen", "127.0.0.1:7444", "--network", "lan="}
		}
		cmd = exec.CommandContext(ctx, o.drover, args...)
		cmd.Env = os.Environ()
		if o.verbose {
			cmd.Stderr = os.Stderr
		}
	}
	cmd.Env = append(cmd.Env, env...)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the %s: %w", role, err)
	}
	p := &process{role: role, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// process is a role that runs.
type process struct {
	role string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and err is set
	err  error
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// watch ends the context of what needs the process when it ends by itself.
func (p *process) watch(stop context.CancelCauseFunc) {
	<-p.done
	stop(fmt.Errorf("the %s ended: %v (its log is shown with -v)", p.role, p.err))
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	<-p.done
}

func (c *roleConfig) read(role string) (*slog.Logger, error) {
	if err := json.Unmarshal([]byte(os.Getenv(envArg)), c); err != nil {
		return nil, err
	}
	if c.Profile != "" {
		hear := make(chan os.Signal, 1)
		signal.Notify(hear, syscall.SIGUSR1)
		go func() {
			for range hear {
				c.writeProfile(role)
			}
		}()
	}
	level := slog.LevelWarn
	if c.Verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("role", role), nil
}

func (c *roleConfig) writeProfile(role string) {
	f, err := os.Create(filepath.Join(c.Profile, role+".heap"))
	if err == nil {
		defer f.Close()
		err = pprof.WriteHeapProfile(f)
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Fprintf(os.Stderr, "%s: MB: heap live at the last collection's end and since %.1f, in use %.1f, idle and kept %.1f; stacks %.1f; the runtime's own %.1f; %d goroutines\n",
			role, mb(m.HeapAlloc), mb(m.HeapInuse), mb(m.HeapIdle-m.HeapReleased), mb(m.StackInuse),
			mb(m.MSpanInuse+m.MCacheInuse+m.BuckHashSys+m.GCSys+m.OtherSys), runtime.NumGoroutine())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "profile:", err)
	}
}

func managerRole(ctx context.Context) error {
	var c roleConfig
	log, err := c.read("manager")
	if err != nil {
		return err
	}
	return httpapi.Run(ctx, manager.Config{StateDir: c.State, Listen: managerAddress, Version: "bench", Logger: log}, nil)
}

func hostRole(ctx context.Context) error {
	var c roleConfig
	log, err := c.read("host")
	if err != nil {
		return err
	}
	return host.Run(ctx, host.Config{
		StateDir: c.State, RunDir: c.Run, Manager: c.Manager, JoinToken: c.Join, Listen: "127.0.0.1:7444", Hostname: "h1",
		Version: "bench", Log: log,
	})
}

func mb(n uint64) float64 { return float64(n) / 1e6 }
