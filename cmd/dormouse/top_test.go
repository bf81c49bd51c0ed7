package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
)

// topGuests are one controller in each state, and one that runs natively.
func topGuests(now time.Time) []plane.Status {
	at := func(d time.Duration) *time.Time { at := now.Add(d); return &at }
	return []plane.Status{
		{Name: "asleep-long", State: plane.Asleep, Wakes: 1, LastWake: at(-time.Hour), LastWakeReason: "start"},
		{Name: "asleep-short", State: plane.Asleep, Wakes: 5, WakesLastMinute: 2, LastWake: at(-10 * time.Second),
			LastWakeReason: "ADDED pods default/\x1b[2J", NextTimer: at(5 * time.Minute), WrittenBytes: 4096},
		{Name: "cold", State: plane.Cold},
		{Name: "ended", State: plane.Failed, Wakes: 1, LastWake: at(-time.Minute), LastWakeReason: "timer"},
		{Name: "kube-scheduler", State: plane.Native},
		{Name: "runs", State: plane.Awake, Wakes: 7, WakesLastMinute: 1, LastWake: at(-time.Second), LastWakeReason: "timer", ResidentBytes: 3 << 20},
		{Name: "warm", State: plane.Warm, Wakes: 2, LastWake: at(0), LastWakeReason: "ADDED deployments.apps default/web", ResidentBytes: 1 << 20, WrittenBytes: 2 << 20},
	}
}

func TestTopView(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	got := strings.Join(newTopView(topGuests(now), now).lines(6), "\n")
	want := `12:00:00   1 awake, 1 warm, 2 asleep, 1 cold, 1 failed, 1 native
resident 4.0MiB   wakes 3 in the last minute, 16 in all   snapshots written 2.0MiB

NAME           STATE    RESIDENT   WAKES/MIN   NEXT TIMER   LAST WAKE   REASON
runs           awake    3.0MiB     1           -            1s ago      timer
warm           warm     1.0MiB     0           -            0s ago      ADDED deployments.apps default/web
ended          failed   0          0           -            60s ago     timer
asleep-short   asleep   0          2           in 5m        10s ago     ADDED pods default/?[2J
asleep-long    asleep   0          0           -            60m ago     start
cold           cold     0          0           -            -           -`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTopFitsTheScreen(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	v := newTopView(topGuests(now), now)
	strip := strings.NewReplacer(toTop, "", clearLine, "", clearBelow, "", inverse, "", bold, "", plain, "")
	for _, size := range []struct{ columns, rows int }{{200, 50}, {200, 10}, {80, 9}, {20, 5}, {10, 4}, {1, 1}} {
		lines := strings.Split(strip.Replace(v.screen(size.columns, size.rows)), "\r\n")
		if len(lines) != min(size.rows, 10) {
			t.Errorf("%v: %d lines", size, len(lines))
		}
		for _, line := range lines {
			if len(line) > size.columns || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' }) {
				t.Errorf("%v: %q", size, line)
			}
		}
	}
	if got := v.screen(80, 8); !strings.HasSuffix(got, "and 3 more"+clearLine+clearBelow) {
		t.Errorf("nothing is said of what is left out: %q", got)
	}
	if got := v.screen(80, 8); strings.Contains(got, "cold ") {
		t.Errorf("a row is shown that has no room: %q", got)
	}
	v.trouble = "asking the server: \x1b[31mno"
	if got := v.screen(80, 24); !strings.Contains(got, bold+"not up to date: asking the server: ?[31mno"+plain) {
		t.Errorf("no trouble is shown: %q", got)
	}
}

// topServer answers as a server with one guest, until it is broken.
func topServer(t *testing.T) (kubeconfig string, broken *atomic.Bool) {
	broken = &atomic.Bool{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, `{"controllers":[{"name":"sleeper","state":"asleep","wakes":4}]}`)
	}))
	t.Cleanup(srv.Close)
	kubeconfig = filepath.Join(t.TempDir(), "config")
	content := fmt.Sprintf(`{"kind":"Config","apiVersion":"v1","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":%q}}]}`, srv.URL)
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig, broken
}

func TestTopOnce(t *testing.T) {
	kubeconfig, broken := topServer(t)
	for _, tc := range []struct {
		broken         bool
		args           string
		code           int
		stdout, stderr string
	}{
		{false, "top", 0, "sleeper   asleep", ""},
		{false, "top --once", 0, "sleeper   asleep", ""},
		{false, "top --interval 1ms", 1, "", "dormouse: --interval 1ms: at least 100ms\n"},
		{false, "top all", 1, "", "dormouse: unexpected argument \"all\"; see \"dormouse wasm top --help\"\n"},
		{true, "top", 1, "", "dormouse: the server answers 503 Service Unavailable: out of order\n"},
	} {
		broken.Store(tc.broken)
		var stdout, stderr bytes.Buffer
		args := append([]string{"dormouse", "wasm", "--kubeconfig", kubeconfig}, strings.Fields(tc.args)...)
		if code := doMain(args, nil, &stdout, &stderr); code != tc.code || !strings.Contains(stdout.String(), tc.stdout) || stderr.String() != tc.stderr {
			t.Errorf("%s: %d\n%s\n%s", tc.args, code, stdout.String(), stderr.String())
		}
		if strings.Contains(stdout.String(), "\x1b") {
			t.Errorf("%s controls a terminal that is none: %q", tc.args, stdout.String())
		}
	}
}

// TestTopOnATerminal looks for a while, through a failure of the server, until Ctrl-C.
func TestTopOnATerminal(t *testing.T) {
	kubeconfig, broken := topServer(t)
	master, terminal := openTerminal(t)
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 120}); err != nil {
		t.Fatal(err)
	}
	screen := make(chan string)
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := master.Read(buf)
			if err != nil { // all that had it open have closed it
				return
			}
			select {
			case screen <- string(buf[:n]):
			case <-t.Context().Done():
				return
			}
		}
	}()
	var seen string
	await := func(text string) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for !strings.Contains(seen, text) {
			select {
			case more := <-screen:
				seen += more
			case <-deadline:
				t.Fatalf("no %q on the screen: %q", text, seen)
			}
		}
		seen = seen[strings.Index(seen, text)+len(text):]
	}
	ended := make(chan int, 1)
	var stderr bytes.Buffer
	go func() {
		ended <- doMain([]string{"dormouse", "wasm", "top", "--interval=100ms", "--kubeconfig=" + kubeconfig}, nil, terminal, &stderr)
	}()
	await(enterScreen)
	await("sleeper")
	await(toTop)
	await("sleeper")
	broken.Store(true)
	await("not up to date: the server answers 503")
	await("sleeper")
	broken.Store(false)
	await(toTop)
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	await(leaveScreen)
	if code := <-ended; code != 0 || stderr.String() != "" {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}

// openTerminal makes a pseudo-terminal.
func openTerminal(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return master, terminal
}
