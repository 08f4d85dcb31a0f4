package lab

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain",
		"\x1b[H\x1b[J\x1b[1;1H  Booting `Debian'": "Booting `Debian'",
		"\x1b[0;32m  OK  \x1b[0m] Started":        "OK  ] Started",
		"\x1b]0;title\x07x":                       "0;title x",
		"\x1bcreset\u202eevil":                    "resetevil",
		"\x1b[":                                   "[",
	} {
		if got := plain(in); got != want {
			t.Errorf("plain(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for in, want := range map[time.Duration]string{
		1500 * time.Microsecond: "1.5 ms", 230 * time.Millisecond: "230 ms", 3940 * time.Millisecond: "3.9 s", 154 * time.Second: "2 min 34 s",
	} {
		if got := span(in); got != want {
			t.Errorf("span(%v) = %q, want %q", in, got, want)
		}
	}
}

func TestWANInWords(t *testing.T) {
	for _, c := range []struct {
		w    WAN
		want string
	}{
		{WAN{}, "no delay, no loss, no limit of bandwidth"},
		{WAN{Delay: 20 * time.Millisecond, Jitter: time.Millisecond, Loss: 0.005, Bandwidth: 1_500_000}, "20ms each way ±1ms, 0.5% loss, 1.5 Mbit/s"},
		{WAN{Delay: time.Second, Cut: true}, "cut"},
	} {
		if got := wanState(c.w).Text; got != c.want {
			t.Errorf("%+v is %q, want %q", c.w, got, c.want)
		}
	}
}

// What is no terminal gets whole lines without colours and without moving the cursor.
func TestTellerOnAFile(t *testing.T) {
	var out bytes.Buffer
	tell := newTeller(&out, false)
	tell.act("One")
	if _, err := tell.step("a step", func(note func(string)) error { note("half"); return nil }); err != nil {
		t.Fatal(err)
	}
	fail := errors.New("no")
	if _, err := tell.step("another", func(func(string)) error { return fail }); !errors.Is(err, fail) {
		t.Errorf("the step's error is %v", err)
	}
	tell.quote("first\x1b[31m\nsecond " + strings.Repeat("x", 200))
	got := out.String()
	for _, want := range []string{"── 1. One ──", " ✔ a step ", " ✘ another ", "   │ first\n", "   │ second xxx"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %q", want, got)
		}
	}
	if strings.ContainsAny(got, "\x1b\r") {
		t.Errorf("control characters in %q", got)
	}
	for line := range strings.Lines(got) {
		if n := len([]rune(line)); n > tellWidth+1 {
			t.Errorf("a line of %d columns: %q", n, line)
		}
	}
}

// Every command has a short help, and an example unless it is hidden.
func TestCommandsExplainThemselves(t *testing.T) {
	for _, c := range Command().Commands() {
		if c.Short == "" || c.Example == "" && !c.Hidden {
			t.Errorf("lab %s: short %q, example %q", c.Name(), c.Short, c.Example)
		}
	}
}

func TestWANFlags(t *testing.T) {
	parse := func(args ...string) (WANChange, error) {
		var w wanFlags
		cmd := &cobra.Command{}
		w.add(cmd)
		must(t, cmd.ParseFlags(args))
		return w.change(cmd)
	}
	ch, err := parse("--delay", "20ms", "--loss", "1%", "--bandwidth", "100M")
	must(t, err)
	if w, want := ch.apply(WAN{Jitter: time.Second}), (WAN{Delay: 20 * time.Millisecond, Jitter: time.Second, Loss: 0.01, Bandwidth: 1e8}); w != want {
		t.Errorf("the WAN becomes %+v, want %+v", w, want)
	}
	for _, bad := range [][]string{{"--delay", "20"}, {"--loss", "2"}, {"--bandwidth", "fast"}, {"--jitter", "-"}} {
		if ch, err := parse(bad...); err == nil {
			t.Errorf("%v is taken as %+v", bad, ch)
		}
	}
}
