package plane

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"time"
)

// State is where a controller is between disk and memory.
type State string

// The states of a controller.
const (
	Native State = "native" // runs in the server's process, not as a guest
	Cold   State = "cold"   // has no snapshot; starts from the module's image
	Awake  State = "awake"  // runs
	Warm   State = "warm"   // idle, still in memory
	Asleep State = "asleep" // its snapshot is all there is of it
	Failed State = "failed" // was ended; starts cold after a while
)

// Status is what `dormouse wasm list` shows of a controller.
type Status struct {
	Name            string     `json:"name"`
	Identity        string     `json:"identity,omitempty"`
	Module          string     `json:"module,omitempty"`
	State           State      `json:"state"`
	Wakes           int        `json:"wakes"`
	WakesLastMinute int        `json:"wakesLastMinute"`
	LastWake        *time.Time `json:"lastWake,omitempty"`
	LastWakeReason  string     `json:"lastWakeReason,omitempty"`
	NextTimer       *time.Time `json:"nextTimer,omitempty"` // with its slack, while it sleeps; none while it rests
	ResidentBytes   int64      `json:"residentBytes"`
	SnapshotBytes   int64      `json:"snapshotBytes"`
	WrittenBytes    int64      `json:"writtenBytes"` // to the snapshot database since the server started
	CPUSeconds      float64    `json:"cpuSeconds"`   // since the server started
	Restarts        int        `json:"restarts"`
	LastError       string     `json:"lastError,omitempty"`
}

// Detail is what `dormouse wasm inspect` shows.
type Detail struct {
	Status
	Runs        int            `json:"runs"` // how often it ran, wakes and runs while warm
	LastRun     string         `json:"lastRunReason,omitempty"`
	MemoryBytes int64          `json:"memoryBytes"` // linear memory, with what it shares with the module's image
	MemoryLimit int64          `json:"memoryLimit"`
	RunLimit    string         `json:"runLimit"`
	TimerSlack  string         `json:"timerSlack"`
	WarmTime    string         `json:"warmTime"` // how long it stays in memory when idle
	SnapshotAt  *time.Time     `json:"snapshotAt,omitempty"`
	LastWakes   []Wake         `json:"lastWakes"` // the last ten, oldest first
	Streams     []StreamStatus `json:"streams"`
}

// Wake is one return of a guest into memory.
type Wake struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

// keptWakes is how many wakes are remembered of each guest.
const keptWakes = 10

// StreamStatus is one watch of a guest.
type StreamStatus struct {
	ID       uint32 `json:"id"`
	URL      string `json:"url"`
	Revision string `json:"revision"`
	Waiting  int    `json:"waiting"` // events that wait for the next wake
}

// ServeHTTP answers below /controllers:
//
//	GET  /controllers             all, as {"controllers": [Status…]}
//	GET  /controllers/NAME        Detail
//	POST /controllers/NAME/wake   wakes it
//	POST /controllers/NAME/evict  saves and releases it
//
// Who mounts it strips the prefix and decides who may ask.
func (p *Plane) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.mux.ServeHTTP(w, r) }

func (p *Plane) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /controllers", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, map[string]any{"controllers": p.List()})
	})
	mux.HandleFunc("GET /controllers/{name}", func(w http.ResponseWriter, r *http.Request) {
		if g := p.find(w, r); g != nil {
			reply(w, http.StatusOK, g.detail())
		}
	})
	mux.HandleFunc("POST /controllers/{name}/{verb}", func(w http.ResponseWriter, r *http.Request) {
		g := p.find(w, r)
		if g == nil {
			return
		}
		verb := r.PathValue("verb")
		if verb != commandWake && verb != commandEvict {
			reply(w, http.StatusNotFound, map[string]string{"error": "no command " + verb + "; there are wake and evict"})
			return
		}
		switch err := g.command(r.Context(), verb); {
		case errors.Is(err, errBusy):
			reply(w, http.StatusConflict, map[string]string{"error": g.Name + ": " + err.Error()})
		case err != nil:
			reply(w, http.StatusInternalServerError, map[string]string{"error": g.Name + ": " + err.Error()})
		default:
			reply(w, http.StatusOK, g.detail())
		}
	})
	return mux
}

func (p *Plane) find(w http.ResponseWriter, r *http.Request) *guest {
	name := r.PathValue("name")
	for _, g := range p.guests {
		if g.Name == name {
			return g
		}
	}
	for _, s := range p.List() {
		if s.Name == name {
			if r.Method == http.MethodGet {
				reply(w, http.StatusOK, Detail{Status: s})
			} else {
				reply(w, http.StatusConflict, map[string]string{"error": name + " runs natively; it neither sleeps nor wakes"})
			}
			return nil
		}
	}
	reply(w, http.StatusNotFound, map[string]string{"error": "no controller " + name})
	return nil
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(body) // the client may be gone
}

// lastMinute counts what happens, and forgets it after a minute. Its methods are
// given the present time, which must not run backwards.
type lastMinute struct {
	counts [60]uint16 // by second
	second int64      // of the newest count
}

// add counts one.
func (m *lastMinute) add(now time.Duration) {
	m.advance(now)
	if n := &m.counts[m.second%60]; *n < math.MaxUint16 {
		*n++
	}
}

// count is how many there were in the last minute, to the second.
func (m *lastMinute) count(now time.Duration) int {
	m.advance(now)
	n := 0
	for _, c := range m.counts {
		n += int(c)
	}
	return n
}

func (m *lastMinute) advance(now time.Duration) {
	second := int64(now / time.Second)
	for m.second = max(m.second, second-60); m.second < second; {
		m.second++
		m.counts[m.second%60] = 0
	}
}
