// Package plane decides which controllers are in memory. Each is a guest with a
// goroutine of its own, which wakes it when an event, a response or a timer
// concerns it, and saves and releases it when it has been idle for a while.
//
// One event's way: the API server writes it to a watch that the host holds open
// for all guests that watch the same (feed.run, feed.hand); unless the guest's
// declaration lets it wait (exchange.take), it goes into the mailbox and the guest's goroutine
// hears of it (guest.loop); the guest is restored if it sleeps (guest.load), runs
// until its Go scheduler says that nothing is left to do (runtime.Instance.Run),
// and stays in memory for the idle time-out; then guest.sleep writes what changed
// to the snapshot store and frees the rest.
package plane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/pressure"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

// Config is what a plane is made with.
type Config struct {
	Code       *runtime.Code // the module
	ModuleName string        // for people
	Digest     string        // identifies the module
	Dir        string        // for the snapshot store; made if missing
	Guests     []controllers.Declaration
	// IdleTimeout is how long an idle guest stays in memory, until it is known how
	// soon it is needed again.
	IdleTimeout time.Duration
	// MemoryBudget bounds what all guests hold together, in bytes; beyond it idle
	// ones are released early. 0 means no bound.
	MemoryBudget int64
	// Pressure tells when memory is scarce; nil: nobody does.
	Pressure *pressure.Monitor
	Log      *logrus.Entry
}

// Datastore identifies what the guests' caches mirror. It is read before the API
// server writes anything.
type Datastore struct {
	ID         string // made with the datastore
	Previous   string // names the run before this one
	Generation string // names this run
	Revision   int64  // highest revision at start
}

// Host is what the plane needs of a running server.
type Host struct {
	// Transport reaches the API server, the same for all, as the given user.
	Transport func(user string) http.RoundTripper
	Datastore Datastore
	Native    []string // controllers that run natively, for the list
	// Changes says when objects change; nil: nobody can, and all watches stay open.
	Changes Changes
	// Setup says what a guest is started with; nil: nothing. A snapshot of a guest that
	// was started with something else is not used.
	Setup func(name string) (Setup, error)
}

// Changes says when objects of a resource ("pods", "leases.coordination.k8s.io") change.
type Changes interface {
	// UpTo is a version up to which none has become newer than since: since itself
	// where that cannot be told.
	UpTo(resource string, since uint64) uint64
	// Await calls changed once, when one has become newer than since, with a version up
	// to which none had. stop has it not do so, but does not wait for a call under way.
	// It is not ok, and changed is not called, where that cannot be told.
	Await(resource string, since uint64, changed func(before uint64)) (stop func(), ok bool)
}

// Setup is what a guest is started with.
type Setup struct {
	Options json.RawMessage
	Files   map[string]string // that it can read, by path
}

// Plane runs the guests. Its methods are safe for concurrent use.
type Plane struct {
	config  Config
	metrics *metrics
	mux     *http.ServeMux
	guests  []*guest
	clock   *clock
	feeds   *feeds
	lists   *lists
	chunks  sync.Pool     // *[]byte for what is read of a response
	done    chan struct{} // closed when Run ends

	// Set by Run before any guest runs.
	host  Host
	store *snapshot.Store
	marks *snapshot.Marks

	starts  chan struct{} // has an element for each guest that starts cold
	recheck *time.Timer   // runs enforceBudget when guests that ran lately may go

	mu        sync.Mutex
	pressedAt time.Time // when memory was scarce
	native    []string
	unsaved   map[string]bool // guests whose last save failed
}

// startsAtATime is how many guests start cold together. All at once would not be ready
// any earlier, but all their first lists would be in memory at the same time.
const startsAtATime = 4

// New makes a plane. It does nothing until Run.
func New(config Config) *Plane {
	p := &Plane{config: config, metrics: newMetrics(), clock: newClock(), feeds: newFeeds(), lists: newLists(), starts: make(chan struct{}, startsAtATime), done: make(chan struct{}), unsaved: map[string]bool{}}
	p.chunks.New = func() any { return new(make([]byte, chunk)) }
	p.mux = p.routes()
	p.recheck = time.AfterFunc(never, p.enforceBudget)
	p.recheck.Stop()
	for _, d := range config.Guests {
		p.guests = append(p.guests, newGuest(p, d))
		p.metrics.wakeSeconds.WithLabelValues(d.Name) // it is there before the first wake
	}
	return p
}

