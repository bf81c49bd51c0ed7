package runtime_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bytecodealliance/wasmtime-go/v39"
	"golang.org/x/sys/unix"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime/runtimetest"
)

// host answers a guest. Time stands still in it unless a test moves it.
type host struct {
	t        *testing.T
	now      time.Duration
	linger   time.Duration
	requests []*abi.Request
	log      []string
	mailbox  *runtime.Mailbox
}

func (h *host) Request(b []byte) uint32 {
	r, err := abi.DecodeRequest(b)
	if err != nil {
		h.t.Error(err)
		return abi.ErrFormat
	}
	h.requests = append(h.requests, r)
	return abi.OK
}
func (h *host) Cancel(uint32)                              {}
func (h *host) Log(line string)                            { h.log = append(h.log, line) }
func (h *host) Clock() (wall, monotonic time.Duration)     { return h.now, h.now }
func (h *host) Random(b []byte)                            { clear(b) }
func (h *host) Linger(time.Duration) time.Duration         { return h.linger }
func (h *host) say(kind abi.Kind, stream uint32, p []byte) { h.mailbox.Push(kind, stream, p) }
func (h *host) config() runtime.Config {
	return runtime.Config{Host: h, Mailbox: h.mailbox, Run: 10 * time.Second, Memory: 64 << 20}
}

// restored is config for an instance with so many bytes of memory.
func (h *host) restored(size int64) runtime.Config {
	c := h.config()
	c.Size = size
	return c
}

func newHost(t *testing.T) *host {
	return &host{t: t, now: abi.BakeClock + time.Hour, mailbox: runtime.NewMailbox(func() {})}
}

// goCode is the plane's test module.
var goCode = sync.OnceValues(func() (*runtime.Code, error) { return runtimetest.Compile("../plane/testdata/guest") })

// instantiate makes a guest of the Go module.
func instantiate(t *testing.T, h *host) *runtime.Instance {
	t.Helper()
	code, err := goCode()
	if err != nil {
		t.Fatal(err)
	}
	i, err := code.Instantiate(h.config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	return i
}

// watText is a module in text form. Its body goes into the pump.
func watText(body string) string {
	return `(module
		(import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
		(import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
		(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
		(import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
		(import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
		(import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
		(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
		(import "dormouse" "request" (func $request (param i32 i32) (result i32)))
		(memory (export "memory") 4 64)
		(global $g (export "g") (mut i32) (i32.const 1))
		(global $h (export "h") (mut i64) (i64.const 2))
		(data (i32.const 0) "image")
		(func (export "dormouse_abi_2"))
		(func $errno (param i32) (result i32) (local.get 0))
		(func $deep (param i64 i64 i64 i64) (result i64)
			(i64.add (call $deep (local.get 1) (local.get 2) (local.get 3) (local.get 0)) (local.get 0)))
		(func (export "dormouse_pump") ` + body + `))`
}

func newCode(t *testing.T, wat string, globals ...string) *runtime.Code {
	t.Helper()
	code, err := tryCode(t, wat, globals...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { code.Close() })
	return code
}

func tryCode(t *testing.T, wat string, globals ...string) (*runtime.Code, error) {
	t.Helper()
	wasm, err := wasmtime.Wat2Wasm(wat)
	if err != nil {
		t.Fatal(err)
	}
	engine := runtimetest.Engine()
	m, err := wasmtime.NewModule(engine, wasm)
	if err != nil {
		t.Fatal(err)
	}
	return runtime.New(engine, m, globals)
}

// dirty collects what Dirty yields, as deltas.
func dirty(t *testing.T, i *runtime.Instance) map[int][]byte {
	t.Helper()
	pages, err := i.Dirty()
	if err != nil {
		t.Fatal(err)
	}
	got := map[int][]byte{}
	last := -1
	for k, b := range pages {
		if k <= last || len(b) == 0 {
			t.Fatalf("page %d of %d bytes after page %d", k, len(b), last)
		}
		last, got[k] = k, bytes.Clone(b)
	}
	return got
}

// TestDirtyIsWhatWasWritten writes single bytes: into the module's image, a zero
// over it, behind it, and into memory that was grown.
func TestDirtyIsWhatWasWritten(t *testing.T) {
	page := runtime.PageSize
	wat := watText(fmt.Sprintf(`
		(i32.store8 (i32.const 0) (i32.const 0))       ;; was "i"
		(i32.store8 (i32.const %d) (i32.const 7))
		(drop (i32.load8_u (i32.const %d)))            ;; read only
		(drop (memory.grow (i32.const 2)))
		(i32.store8 (i32.const %d) (i32.const 9))
		(i32.store8 (i32.const %d) (i32.const 0))      ;; no news
		(global.set $g (i32.const -5)) (global.set $h (i64.const -6))`,
		3*page+17, 2*page, 4*65536+page-1, 5*65536))
	code := newCode(t, wat, "g", "h")
	h := newHost(t)
	i, err := code.Instantiate(h.config())
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if got := dirty(t, i); len(got) > 0 {
		t.Errorf("a fresh guest has %d pages of its own", len(got))
	}
	if n, err := i.Resident(); err != nil || n != 0 {
		t.Errorf("a fresh guest holds %d bytes, %v", n, err)
	}
	if err := i.Run(); err != nil {
		t.Fatal(err)
	}
	got := dirty(t, i)
	if want := []int{0, 3, 4 * 65536 / page}; !slices.Equal(slices.Sorted(maps.Keys(got)), want) {
		t.Errorf("pages %v, want %v", slices.Sorted(maps.Keys(got)), want)
	}
	if b := got[0]; !bytes.Equal(b, []byte("\x00\x01\x00mage\x00\x00\x00")) {
		t.Errorf("page 0 differs by %q", b)
	}
	if n, err := i.Resident(); err != nil || n < int64(3*page) || n > int64(8*page) {
		t.Errorf("it holds %d bytes, %v", n, err)
	}
	if n := i.MemorySize(); n != 6*65536 {
		t.Errorf("%d bytes of memory", n)
	}
	globals, err := i.Globals()
	if err != nil || fmt.Sprint(globals) != fmt.Sprint([]uint64{1<<32 - 5, 1<<64 - 6}) {
		t.Errorf("globals %v, %v", globals, err)
	}

	again, err := code.Instantiate(h.restored(i.MemorySize()))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	restore(t, again, got)
	if err := again.SetGlobals(globals); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Memory(), i.Memory()) {
		t.Error("other memory after a restore")
	}
	if g, err := again.Globals(); err != nil || !slices.Equal(g, globals) {
		t.Errorf("globals %v, %v", g, err)
	}
	if err := again.SetGlobals(globals[:1]); err == nil {
		t.Error("a global is missing, and that was accepted")
	}
	if _, err := code.Instantiate(h.restored(1 << 40)); err == nil {
		t.Error("grew beyond all bounds")
	}
	for _, beyond := range []int{-1, int(again.MemorySize()) / page} {
		_, err := again.Restore(func(write func(int, []byte) error) error { return write(beyond, nil) })
		if err == nil {
			t.Errorf("page %d of %d bytes was accepted", beyond, again.MemorySize())
		}
	}
	if _, err := again.Restore(func(write func(int, []byte) error) error { return write(1, []byte{0, 0}) }); err == nil {
		t.Error("a damaged delta was accepted")
	}
	failed := errors.New("the snapshot cannot be read")
	if _, err := again.Restore(func(func(int, []byte) error) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("%v, want %v", err, failed)
	}
}

