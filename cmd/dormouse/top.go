package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
)

// minInterval is the shortest time between two looks. More often than this nobody can read, and asking costs the
// server more than it does itself.
const minInterval = 100 * time.Millisecond

// What a terminal understands (ECMA-48, and xterm's alternate screen).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // a screen of its own, no cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	toTop       = "\x1b[H"
	clearLine   = "\x1b[K" // what is right of the cursor
	clearBelow  = "\x1b[J"
	inverse     = "\x1b[7m"
	bold        = "\x1b[1m"
	plain       = "\x1b[m"
)

func newWasmTopCommand(w *wasmClient) *cobra.Command {
	var once bool
	var interval time.Duration
	cmd := &cobra.Command{Use: "top", Short: "Show who is awake and why, until Ctrl-C", Args: noArguments,
		Long: "Show who is awake and why, with the controllers in memory first, then those that woke last.\n" +
			"On a terminal the view is drawn anew until Ctrl-C, otherwise it is printed once.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < minInterval {
				return fmt.Errorf("--interval %s: at least %s", interval, minInterval)
			}
			size := terminalSize(cmd.OutOrStdout())
			if once || size == nil {
				return w.printTop(cmd.Context(), cmd.OutOrStdout())
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			return w.liveTop(ctx, cmd.OutOrStdout(), size, interval)
		}}
	cmd.Flags().BoolVar(&once, "once", false, "print the view once, also on a terminal")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time between two looks")
	return cmd
}

// terminalSize returns what tells the size of the terminal that out is; nil if it is none.
func terminalSize(out io.Writer) func() (columns, rows int) {
	file, ok := out.(*os.File)
	if !ok {
		return nil
	}
	if _, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ); err != nil {
		return nil
	}
	return func() (columns, rows int) {
		size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
		if err != nil || size.Col == 0 || size.Row == 0 { // a serial line does not know
			return 80, 24
		}
		return int(size.Col), int(size.Row)
	}
}

// printTop prints the view once.
func (w *wasmClient) printTop(ctx context.Context, out io.Writer) error {
	controllers, err := w.controllers(ctx)
	if err != nil {
		return err
	}
	view := newTopView(controllers, time.Now())
	for _, line := range view.lines(len(view.guests)) {
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	return nil
}

// liveTop draws the view again and again until ctx is done. A server that does not answer any more is waited for; the
// view then says so.
func (w *wasmClient) liveTop(ctx context.Context, out io.Writer, size func() (columns, rows int), interval time.Duration) (err error) {
	controllers, err := w.controllers(ctx)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(out, enterScreen); err != nil {
		return err
	}
	defer func() {
		_, leaveErr := io.WriteString(out, leaveScreen)
		err = errors.Join(err, leaveErr)
	}()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	view := newTopView(controllers, time.Now())
	for {
		columns, rows := size()
		if _, err := io.WriteString(out, view.screen(columns, rows)); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		// A server that hangs must not keep Ctrl-C from working, nor be asked twice at a time.
		controllers, err := w.controllers(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			view.trouble = oneLine(err)
		default:
			view = newTopView(controllers, time.Now())
		}
	}
}

// topView is one look at the plane.
type topView struct {
	at      time.Time
	guests  []plane.Status // as they are shown
	native  int            // controllers that are no guests
	trouble string         // why it could not be looked again
}

func newTopView(controllers []plane.Status, at time.Time) *topView {
	v := &topView{at: at}
	for _, c := range controllers {
		if c.State == plane.Native {
			v.native++
		} else {
			v.guests = append(v.guests, c)
		}
	}
	slices.SortStableFunc(v.guests, func(a, b plane.Status) int {
		return cmp.Or(cmp.Compare(topRank(a.State), topRank(b.State)), lastWake(b).Compare(lastWake(a)))
	})
	return v
}

// topRank says which states come first: those that use memory or need attention.
func topRank(s plane.State) int {
	if k := slices.Index([]plane.State{plane.Awake, plane.Warm, plane.Failed}, s); k >= 0 {
		return k
	}
	return 3
}

func lastWake(s plane.Status) time.Time {
	if s.LastWake == nil {
		return time.Time{}
	}
	return *s.LastWake
}

// headerLines are how many lines come before the row of column names.
const headerLines = 3

// lines are the view as text: totals, an empty line, the names of the columns, and a row for each of the first guests,
// shown of them. The columns are as wide as these need.
func (v *topView) lines(shown int) []string {
	states := map[plane.State]int{}
	var sum plane.Status
	for _, g := range v.guests {
		states[g.State]++
		sum.ResidentBytes += g.ResidentBytes
		sum.Wakes += g.Wakes
		sum.WakesLastMinute += g.WakesLastMinute
		sum.WrittenBytes += g.WrittenBytes
	}
	var count []string
	for _, s := range []plane.State{plane.Awake, plane.Warm, plane.Asleep, plane.Cold, plane.Failed} {
		if states[s] > 0 || s == plane.Awake || s == plane.Asleep {
			count = append(count, fmt.Sprintf("%d %s", states[s], s))
		}
	}
	if v.native > 0 {
		count = append(count, fmt.Sprintf("%d native", v.native))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s   %s\n", v.at.Format(time.TimeOnly), strings.Join(count, ", "))
	fmt.Fprintf(&b, "resident %s   wakes %d in the last minute, %d in all   snapshots written %s\n\n",
		bytesText(sum.ResidentBytes), sum.WakesLastMinute, sum.Wakes, bytesText(sum.WrittenBytes))
	t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATE\tRESIDENT\tWAKES/MIN\tNEXT TIMER\tLAST WAKE\tREASON")
	for _, g := range v.guests[:shown] {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", g.Name, g.State, bytesText(g.ResidentBytes), g.WakesLastMinute,
			until(g.NextTimer, v.at), ago(g.LastWake, v.at), dash(printable(g.LastWakeReason)))
	}
	t.Flush() // into memory
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

// screen is what draws the view over the one before, cut to the size of the terminal.
func (v *topView) screen(columns, rows int) string {
	shown, room := len(v.guests), rows-headerLines-1
	if shown > room {
		shown = max(room-1, 0) // the last line says how many there are besides
	}
	lines := v.lines(shown)
	if v.trouble != "" {
		lines[headerLines-1] = "not up to date: " + printable(v.trouble)
	}
	if hidden := len(v.guests) - shown; hidden > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", hidden))
	}
	lines = lines[:min(len(lines), rows)]
	var b strings.Builder
	b.WriteString(toTop)
	for k, line := range lines {
		if k > 0 {
			b.WriteString("\r\n")
		}
		if runes := []rune(line); len(runes) > columns {
			line = string(runes[:columns])
		}
		switch g := k - headerLines - 1; {
		case k == headerLines:
			line = inverse + line + plain
		case k == headerLines-1 && v.trouble != "", g >= 0 && g < shown && topRank(v.guests[g].State) < 3:
			line = bold + line + plain
		}
		b.WriteString(line + clearLine)
	}
	b.WriteString(clearBelow)
	return b.String()
}