// Controllers are the upstream names of the guests.
func (p *Plane) Controllers() []string {
	names := make([]string, len(p.guests))
	for k, g := range p.guests {
		names[k] = g.Name
	}
	return names
}

// Run runs the guests until ctx is done, and saves them then. It calls ready once
// they are started. It can be called once.
func (p *Plane) Run(ctx context.Context, host Host, ready func()) (err error) {
	defer close(p.done)
	if err := p.open(host); err != nil {
		return err
	}
	defer func() {
		if closeErr := errors.Join(p.marks.Close(), p.store.Close()); err == nil && closeErr != nil {
			err = fmt.Errorf("closing the snapshot store: %w", closeErr)
		}
	}()
	var loops, stopping sync.WaitGroup
	for _, g := range p.guests {
		if err := g.prepare(); err != nil {
			return err
		}
	}
	for _, g := range p.guests {
		loops.Go(func() { g.loop(ctx) })
	}
	if p.config.Pressure != nil {
		loops.Go(func() {
			if err := p.config.Pressure.Watch(ctx, p.scarce); err != nil {
				p.config.Log.Warn(err)
			}
		})
	}
	ended := make(chan struct{}) // every guest has stopped
	stopping.Go(func() { p.interruptAfter(ctx, ended) })
	ready()
	loops.Wait()
	close(ended)
	stopping.Wait()
	p.recheck.Stop()
	p.feeds.stop()
	return nil
}

// interruptAfter ends the guests that still run some time after ctx is done.
func (p *Plane) interruptAfter(ctx context.Context, ended <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-ended:
		return
	}
	patience := time.NewTimer(stopPatience)
	defer patience.Stop()
	select {
	case <-patience.C:
		p.config.Code.Interrupt()
	case <-ended:
	}
}

// open opens what is kept on disk and drops what no guest will use.
func (p *Plane) open(host Host) error {
	if err := os.MkdirAll(p.config.Dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of the snapshot store: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("reading the boot ID: %w", err)
	}
	id := snapshot.Identity{Module: p.config.Digest, Datastore: host.Datastore.ID}
	store, err := snapshot.Open(filepath.Join(p.config.Dir, "snapshots.db"), id, runtime.PageSize,
		func(why string) { p.config.Log.Warn(why) })
	if err != nil {
		return err
	}
	marks, err := snapshot.OpenMarks(filepath.Join(p.config.Dir, "awake"), strings.TrimSpace(string(boot)))
	if err != nil {
		store.Close()
		return err
	}
	p.mu.Lock()
	p.native = host.Native
	p.mu.Unlock()
	p.host, p.store, p.marks = host, store, marks
	p.feeds.changes = host.Changes
	p.clock.resume(store.Clock())

	known := map[string]bool{}
	for _, name := range p.Controllers() {
		known[name] = true
	}
	names, err := store.Names()
	for _, name := range names {
		if !known[name] {
			err = errors.Join(err, store.Drop(name))
		}
	}
	if err != nil {
		p.config.Log.Warnf("snapshots of controllers that are no guests: %v", err)
	}
	return nil
}

// List is the status of every controller, by name.
func (p *Plane) List() []Status {
	var all []Status
	for _, g := range p.guests {
		all = append(all, g.status())
	}
	p.mu.Lock()
	for _, name := range p.native {
		all = append(all, Status{Name: name, State: Native})
	}
	p.mu.Unlock()
	sort.Slice(all, func(a, b int) bool { return all[a].Name < all[b].Name })
	return all
}

// noteSave notes how a guest's save ended. It says once that snapshots cannot be
// written, and once that all can again: on a full disk those of small guests still
// fit between those of others.
func (p *Plane) noteSave(name string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := len(p.unsaved)
	if err != nil {
		p.unsaved[name] = true
	} else {
		delete(p.unsaved, name)
	}
	switch {
	case before == 0 && err != nil:
		p.config.Log.Errorf("controllers stay in memory: %v", err)
	case before > 0 && len(p.unsaved) == 0:
		p.config.Log.Info("snapshots are written again")
	}
}