// restore writes pages in no particular order.
func restore(t *testing.T, i *runtime.Instance, pages map[int][]byte) {
	t.Helper()
	_, err := i.Restore(func(page func(int, []byte) error) error {
		for k, b := range pages {
			if err := page(k, b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRestoreOfRuns: pages beside each other, which are written together, and
// pages alone come to where they belong.
func TestRestoreOfRuns(t *testing.T) {
	code := newCode(t, watText(""), "g", "h")
	i, err := code.Instantiate(newHost(t).restored(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	want := bytes.Clone(i.Memory())
	at := 1
	_, err = i.Restore(func(page func(int, []byte) error) error {
		for n, length := range []int{1, 2, 31, 64, 65, 40, 1} {
			for k := at; k < at+length; k++ {
				b := bytes.Repeat([]byte{byte(n + 1), byte(k)}, runtime.PageSize/2)
				copy(want[k*runtime.PageSize:], b)
				delta := runtime.AppendDelta(nil, b, nil)
				if err := page(k, delta); err != nil {
					return err
				}
				clear(delta) // it was valid during the call
			}
			at += length + n%2
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(i.Memory(), want) {
		t.Error("other memory after a restore")
	}
}

// TestSpare: the guest after one that was restored has the pages already that the one
// before needed, is as fresh as any otherwise, and is the next one's no more.
func TestSpare(t *testing.T) {
	code := newCode(t, watText(`
		(i32.store8 (i32.const 0) (i32.const 1))
		(global.set $g (memory.grow (i32.const 2000)))`), "g")
	const initial, size = 4 * 64 << 10, 1 << 20
	instance := func(size int64) *runtime.Instance {
		t.Helper()
		i, err := code.Instantiate(newHost(t).restored(size))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(i.Close)
		return i
	}
	held := func(i *runtime.Instance) int {
		t.Helper()
		n, err := i.Resident()
		if err != nil {
			t.Fatal(err)
		}
		return int(n) / runtime.PageSize
	}
	code.Prepared()
	if n := held(instance(initial)); n != 0 {
		t.Errorf("%d pages, and no guest was restored yet", n)
	}
	first := instance(size)
	beyond := size/runtime.PageSize - 1
	one := runtime.AppendDelta(nil, bytes.Repeat([]byte{1}, runtime.PageSize), nil)
	want := map[int][]byte{1: one, 2: one, 5: one, beyond: one}
	restore(t, first, want)
	code.Prepared()
	code.DropSlots()
	if n := held(instance(initial)); n != 0 {
		t.Errorf("%d pages, and the spare was dropped", n)
	}
	code.Prepared()
	code.Prepared() // there is one

	begins := instance(0)
	spare, other := instance(initial), instance(initial)
	if n := held(spare); n != 3 {
		t.Errorf("the spare has %d pages of its own, want those 3 of %d that a fresh guest has", n, len(want))
	}
	if held(other) != 0 || held(begins) != 0 {
		t.Errorf("the one after has %d pages, and one that begins has %d", held(other), held(begins))
	}
	if !bytes.Equal(spare.Memory(), other.Memory()) || len(dirty(t, spare)) > 0 {
		t.Error("the spare is not as fresh as another")
	}
	spare.Close()
	code.Prepared()
	spare = instance(size)
	if n := held(spare); n != 3 {
		t.Errorf("the spare for a larger memory has %d pages of its own", n)
	}
	restore(t, spare, want)
	if !bytes.Equal(spare.Memory(), first.Memory()) {
		t.Error("other memory after a restore")
	}
	if got := dirty(t, spare); !maps.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("pages %v are dirty, want %v", slices.Collect(maps.Keys(got)), slices.Collect(maps.Keys(want)))
	}
	if err := spare.Run(); err != nil {
		t.Fatal(err)
	}
	if g, err := spare.Globals(); err != nil || g[0] != 1<<32-1 {
		t.Errorf("it grew beyond its limit: %v, %v", g, err)
	}
}

// TestRestoreOfAGoGuest: a guest that is made again of pages and globals is the
// same: it has the same memory, and does the same next.
func TestRestoreOfAGoGuest(t *testing.T) {
	h := newHost(t)
	i := instantiate(t, h)
	pristine := bytes.Clone(i.Memory())
	start, err := json.Marshal(abi.Start{Controller: "fold"})
	if err != nil {
		t.Fatal(err)
	}
	h.say(abi.FrameStart, 0, start)
	if err := i.Run(); err != nil {
		t.Fatal(err)
	}
	if len(h.requests) != 1 {
		t.Fatalf("%d requests, want a watch", len(h.requests))
	}
	head := (&abi.Head{Status: 200, Header: http.Header{"Content-Type": {"application/json"}}}).Append(nil)
	h.say(abi.FrameHead, h.requests[0].Stream, head)
	if err := i.Run(); err != nil {
		t.Fatal(err)
	}

	pages := dirty(t, i)
	memory := bytes.Clone(i.Memory())
	for k := range len(memory) / runtime.PageSize {
		at := k * runtime.PageSize
		was := make([]byte, runtime.PageSize)
		if at < len(pristine) {
			was = pristine[at : at+runtime.PageSize]
		}
		now := memory[at : at+runtime.PageSize]
		if err := runtime.ApplyDelta(was, pages[k]); err != nil || !bytes.Equal(was, now) {
			t.Errorf("page %d has other content, %v", k, err)
		}
	}
	if len(pages)*runtime.PageSize > len(memory)/2 {
		t.Errorf("%d pages of %d bytes of memory are dirty", len(pages), len(memory))
	}
	globals, err := i.Globals()
	if err != nil {
		t.Fatal(err)
	}

	restoredHost := newHost(t)
	code, err := goCode()
	if err != nil {
		t.Fatal(err)
	}
	restored, err := code.Instantiate(restoredHost.restored(int64(len(memory))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(restored.Close)
	restore(t, restored, pages)
	if err := restored.SetGlobals(globals); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(restored.Memory(), memory) {
		t.Fatal("other memory after the restore")
	}
	event := `{"type":"ADDED","object":{"metadata":{"name":"x","resourceVersion":"5"},"value":"v"}}` + "\n"
	for _, g := range []struct {
		*host
		*runtime.Instance
	}{{h, i}, {restoredHost, restored}} {
		g.say(abi.FrameBody, h.requests[0].Stream, []byte(event))
		if err := g.Run(); err != nil {
			t.Fatal(err)
		}
	}
	if len(h.requests) != 2 || len(restoredHost.requests) != 1 {
		t.Fatalf("%d requests, and %d of the restored guest", len(h.requests), len(restoredHost.requests))
	}
	if a, b := h.requests[1], restoredHost.requests[0]; a.URL != b.URL || !bytes.Equal(a.Body, b.Body) || a.Stream != b.Stream {
		t.Errorf("%+v, and of the restored guest %+v", a, b)
	}
	if err := restored.Run(); err != nil {
		t.Fatal(err)
	}
	if _, timer := restored.NextTimer(); timer {
		t.Error("a timer without a reason")
	}
}

// TestNextTimer: the plane learns when the guest wants to run, and time that passed
// while it was away counts.
func TestNextTimer(t *testing.T) {
	h := newHost(t)
	i := instantiate(t, h)
	start, err := json.Marshal(abi.Start{Controller: "ticker", Options: json.RawMessage(`"1h"`)})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := i.NextTimer(); ok {
		t.Error("a guest that never ran has a timer")
	}
	h.say(abi.FrameStart, 0, start)
	if err := i.Run(); err != nil {
		t.Fatal(err)
	}
	at, ok := i.NextTimer()
	if d := at - h.now; !ok || d <= 59*time.Minute || d > time.Hour {
		t.Fatalf("next timer in %s, %v", d, ok)
	}
	if err := i.Run(); err != nil || len(h.requests) != 0 {
		t.Errorf("%d requests before the time, %v", len(h.requests), err)
	}
	h.now += 2 * time.Hour
	if err := i.Run(); err != nil || len(h.requests) != 1 {
		t.Errorf("%d requests when it was time, %v", len(h.requests), err)
	}
}

// clockHost tells when a guest asks for the time.
type clockHost struct {
	*host
	asked func()
}

func (h clockHost) Clock() (wall, monotonic time.Duration) {
	h.asked()
	return h.host.Clock()
}

// TestGuestsAreLessUrgent: while a guest runs, and not after that, its thread waits for those of the host. Needs the right
// to raise a priority, as root has it.
func TestGuestsAreLessUrgent(t *testing.T) {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	nice := func() int {
		raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
		if err != nil {
			t.Fatal(err)
		}
		return 20 - raw
	}
	code := newCode(t, watText(`(drop (call $clock (i32.const 1) (i64.const 0) (i32.const 64)))`))
	h := newHost(t)
	before, during := nice(), -21
	config := h.config()
	config.Host = clockHost{h, func() { during = nice() }}
	i, err := code.Instantiate(config)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if err := i.Call(abi.PumpExport); err != nil {
		t.Fatal(err)
	}
	if want := min(before+10, 19); during != want {
		t.Errorf("the guest ran with nice %d, want %d", during, want)
	}
	if after := nice(); after != before {
		t.Errorf("nice is %d after the guest ran, and was %d before", after, before)
	}
}

// TestEnds has each way in which a guest ends, and what is said of it.
func TestEnds(t *testing.T) {
	say := func(text string) string {
		return fmt.Sprintf(`
		(i32.store (i32.const 1000) (i32.const 1100)) (i32.store (i32.const 1004) (i32.const %d))
		%s
		(drop (call $fd_write (i32.const 2) (i32.const 1000) (i32.const 1) (i32.const 1008)))`, len(text), storeText(1100, text))
	}
	for name, c := range map[string]struct {
		body   string
		limit  time.Duration
		reason string
		detail string
	}{
		"unreachable":     {`unreachable`, 0, runtime.ReasonTrap, "unreachable"},
		"out of bounds":   {`(drop (i32.load (i32.const -4)))`, 0, runtime.ReasonTrap, "memory fault"},
		"exit":            {say("had enough\n") + `(call $exit (i32.const 1))`, 0, runtime.ReasonExit, "had enough"},
		"panic":           {say("panic: oh\n") + `(call $exit (i32.const 2))`, 0, runtime.ReasonTrap, "panic: oh"},
		"no memory":       {say("fatal error: out of memory\n") + `(call $exit (i32.const 2))`, 0, runtime.ReasonMemory, "64 MiB"},
		"loop":            {`(loop (br 0))`, 100 * time.Millisecond, runtime.ReasonDeadline, "100ms"},
		"loop with calls": {`(loop (drop (call $clock (i32.const 0) (i64.const 0) (i32.const 8))) (br 0))`, 100 * time.Millisecond, runtime.ReasonDeadline, "100ms"},
		// A guest that waits without a mailbox is not idle.
		"loop of waits": {`
			(i32.store8 (i32.const 2008) (i32.const 0)) (i64.store (i32.const 2024) (i64.const 3600000000000))
			(loop (drop (call $poll (i32.const 2000) (i32.const 3000) (i32.const 1) (i32.const 4000))) (br 0))`,
			100 * time.Millisecond, runtime.ReasonDeadline, "100ms"},
		// Nor is one that only waits for its own timers.
		"loop of short timers": {subscribe(1) + `
			(loop (drop (call $poll (i32.const 2000) (i32.const 3000) (i32.const 2) (i32.const 4000))) (br 0))`,
			100 * time.Millisecond, runtime.ReasonDeadline, "100ms"},
		// Nor one that is told to leave, and does not.
		"does not leave": {subscribe(int64(time.Hour)) + `
			(i32.store (i32.const 1000) (i32.const 1100)) (i32.store (i32.const 1004) (i32.const 1000))
			(loop
				(drop (call $poll (i32.const 2000) (i32.const 3000) (i32.const 2) (i32.const 4000)))
				(drop (call $fd_read (i32.const 3) (i32.const 1000) (i32.const 1) (i32.const 1008))) (br 0))`,
			100 * time.Millisecond, runtime.ReasonDeadline, "100ms"},
		"leaves a Park frame unread": {subscribe(int64(time.Hour)) + `
			(drop (call $poll (i32.const 2000) (i32.const 3000) (i32.const 2) (i32.const 4000)))`, 0, runtime.ReasonTrap, "left the pump"},
		"deep recursion": {`(drop (call $deep (i64.const 1) (i64.const 1) (i64.const 1) (i64.const 1)))`, 0, runtime.ReasonTrap, "call stack exhausted"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.linger = time.Millisecond
			config := h.config()
			config.Run = c.limit
			i, err := newCode(t, watText(c.body)).Instantiate(config)
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			var exit *runtime.Exit
			if err := i.Run(); !errors.As(err, &exit) {
				t.Fatalf("ended with %v", err)
			}
			if exit.Reason != c.reason || !strings.Contains(exit.Detail, c.detail) {
				t.Errorf("%v, want %s: …%s…", exit, c.reason, c.detail)
			}
		})
	}
}

// subscribe is code that stores two subscriptions: a timer, and the mailbox.
func subscribe(nanoseconds int64) string {
	return fmt.Sprintf(`
		(i32.store8 (i32.const 2008) (i32.const 0)) (i64.store (i32.const 2024) (i64.const %d))
		(i32.store8 (i32.const 2056) (i32.const 1)) (i32.store (i32.const 2064) (i32.const 3))`, nanoseconds)
}

// storeText is code that stores a text.
func storeText(at int, text string) string {
	var b strings.Builder
	for k := range len(text) {
		fmt.Fprintf(&b, "(i32.store8 (i32.const %d) (i32.const %d))\n", at+k, text[k])
	}
	return b.String()
}

// TestHostileCalls passes nonsense to the host; each call returns an errno, and
// none takes long.
func TestHostileCalls(t *testing.T) {
	const (
		success = 0
		again   = 6
		badf    = 8
		fault   = 21
		toolong = 37
		noent   = 44
		nosys   = 52
		rofs    = 69
	)
	for name, c := range map[string]struct {
		call string
		want uint64
	}{
		"write to the mailbox":            {`(call $fd_write (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 0))`, badf},
		"write from beyond memory":        {`(call $fd_write (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 0))`, fault},
		"write of four billion buffers":   {`(call $fd_write (i32.const 1) (i32.const 8192) (i32.const -1) (i32.const 0))`, fault},
		"read of four billion buffers":    {`(call $fd_read (i32.const 3) (i32.const 8192) (i32.const -1) (i32.const 0))`, fault},
		"count to beyond memory":          {`(call $fd_write (i32.const 1) (i32.const 8192) (i32.const 1) (i32.const -1))`, fault},
		"read of an empty mailbox":        {`(call $fd_read (i32.const 3) (i32.const 8192) (i32.const 1) (i32.const 0))`, again},
		"read of another descriptor":      {`(call $fd_read (i32.const 0) (i32.const 8192) (i32.const 1) (i32.const 0))`, badf},
		"poll of nothing":                 {`(call $poll (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))`, fault},
		"poll of four billion":            {`(call $poll (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0))`, fault},
		"poll beyond memory":              {`(call $poll (i32.const -40) (i32.const 0) (i32.const 1) (i32.const 0))`, fault},
		"random bytes beyond memory":      {`(call $random (i32.const 262143) (i32.const 2))`, fault},
		"random bytes to the end":         {`(call $random (i32.const 262142) (i32.const 2))`, success},
		"clock beyond memory":             {`(call $clock (i32.const 0) (i64.const 0) (i32.const 262137))`, fault},
		"clock of another kind":           {`(call $clock (i32.const 7) (i64.const 0) (i32.const 0))`, nosys},
		"a file of the mailbox":           {`(call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 64))`, badf},
		"a file that is not given":        {`(call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 64))`, noent},
		"a file that is given":            {`(call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 64))`, success},
		"a file to create":                {`(call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 1) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 64))`, rofs},
		"a file to empty":                 {`(call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 8) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 64))`, rofs},
		"a file to write":                 {`(call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 0) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 64))`, rofs},
		"a path beyond memory":            {`(call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 64))`, fault},
		"a path that is too long":         {`(call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 4097) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 64))`, toolong},
		"a descriptor beyond memory":      {`(call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 262142))`, fault},
		"a request beyond memory":         {`(call $request (i32.const 262143) (i32.const 2))`, abi.ErrFormat},
		"a request of four billion bytes": {`(call $request (i32.const 0) (i32.const -1))`, abi.ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			config := h.config()
			config.Files = map[string]string{"/image": "content"}
			i, err := newCode(t, watText(`(global.set $h (i64.extend_i32_u `+c.call+`))`), "h").Instantiate(config)
			if err != nil {
				t.Fatal(err)
			}
			defer i.Close()
			if err := i.Run(); err != nil {
				t.Fatal(err)
			}
			if got, err := i.Globals(); err != nil || got[0] != c.want {
				t.Errorf("errno %v, want %d, %v", got, c.want, err)
			}
		})
	}
}

// TestUnload: the module leaves once no instance is left, and is there again for the
// next one. One that stays keeps it.
func TestUnload(t *testing.T) {
	config := wasmtime.NewConfig()
	config.SetEpochInterruption(true)
	engine := wasmtime.NewEngineWithConfig(config)
	defer engine.Close()
	wasm, err := wasmtime.Wat2Wasm(watText(`(global.set $h (i64.add (global.get $h) (i64.const 1)))`))
	if err != nil {
		t.Fatal(err)
	}
	loads := make(chan struct{}, 10)
	load := func() (*wasmtime.Module, error) {
		loads <- struct{}{}
		return wasmtime.NewModule(engine, wasm)
	}
	m, err := load()
	if err != nil {
		t.Fatal(err)
	}
	code, err := runtime.New(engine, m, []string{"h"})
	if err != nil {
		t.Fatal(err)
	}
	defer code.Close()
	const idle = 20 * time.Millisecond
	code.UnloadAfter(idle, load)
	run := func() *runtime.Instance {
		i, err := code.Instantiate(newHost(t).config())
		if err != nil {
			t.Fatal(err)
		}
		if err := i.Run(); err != nil {
			t.Fatal(err)
		}
		return i
	}
	for deadline := time.Now().Add(20 * time.Second); len(loads) < 4; {
		if time.Now().After(deadline) {
			t.Fatalf("loaded %d times", len(loads))
		}
		i := run()
		restore(t, i, map[int][]byte{1: runtime.AppendDelta(nil, bytes.Repeat([]byte{1}, runtime.PageSize), nil)})
		i.Close()
		code.Prepared() // which does not keep it
		time.Sleep(3 * idle)
	}
	stays := run()
	defer stays.Close()
	before := len(loads)
	for range 3 {
		run().Close()
		time.Sleep(3 * idle)
	}
	if len(loads) != before {
		t.Error("the module of an instance was loaded again")
	}
	if err := stays.Run(); err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]struct{ wat, want string }{
		"another version": {`(module (memory (export "memory") 1) (func (export "dormouse_pump")))`, "version 2"},
		"no pump":         {`(module (memory (export "memory") 1) (func (export "dormouse_abi_2")))`, "dormouse_pump"},
		"no memory":       {`(module (func (export "dormouse_pump")) (func (export "dormouse_abi_2")))`, "memory"},
		"another import":  {`(module (import "env" "system" (func)) (memory (export "memory") 1) (func (export "dormouse_pump")) (func (export "dormouse_abi_2")))`, "env.system"},
		"another type":    {`(module (import "wasi_snapshot_preview1" "fd_write" (func (result i32))) (memory (export "memory") 1) (func (export "dormouse_pump")) (func (export "dormouse_abi_2")))`, "fd_write with another type"},
		"floats":          {`(module (import "dormouse" "request" (func (param i32 f64) (result i32))) (memory (export "memory") 1) (func (export "dormouse_pump")) (func (export "dormouse_abi_2")))`, "request with another type"},
		"another result":  {`(module (import "wasi_snapshot_preview1" "sock_open" (func (result f32))) (memory (export "memory") 1) (func (export "dormouse_pump")) (func (export "dormouse_abi_2")))`, "sock_open with another type"},
		"imported memory": {`(module (import "env" "m" (memory 1)) (export "memory" (memory 0)) (func (export "dormouse_pump")) (func (export "dormouse_abi_2")))`, "env.m"},
	} {
		wasm, err := wasmtime.Wat2Wasm(c.wat)
		if err != nil {
			t.Fatal(err)
		}
		engine := runtimetest.Engine()
		m, err := wasmtime.NewModule(engine, wasm)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := runtime.New(engine, m, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for name, c := range map[string]struct{ body, want string }{
		"a pump that is no function": {`(memory (export "memory") 1) (global (export "dormouse_pump") i32 (i32.const 0))`, "wrong types"},
		"shared memory":              {`(memory (export "memory") 1 1 shared) (func (export "dormouse_pump"))`, "wrong types"},
		"two memories":               {`(memory (export "memory") 1) (memory 1 1 shared) (func (export "dormouse_pump"))`, "memory count"},
		"two tables":                 {`(memory (export "memory") 1) (table 1 funcref) (table 1 funcref) (func (export "dormouse_pump"))`, "table count"},
		"a large table":              {`(memory (export "memory") 1) (table 10000000 funcref) (func (export "dormouse_pump"))`, "table minimum size"},
		"a start that calls the host": {`(import "dormouse" "request" (func $request (param i32 i32) (result i32)))
			(memory (export "memory") 1) (func (export "dormouse_pump"))
			(func $start (if (call $request (i32.const 0) (i32.const 1)) (then unreachable))) (start $start)`, "unreachable"},
		"a start that never ends": {`(memory (export "memory") 1) (func (export "dormouse_pump")) (func $start (loop (br 0))) (start $start)`, "interrupt"},
	} {
		config := newHost(t).config()
		config.Run = 100 * time.Millisecond
		code := newCode(t, `(module `+c.body+` (func (export "dormouse_abi_2")))`)
		if _, err := code.Instantiate(config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	code := newCode(t, watText(""), "no such global")
	i, err := code.Instantiate(newHost(t).config())
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if _, err := i.Globals(); err == nil {
		t.Error("a global that does not exist was read")
	}
}

func TestClosedInstance(t *testing.T) {
	i, err := newCode(t, watText("")).Instantiate(newHost(t).config())
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Call("not there"); err != nil {
		t.Error(err)
	}
	i.Close()
	if err := i.Run(); !errors.Is(err, runtime.ErrClosed) {
		t.Error(err)
	}
	if err := i.Call(abi.PumpExport); !errors.Is(err, runtime.ErrClosed) {
		t.Error(err)
	}
}

// TestMemoryLimit: memory does not grow beyond the limit.
func TestMemoryLimit(t *testing.T) {
	h := newHost(t)
	config := h.config()
	config.Memory = 5 * 65536
	code := newCode(t, watText(`(global.set $g (memory.grow (i32.const 2))) (global.set $h (i64.extend_i32_s (memory.grow (i32.const 1))))`), "g", "h")
	i, err := code.Instantiate(config)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if err := i.Run(); err != nil {
		t.Fatal(err)
	}
	globals, err := i.Globals()
	if err != nil || uint32(globals[0]) != 1<<32-1 || globals[1] != 4 || i.MemorySize() != 5*65536 {
		t.Errorf("grew from %v to %d bytes, %v", globals, i.MemorySize(), err)
	}
}

// TestTableLimit: nor does the table of functions.
func TestTableLimit(t *testing.T) {
	h := newHost(t)
	code := newCode(t, `(module (memory (export "memory") 1) (table $t 1 funcref) (global $g (export "g") (mut i32) (i32.const 0))
		(func (export "dormouse_abi_2"))
		(func (export "dormouse_pump")
			(loop (br_if 0 (i32.ne (table.grow $t (ref.null func) (i32.const 100000)) (i32.const -1))))
			(global.set $g (table.size $t))))`, "g")
	i, err := code.Instantiate(h.config())
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if err := i.Run(); err != nil {
		t.Fatal(err)
	}
	if g, err := i.Globals(); err != nil || g[0] < 900_000 || g[0] > 1<<20 {
		t.Errorf("grew to %v elements, %v", g, err)
	}
}

// TestWriteIsTakenInParts: a thousand buffers that are the whole memory would keep
// the host busy for long, and nothing could end the guest meanwhile.
func TestWriteIsTakenInParts(t *testing.T) {
	h := newHost(t)
	code := newCode(t, watText(`
		(local $k i32)
		(loop ;; buffers of the whole memory
			(i32.store (i32.add (i32.const 8192) (i32.mul (local.get $k) (i32.const 8))) (i32.const 0))
			(i32.store (i32.add (i32.const 8196) (i32.mul (local.get $k) (i32.const 8))) (i32.const 262144))
			(br_if 0 (i32.lt_u (local.tee $k (i32.add (local.get $k) (i32.const 1))) (i32.const 1024))))
		(drop (call $fd_write (i32.const 1) (i32.const 8192) (i32.const 1024) (i32.const 8)))
		(global.set $g (i32.load (i32.const 8)))`), "g")
	i, err := code.Instantiate(h.config())
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if err := i.Run(); err != nil {
		t.Fatal(err)
	}
	if g, err := i.Globals(); err != nil || g[0] != 64<<10 {
		t.Errorf("%v bytes were taken, %v", g, err)
	}
	if n := len(strings.Join(h.log, "")); n > 64<<10 {
		t.Errorf("%d bytes in %d lines", n, len(h.log))
	}
}

// TestBrokenFrames: what is broken on the way to a guest ends it, and says so.
func TestBrokenFrames(t *testing.T) {
	header := func(kind abi.Kind, stream, length uint32) []byte {
		return abi.FrameHeader{Kind: kind, Stream: stream, Length: length}.Append(nil)
	}
	start, err := json.Marshal(abi.Start{Controller: "fold"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		frames []byte
		want   string
	}{
		"unknown kind":   {header(99, 0, 0), "unknown kind 99"},
		"absurd length":  {header(abi.FrameBody, 1, 1<<32-1), "4294967295 bytes"},
		"start in words": {append(header(abi.FrameStart, 0, 3), "now"...), "decoding start"},
		"garbled head":   {append(header(abi.FrameHead, 1, 3), 0xff, 0xff, 0xff), "decoding response head"},
		// The Park frames that follow are taken for the rest.
		"cut short": {header(abi.FrameBody, 1, 1<<10), "left the pump"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			i := instantiate(t, h)
			h.say(abi.FrameStart, 0, start)
			if err := i.Run(); err != nil || len(h.requests) != 1 {
				t.Fatalf("%d requests, %v", len(h.requests), err)
			}
			h.mailbox.PushBytes(c.frames)
			var exit *runtime.Exit
			if err := i.Run(); !errors.As(err, &exit) || !strings.Contains(exit.Detail, c.want) {
				t.Errorf("ended with %v, want %q", err, c.want)
			}
		})
	}
}

// TestManyAtATime runs guests on several goroutines; one that loops is ended alone.
func TestManyAtATime(t *testing.T) {
	code := newCode(t, watText(`(if (i32.eq (global.get $g) (i32.const 9)) (then (loop (br 0)))) (global.set $h (i64.add (global.get $h) (i64.const 1)))`), "g", "h")
	var all sync.WaitGroup
	for k := range 8 {
		all.Go(func() {
			h := newHost(t)
			config := h.config()
			if k == 3 {
				config.Run = 100 * time.Millisecond
			}
			i, err := code.Instantiate(config)
			if err != nil {
				t.Error(err)
				return
			}
			defer i.Close()
			if k == 3 {
				if err := i.SetGlobals([]uint64{9, 0}); err != nil {
					t.Error(err)
				}
				var exit *runtime.Exit
				if err := i.Run(); !errors.As(err, &exit) || exit.Reason != runtime.ReasonDeadline {
					t.Errorf("the loop ended with %v", err)
				}
				return
			}
			for range 100 {
				if err := i.Run(); err != nil {
					t.Error(err)
				}
			}
			if g, err := i.Globals(); err != nil || g[1] != 102 {
				t.Errorf("%v, %v", g, err)
			}
		})
	}
	all.Wait()
}

// TestInterrupt ends the guest that runs, and no other.
func TestInterrupt(t *testing.T) {
	code := newCode(t, watText(fmt.Sprintf(`
		(i32.store (i32.const 1000) (i32.const 1100)) (i32.store (i32.const 1004) (i32.const 6)) %s
		(drop (call $fd_write (i32.const 2) (i32.const 1000) (i32.const 1) (i32.const 1008)))
		(if (i32.eq (global.get $g) (i32.const 9)) (then (loop (br 0))))`, storeText(1100, "begun\n"))), "g", "h")
	instances := map[uint64]*runtime.Instance{}
	begun := make(chan struct{}, 10)
	for _, g := range []uint64{9, 0} {
		config := newHost(t).config()
		config.Run = time.Hour
		config.Host = announcer{config.Host, begun}
		i, err := code.Instantiate(config)
		if err != nil {
			t.Fatal(err)
		}
		defer i.Close()
		if err := i.SetGlobals([]uint64{g, 0}); err != nil {
			t.Fatal(err)
		}
		instances[g] = i
	}
	ended := make(chan error)
	go func() { ended <- instances[9].Run() }()
	<-begun
	code.Interrupt()
	var exit *runtime.Exit
	if err := <-ended; !errors.As(err, &exit) || exit.Reason != runtime.ReasonDeadline || !strings.Contains(exit.Detail, "interrupted") {
		t.Errorf("ended with %v", err)
	}
	if err := instances[0].Run(); err != nil {
		t.Errorf("the guest that was idle: %v", err)
	}
}

// announcer says when a guest says something.
type announcer struct {
	runtime.Host
	said chan struct{}
}

func (a announcer) Log(string) { a.said <- struct{}{} }
