package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/cli/client"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

// connectBody reads code and message of an error in Connect's JSON; code is 0 if it is none.
func connectBody(b []byte) (connect.Code, string) {
	var e struct{ Code, Message string }
	if json.Unmarshal(b, &e) != nil || e.Code == "" {
		return 0, ""
	}
	var c connect.Code
	if c.UnmarshalText([]byte(e.Code)) != nil {
		return 0, ""
	}
	return c, e.Message
}

// maxStdin is what the API takes for a program's input.
const maxStdin = 1 << 20

func (a *App) vmExecCommand() *cobra.Command {
	var env []string
	var timeout time.Duration
	var input bool
	cmd := &cobra.Command{
		Use: "exec NAME -- PROGRAM [ARG…]", Short: "Run a program in a guest, through its agent", Args: want("NAME", "PROGRAM", "[ARG…]"), ValidArgsFunction: a.firstArg(vmKind()),
		Long:    "Run a program in the guest through the guest agent, print its output, and end with its exit code. There is no shell between: use sh -c for one.",
		Example: "  drover vm exec web -- uptime\n  drover vm exec web -- sh -c 'ip -br addr; df -h'\n  echo hello | drover vm exec web --stdin -- cat",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			req := &v1.ExecRequest{Name: args[0], Path: args[1], Args: args[2:], Env: env}
			if timeout != 0 {
				req.Timeout = durationpb.New(timeout)
			}
			if input {
				b, err := io.ReadAll(io.LimitReader(a.In, maxStdin+1))
				if err != nil {
					return fmt.Errorf("standard input: %w", err)
				}
				if len(b) > maxStdin {
					return usage("standard input is longer than 1 MiB")
				}
				req.Stdin = b
			}
			res, err := c.VM.Exec(ctx, req)
			if err != nil {
				return err
			}
			_, oerr := a.Out.Write(res.GetStdout())
			_, eerr := a.Err.Write(res.GetStderr())
			if err := errors.Join(oerr, eerr); err != nil {
				return err
			}
			if res.GetTruncated() {
				a.say("drover: the output was longer and is cut")
			}
			switch {
			case res.GetSignal() != 0:
				return Exit{128 + int(res.GetSignal())}
			case res.GetExitCode() != 0:
				return Exit{int(res.GetExitCode()) & 0xff}
			}
			return nil
		}),
	}
	cmd.Flags().StringArrayVar(&env, "env", nil, "environment variable `KEY=VALUE` (repeatable)")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "how long it may run (default 30s, at most 10m)")
	cmd.Flags().BoolVar(&input, "stdin", false, "give it standard input, at most 1 MiB")
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; put -- before the program if that is for it", err), cmd}
	})
	return cmd
}

func (a *App) vmScreenshotCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "screenshot NAME", Short: "Save a picture of a VM's screen", Args: want("NAME"), ValidArgsFunction: a.firstArg(vmKind()),
		Example: "  drover vm screenshot web\n  drover vm screenshot web --file - > web.png",
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			res, err := c.VM.Screenshot(ctx, &v1.VMActionRequest{Name: args[0]})
			if err != nil {
				return err
			}
			if len(res.GetPng()) == 0 {
				return errNoReply
			}
			if file == "-" {
				if _, tty := terminal(a.Out); tty {
					return usage("--file -: a picture is not for a terminal; send it to a file")
				}
				_, err = a.Out.Write(res.GetPng())
				return err
			}
			if file == "" {
				file = args[0] + ".png"
			}
			if err := os.WriteFile(file, res.GetPng(), 0o644); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Out, file)
			return err
		}),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file to write (default NAME.png; - is standard output)")
	return cmd
}
