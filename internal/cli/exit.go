package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"drover/internal/cli/client"
	"drover/internal/cli/table"
	"drover/internal/resource"
	"drover/internal/rpc"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
)

// The exit codes. exitHelp documents them; exitOf is the only place where errors become one.
const (
	exitOK           = 0
	exitFailed       = 1
	exitUsage        = 2
	exitNotFound     = 3
	exitConflict     = 4
	exitPrecondition = 5
	exitDenied       = 6
	exitUnavailable  = 7
	exitInterrupted  = 130
)

const exitHelp = `Exit codes of all commands:

  0    done
  1    failed, for a reason that is none of those below
  2    usage: wrong flags or arguments, or a value that the manager refuses as invalid
  3    not found
  4    conflict: the name is taken, or someone else changed the object meanwhile
  5    precondition: not possible in the state that things are in, or nothing has room for it
  6    denied: not logged in, or not allowed
  7    unavailable: the manager or a host does not answer, or waiting took too long
  130  interrupted (Ctrl-C)

"drover vm exec" and "drover lab exec" end with the exit code of the program that they ran, if it ran.`

// usageError is a mistake in the command line.
type usageError struct {
	err error
	cmd *cobra.Command
}

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usage(format string, args ...any) error { return usageError{err: fmt.Errorf(format, args...)} }

// failure is an error whose exit code and hint are known.
type failure struct {
	code int
	err  error
	hint string
}

func (e *failure) Error() string { return e.err.Error() }
func (e *failure) Unwrap() error { return e.err }

// Exit ends the program with a code and prints nothing: the command has said all there is.
type Exit struct{ Code int }

func (e Exit) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

var exitByCode = map[resource.Code]int{
	resource.Internal:      exitFailed,
	resource.Invalid:       exitUsage,
	resource.NotFound:      exitNotFound,
	resource.Exists:        exitConflict,
	resource.Conflict:      exitConflict,
	resource.Precondition:  exitPrecondition,
	resource.Denied:        exitDenied,
	resource.Anonymous:     exitDenied,
	resource.Exhausted:     exitPrecondition,
	resource.Unavailable:   exitUnavailable,
	resource.Unimplemented: exitPrecondition,
}

// exitOf is an error's exit code.
func exitOf(err error) int {
	var (
		exit Exit
		use  usageError
		f    *failure
		ce   *connect.Error
		re   *resource.Error
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return exit.Code
	case errors.As(err, &f):
		return f.code
	case errors.As(err, &use):
		return exitUsage
	case errors.As(err, &ce):
		if ce.Code() == connect.CodeCanceled {
			return exitInterrupted
		}
		if errors.As(rpc.FromError(ce), &re) {
			return exitByCode[re.Code]
		}
	case errors.As(err, &re):
		return exitByCode[re.Code]
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ECONNREFUSED):
		return exitUnavailable
	}
	return exitFailed
}

// isCode reports whether an error of the API is of a code.
func isCode(err error, code connect.Code) bool { return err != nil && connect.CodeOf(err) == code }

// told is an error's text and hint for people.
func (a *App) told(err error) (text, hint string) {
	var ce *connect.Error
	var f *failure
	var use usageError
	text = err.Error()
	switch {
	case errors.As(err, &f):
		return text, f.hint
	case errors.As(err, &use):
		if use.cmd != nil {
			return text, use.cmd.CommandPath() + " --help shows how it is used"
		}
	case errors.As(err, &ce):
		prefix, _, _ := strings.Cut(text, ce.Error())
		text = prefix + ce.Message()
		if d := rpc.Detail(rpc.FromError(ce)); d != nil {
			text, hint = strings.TrimSuffix(text, "; "+d.GetRemedy()), d.GetRemedy()
			if strings.HasPrefix(hint, "log in") && a.client != nil && a.client.Target.Server != "" {
				hint = "log in: drover login --server " + a.client.Target.String()
			}
			return text, hint
		}
		return a.unreachable(ce, text)
	}
	return text, ""
}

// unreachable words the errors of a connection that did not come about.
func (a *App) unreachable(ce *connect.Error, text string) (string, string) {
	t := client.Target{}
	if a.client != nil {
		t = a.client.Target
	}
	switch code := ce.Code(); {
	case code == connect.CodeUnavailable && t.Socket != "" && (errors.Is(ce, fs.ErrNotExist) || errors.Is(ce, syscall.ECONNREFUSED)):
		return "no manager answers on this machine (" + t.Socket + ")",
			"start one with `drover up`, log in to another by `drover login --server https://HOST:7443`, or give --socket or --server"
	case code == connect.CodeUnavailable && t.Socket != "" && errors.Is(ce, fs.ErrPermission):
		return "may not open the manager's socket " + t.Socket, "run it as root, or as a member of group drover, or log in by `drover login --server https://HOST:7443`"
	case code == connect.CodeUnavailable:
		return "the manager at " + t.String() + " does not answer: " + text, ""
	case code == connect.CodeUnauthenticated:
		return text, "log in: drover login --server " + t.String()
	}
	return text, ""
}

// report prints an error and returns its exit code.
func (a *App) report(err error) int {
	code := exitOf(err)
	var exit Exit
	if err == nil || errors.As(err, &exit) {
		return code
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // only one that is itself a list
		code = exitOK
		for _, e := range many.Unwrap() {
			if c := a.report(e); code == exitOK {
				code = c
			}
		}
		return code
	}
	text, hint := a.told(err)
	if code == exitInterrupted {
		text, hint = "interrupted", ""
	}
	on := a.coloured(a.Err)
	for i, line := range strings.Split(text, "\n") {
		if i == 0 {
			line = table.Paint("drover:", table.Red, on) + " " + table.Clean(line)
		} else {
			line = "  " + table.Clean(line)
		}
		fmt.Fprintln(a.Err, line)
	}
	if hint != "" {
		fmt.Fprintln(a.Err, table.Paint("hint:", table.Yellow, on)+"   "+table.Clean(hint))
	}
	return code
}
