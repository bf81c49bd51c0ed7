package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
)

// Idle is what a server costs that has nothing to do.
type Idle struct {
	Mode   string `json:"mode"`
	Memory Memory `json:"memory"` // after the settling time
	// Anonymous is the anonymous memory over the idle time, looked at each lookEvery, in bytes. It rises and falls with
	// the garbage collector, so that servers are to be compared by its median.
	Anonymous []int64 `json:"anonymous"`
	CPU       float64 `json:"cpu"`     // seconds over the idle time
	Written   int64   `json:"written"` // bytes given to the block layer over the idle time

	Files  map[string]int64 `json:"files"` // sizes of what is kept on disk, in bytes, after the idle time
	Guests []Guest          `json:"guests,omitempty"`
	Load   float64          `json:"load"` // load average at the end
}

// Guest is what a controller did over the idle time.
type Guest struct {
	plane.Status
	SettledAs plane.State `json:"settledAs"` // its state when the idle time began
	IdleWakes int         `json:"idleWakes"`
	// IdleReasons are the reasons of those wakes, as often as they were seen; a look is taken each lookEvery, and of
	// several wakes in between only the last is known.
	IdleReasons map[string]int `json:"idleReasons,omitempty"`
}

// lookEvery is how often the controllers are looked at. More often would cost the server more than it does itself.
const lookEvery = 10 * time.Second

// idle measures all servers over the same time.
func (b *bench) idle(ctx context.Context, servers map[string]*server) error {
	b.say("idle: %s until memory is measured, then %s", b.Settle, b.Idle)
	if err := pause(ctx, b.Settle); err != nil {
		return err
	}
	var order []*server
	for _, name := range []string{wasm.name, native.name, without().name} {
		order = append(order, servers[name])
	}
	results := make([]Idle, len(order))
	before := make([]usage, len(order))
	var watch *wakeWatch
	for k, s := range order {
		var err error
		results[k].Mode = s.name
		if results[k].Memory, err = memoryOf(s.pid()); err != nil {
			return err
		}
		if err := b.profile(ctx, s, "heap", nil); err != nil {
			return err
		}
		if err := b.profile(ctx, s, "goroutine", nil); err != nil {
			return err
		}
		if s.name == wasm.name {
			if watch, err = newWakeWatch(ctx, s); err != nil {
				return err
			}
		}
		if before[k], err = usageOf(s.pid()); err != nil {
			return err
		}
	}
	profiled := make(chan error, len(order))
	for _, s := range order {
		go func() {
			profiled <- b.profile(ctx, s, "profile", url.Values{"seconds": {fmt.Sprintf("%.0f", b.Idle.Seconds())}})
		}()
	}
	for end := time.Now().Add(b.Idle); time.Now().Before(end); {
		if err := pause(ctx, min(time.Until(end), lookEvery)); err != nil {
			return err
		}
		if err := watch.look(ctx); err != nil {
			return err
		}
		for k, s := range order {
			m, err := memoryOf(s.pid())
			if err != nil {
				return err
			}
			results[k].Anonymous = append(results[k].Anonymous, m.Anonymous)
		}
	}
	for range order {
		if err := <-profiled; err != nil {
			return err
		}
	}
	for k, s := range order {
		after, err := usageOf(s.pid())
		if err != nil {
			return err
		}
		results[k].CPU, results[k].Written = (after.cpu - before[k].cpu).Seconds(), after.written-before[k].written
		if results[k].Files, err = s.files(); err != nil {
			return err
		}
		if results[k].Load, err = loadAverage(); err != nil {
			return err
		}
		if s.name == wasm.name {
			results[k].Guests = watch.guests
		}
	}
	b.report.Idle = results
	return nil
}

// files are the sizes of the databases.
func (s *server) files() (map[string]int64, error) {
	data := paths.Data(s.file("data"))
	sizes := map[string]int64{}
	for _, pattern := range []string{data.Database() + "*", data.WasmSnapshots()} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			info, err := os.Stat(name)
			if err != nil {
				return nil, err
			}
			sizes[info.Name()] = info.Size()
		}
	}
	return sizes, nil
}

// wakeWatch notes what wakes the guests of a server.
type wakeWatch struct {
	server *server
	guests []Guest
}

func newWakeWatch(ctx context.Context, s *server) (*wakeWatch, error) {
	w := &wakeWatch{server: s}
	guests, err := s.guests(ctx)
	if err != nil {
		return nil, err
	}
	for _, g := range guests {
		w.guests = append(w.guests, Guest{Status: g, SettledAs: g.State, IdleReasons: map[string]int{}})
	}
	return w, nil
}

// look notes what has woken since the last look.
func (w *wakeWatch) look(ctx context.Context) error {
	guests, err := w.server.guests(ctx)
	if err != nil {
		return err
	}
	return w.note(guests)
}

func (w *wakeWatch) note(guests []plane.Status) error {
	if len(guests) != len(w.guests) {
		return fmt.Errorf("%d controllers, %d before", len(guests), len(w.guests))
	}
	for k, now := range guests {
		g := &w.guests[k]
		if wakes := now.Wakes - g.Wakes; wakes > 0 {
			g.IdleWakes += wakes
			g.IdleReasons[now.LastWakeReason]++
			if wakes > 1 {
				g.IdleReasons["not seen"] += wakes - 1
			}
		}
		g.Status = now
	}
	return nil
}

// stateText counts guests by state.
func stateText(guests []Guest, state func(Guest) plane.State) string {
	count := map[plane.State]int{}
	for _, g := range guests {
		count[state(g)]++
	}
	var text []string
	for _, s := range []plane.State{plane.Cold, plane.Awake, plane.Warm, plane.Asleep, plane.Failed} {
		if count[s] > 0 {
			text = append(text, fmt.Sprintf("%d %s", count[s], s))
		}
	}
	return strings.Join(text, ", ")
}
