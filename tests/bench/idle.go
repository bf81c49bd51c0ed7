package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
)

// idlePods is how many pods the idle node runs.
const idlePods = 10

// Idle is what a server costs that has nothing to do: a node renews its lease, and its pods run.
type Idle struct {
	Mode string `json:"mode"`
	// Samples are the memory over the idle time, looked at each lookEvery. It rises and falls with the garbage
	// collector, so that servers are to be compared by its median.
	Samples []Memory `json:"samples"`
	CPU     float64  `json:"cpu"`     // seconds over the idle time
	Written int64    `json:"written"` // bytes given to the block layer over the idle time
	// Snapshots is how much of it the plane gave to its snapshot database, in bytes.
	Snapshots int64 `json:"snapshots"`

	// Parts is where the memory is, after the idle time; nil if there are programs beside the server.
	Parts *Parts `json:"parts,omitempty"`

	Files  map[string]int64 `json:"files"` // sizes of what is kept on disk, in bytes, after the idle time
	Guests []Guest          `json:"guests,omitempty"`
	Load   float64          `json:"load"` // load average at the end
}

// Guest is what a controller did over the idle time.
type Guest struct {
	plane.Status
	SettledAs plane.State  `json:"settledAs"` // its state when the idle time began
	IdleWakes []plane.Wake `json:"idleWakes,omitempty"`
}

const (
	// lookEvery is how often the memory is looked at, which costs the servers nothing.
	lookEvery = 10 * time.Second
	// askEvery is how often the controllers are asked for. More often would cost the server more than it does itself,
	// and the answer's garbage would be a part of its memory.
	askEvery = time.Minute
)

// idle measures all servers over the same time.
func (b *bench) idle(ctx context.Context) error {
	servers, stop, err := b.startServers(ctx, "idle", wasm, native, bare, listed, k3sWay)
	if err != nil {
		return err
	}
	return errors.Join(b.measureIdle(ctx, servers), stop())
}

func (b *bench) measureIdle(ctx context.Context, servers []*server) error {
	for _, s := range servers {
		if err := s.prepare(ctx); err != nil {
			return err
		}
		if err := s.fill(ctx, idlePods, servers[0]); err != nil {
			return err
		}
	}
	b.say("idle: %s until memory is measured, then %s", b.Settle, b.Idle)
	if err := pause(ctx, b.Settle); err != nil {
		return err
	}
	results := make([]Idle, len(servers))
	before := make([]usage, len(servers))
	watches := make([]*wakeWatch, len(servers))
	for k, s := range servers {
		results[k].Mode = s.mode.name
		if err := b.profile(ctx, s, "heap", nil); err != nil {
			return err
		}
		if err := b.profile(ctx, s, "goroutine", nil); err != nil {
			return err
		}
		var err error
		if watches[k], err = newWakeWatch(ctx, s); err != nil {
			return err
		}
		if before[k], err = usageOf(s.pids()); err != nil {
			return err
		}
	}
	profiled := make(chan error, len(servers))
	for _, s := range servers {
		go func() {
			profiled <- b.profile(ctx, s, "profile", url.Values{"seconds": {fmt.Sprintf("%.0f", b.Idle.Seconds())}})
		}()
	}
	began := time.Now()
	end, ask := began.Add(b.Idle), began.Add(askEvery)
	for time.Now().Before(end) {
		if err := pause(ctx, min(time.Until(end), lookEvery)); err != nil {
			return err
		}
		for k, s := range servers {
			m, err := memoryOf(s.pids())
			if err != nil {
				return err
			}
			results[k].Samples = append(results[k].Samples, m)
		}
		if now := time.Now(); now.Before(ask) && now.Before(end) {
			continue
		}
		ask = ask.Add(askEvery)
		// All are asked the same, whether they have guests or not.
		for _, w := range watches {
			if err := w.look(ctx); err != nil {
				return err
			}
		}
	}
	for range servers {
		if err := <-profiled; err != nil {
			return err
		}
	}
	for k, s := range servers {
		after, err := usageOf(s.pids())
		if err != nil {
			return err
		}
		results[k].CPU, results[k].Written = (after.cpu - before[k].cpu).Seconds(), after.written-before[k].written
		results[k].Snapshots = watches[k].written
		if results[k].Files, err = s.files(); err != nil {
			return err
		}
		if results[k].Load, err = loadAverage(); err != nil {
			return err
		}
		results[k].Guests = watches[k].guests
		if s.upstream {
			continue
		}
		if results[k].Parts, err = partsOf(ctx, s); err != nil {
			return err
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
	server  *server
	guests  []Guest
	written int64 // bytes given to the snapshot database since it began
}

func newWakeWatch(ctx context.Context, s *server) (*wakeWatch, error) {
	w := &wakeWatch{server: s}
	guests, err := s.guests(ctx)
	if err != nil {
		return nil, err
	}
	for _, g := range guests {
		w.guests = append(w.guests, Guest{Status: g, SettledAs: g.State})
	}
	return w, nil
}

// look notes what has woken since the last look.
func (w *wakeWatch) look(ctx context.Context) error {
	guests, err := w.server.guests(ctx)
	if err != nil {
		return err
	}
	return w.note(guests, func(name string) ([]plane.Wake, error) { return w.server.lastWakes(ctx, name) })
}

func (w *wakeWatch) note(guests []plane.Status, lastWakes func(name string) ([]plane.Wake, error)) error {
	if len(guests) != len(w.guests) {
		return fmt.Errorf("%d controllers, %d before", len(guests), len(w.guests))
	}
	for k, now := range guests {
		g := &w.guests[k]
		if wakes := now.Wakes - g.Wakes; wakes > 0 {
			last, err := lastWakes(g.Name)
			if err != nil {
				return err
			}
			since := time.Time{}
			if g.LastWake != nil {
				since = *g.LastWake
			}
			for _, wake := range last {
				if wake.At.After(since) && wakes > 0 {
					g.IdleWakes = append(g.IdleWakes, wake)
					wakes--
				}
			}
			for ; wakes > 0; wakes-- { // more than the plane remembers
				g.IdleWakes = append(g.IdleWakes, plane.Wake{At: *now.LastWake, Reason: "not seen"})
			}
		}
		w.written += now.WrittenBytes - g.WrittenBytes
		g.Status = now
	}
	return nil
}

// housekeeping says what a wake was for that should have been for nothing: the upkeep of nodes and watches. It is ""
// for any other.
func housekeeping(reason string) string {
	for prefix, class := range map[string]string{
		"MODIFIED leases.coordination.k8s.io": "heartbeat",
		"MODIFIED nodes":                      "heartbeat",
		"end of the watch":                    "renewal",
		"end of watch":                        "renewal",
		"BOOKMARK":                            "bookmark",
	} {
		if strings.HasPrefix(reason, prefix) {
			return class
		}
	}
	return ""
}

// countReasons counts wakes by reason.
func countReasons(wakes []plane.Wake) map[string]int {
	count := map[string]int{}
	for _, w := range wakes {
		count[w.Reason]++
	}
	return count
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
