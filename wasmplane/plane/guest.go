package plane

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

const (
	// Back-off after a guest was ended, doubled each time and forgotten once it
	// has behaved for as long as the longest.
	firstBackoff = time.Second
	maxBackoff   = 5 * time.Minute

	// measureAfter is how long a guest has run when its memory is measured anew.
	// That takes about as long as handling one event.
	measureAfter = 5 * time.Millisecond

	// stopPatience bounds the wait at shutdown for requests under way.
	stopPatience = 3 * time.Second
)

// Commands from outside.
const (
	commandWake  = "wake"
	commandEvict = "evict"
)

var errBusy = errors.New("busy: requests are under way or events are waiting; try again")

// Classes of reasons for a wake, for the metric.
const (
	reasonStart   = "start"
	reasonEvent   = "event"
	reasonTimer   = "timer"
	reasonCommand = "command"
)

// guest is one controller: its streams, which stay, and its memory, which comes
// and goes. One goroutine owns the memory; see loop.
type guest struct {
	controllers.Declaration
	plane     *Plane
	log       *logrus.Entry
	transport http.RoundTripper
	files     map[string]string
	startSum  string // see digest
	started   func() // lets another guest start
	mailbox   *runtime.Mailbox
	notify    chan struct{} // something is in the mailbox
	commands  chan command
	pressure  chan struct{} // the budget wants this guest's memory
	limits

	// Owned by loop.
	inst      *runtime.Instance
	saveAfter time.Time // no save before, after one failed
	retryAt   time.Time // next start of a failed guest
	backoff   time.Duration
	startedAt time.Time
	ranFor    time.Duration // since its memory was measured
	lean      int64         // bytes of the pages that were saved when its garbage had been collected last

	mu           sync.Mutex // guards what follows
	state        State
	quiet        bool // nothing had stirred it for slackAfter when it was saved
	exchanges    map[uint32]*exchange
	underWay     int                  // exchanges that will answer soon
	asked        int                  // bytes of the requests of all exchanges
	waitingBytes int                  // of the events that wait
	nextDue      time.Time            // when one of them has waited for long enough, as far as loop was told
	cause        cause                // of the next wake
	heartbeats   map[string]time.Time // last event, by UID, of the declared heartbeat
	nextTimer    time.Duration        // less than 0: none
	warmSince    time.Time            // since the last run that was no timer's
	warm         time.Duration        // how long it stays when idle, see adapt
	sleptAt      time.Time            // when it was saved last in this process
	stirred      time.Time            // last wake, response, or event that would have woken it
	marked       bool                 // the snapshot is behind the cluster
	stats        Detail
	woke         lastMinute
	lastWakes    []Wake
	stopping     bool            // the plane ends: park as soon as idle
	base         context.Context // of all exchanges
	cancel       context.CancelFunc
	streams      sync.WaitGroup // goroutines of exchanges
}

// cause is why a guest has to run.
type cause struct {
	reason string
	at     time.Time
}

type command struct {
	verb string
	done chan error
}

func newGuest(p *Plane, d controllers.Declaration) *guest {
	g := &guest{
		Declaration: d,
		plane:       p,
		started:     func() {},
		log:         p.config.Log.WithField("controller", d.Name),
		notify:      make(chan struct{}, 1),
		commands:    make(chan command),
		pressure:    make(chan struct{}, 1),
		limits:      newLimits(),
		state:       Cold,
		exchanges:   map[uint32]*exchange{},
		heartbeats:  map[string]time.Time{},
		nextTimer:   -1,
		warm:        p.config.IdleTimeout,
	}
	g.mailbox = runtime.NewMailbox(func() { poke(g.notify) })
	return g
}

// poke leaves a sign in a channel of capacity one.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// prepare sets what is known only once the server runs.
func (g *guest) prepare() error {
	g.transport = g.plane.host.Transport(g.Identity)
	g.base, g.cancel = context.WithCancel(context.Background())
	_, err := g.setUp()
	return err
}

// setUp asks what the guest is to be started with.
func (g *guest) setUp() (abi.Start, error) {
	var setup Setup
	if ask := g.plane.host.Setup; ask != nil {
		var err error
		if setup, err = ask(g.Name); err != nil {
			return abi.Start{}, fmt.Errorf("setting up %s: %w", g.Name, err)
		}
	}
	start := abi.Start{Controller: g.Name, Options: setup.Options}
	var err error
	g.files = setup.Files
	g.startSum, err = g.digest(start)
	return start, err
}

// digest identifies what a snapshot relies on: what the guest was started with, the
// files, and what of the declaration went into the heads of its watches.
func (g *guest) digest(start abi.Start) (string, error) {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(start); err != nil {
		return "", fmt.Errorf("encoding the options of %s: %w", g.Name, err)
	}
	for _, path := range slices.Sorted(maps.Keys(g.files)) {
		fmt.Fprintf(h, "%q%q", path, g.files[path])
	}
	for _, fields := range []map[string][]controllers.Field{g.Having, g.Purpose, g.Counting} {
		_ = json.NewEncoder(h).Encode(fields) // plain data, in a fixed order
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// loop owns the guest's memory until ctx is done.
func (g *guest) loop(ctx context.Context) {
	defer context.AfterFunc(ctx, g.stop)()
	stacked(func() {
		switch {
		case !g.resume(ctx):
			g.startInTurn(ctx)
		case ctx.Err() == nil:
			g.openStreams()
		}
	})
	defer g.started()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait, forever := g.untilNext()
		if forever {
			timer.Stop()
		} else {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
			g.shutdown()
			return
		case <-g.notify:
			stacked(g.runForEvents)
		case <-timer.C:
			stacked(g.tick)
		case <-g.pressure:
			if time.Now().After(g.saveAfter) {
				stacked(func() { _ = g.sleep(asItIs) }) // a busy guest keeps its memory
			}
		case c := <-g.commands:
			stacked(func() { c.done <- g.obey(c.verb) })
		}
	}
}

// stacked calls f on a stack of its own. What loops of sleeping guests wait on stays
// small then: compressing a snapshot alone needs 64 KiB, and Go makes a stack that
// has grown smaller by half at each garbage collection only.
func stacked(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// startInTurn runs the guest for the first time, unless ctx ends before it is its
// turn. Its turn lasts until started is called.
func (g *guest) startInTurn(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	select {
	case g.plane.starts <- struct{}{}:
		g.started = sync.OnceFunc(func() { <-g.plane.starts })
		g.run(reasonStart, reasonStart, time.Time{})
	case <-ctx.Done():
	}
}

// stop has the guest leave at its next chance: one with a timer every millisecond
// would otherwise never be parked.
func (g *guest) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopping = true
}

func (g *guest) runForEvents() {
	g.mu.Lock()
	c := g.cause
	g.mu.Unlock()
	if g.mailbox.Empty() || g.state == Failed {
		g.plane.enforceBudget() // a request was answered: the guest may be released now
		return
	}
	g.run(reasonEvent, c.reason, c.at)
}

// tick does what is due: a restart, a timer, sleep.
func (g *guest) tick() {
	now := time.Now()
	switch {
	case g.state == Failed:
		if !now.Before(g.retryAt) {
			g.run(reasonStart, "restart", time.Time{})
		}
	case g.waitingDue(now) <= 0:
		g.mu.Lock()
		g.stirred = now
		g.noteCause(g.overdue(now))
		g.flushWaiting()
		g.mu.Unlock()
	case g.timerDue() <= 0:
		g.timersFrom = now.Add(g.timers.ReserveN(now, 1).DelayFrom(now))
		g.run(reasonTimer, reasonTimer, time.Time{})
	case g.inst != nil && g.sleepIn(now) <= 0:
		_ = g.sleep(collected) // what went wrong was said; it is tried again
	}
}

// untilNext is how long nothing has to be done unless something happens.
func (g *guest) untilNext() (wait time.Duration, forever bool) {
	now := time.Now()
	if g.state == Failed {
		return max(0, g.retryAt.Sub(now)), false
	}
	wait = min(g.timerDue(), g.waitingDue(now))
	if g.inst != nil {
		wait = min(wait, g.sleepIn(now))
	}
	return max(0, wait), wait == never
}

func (g *guest) obey(verb string) error {
	switch verb {
	case commandEvict:
		return g.sleep(collected)
	case commandWake:
		g.mu.Lock()
		g.stirred = time.Now()
		g.mu.Unlock()
		g.run(reasonCommand, "wake command", time.Time{})
	}
	return nil
}

// command has the loop obey.
func (g *guest) command(ctx context.Context, verb string) error {
	c := command{verb: verb, done: make(chan error, 1)}
	select {
	case g.commands <- c:
		return <-c.done
	case <-g.plane.done:
		return errors.New("the plane is stopping")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// noteCause keeps the first reason since the last run; guest.mu is held.
func (g *guest) noteCause(reason string) {
	if g.cause.reason == "" {
		g.cause = cause{reason, time.Now()}
	}
}

// run brings the guest into memory, if it is not, and runs it until it is idle.
func (g *guest) run(class, reason string, arrived time.Time) {
	was := g.state
	select {
	case <-g.pressure: // it was idle when it was asked to leave
	default:
	}
	if err := g.load(); err != nil {
		g.fail(runtime.ReasonTrap, err)
		return
	}
	g.mu.Lock()
	g.flushWaiting()
	g.cause = cause{}
	g.state = Awake
	g.stats.Runs++
	g.stats.LastRun = reason
	if was != Warm {
		now := time.Now()
		g.stirred = now
		if class == reasonEvent && !g.sleptAt.IsZero() {
			g.warm = adapt(g.warm, now.Sub(g.sleptAt), g.plane.config.IdleTimeout)
		}
		g.stats.Wakes++
		g.woke.add(g.plane.clock.now())
		g.stats.LastWake, g.stats.LastWakeReason = &now, reason
		g.lastWakes = append(g.lastWakes[max(0, len(g.lastWakes)-keptWakes+1):], Wake{now, reason})
		g.plane.metrics.wakes.WithLabelValues(g.Name, class).Inc()
		if was == Asleep && !arrived.IsZero() {
			g.plane.metrics.wakeSeconds.WithLabelValues(g.Name).Observe(time.Since(arrived).Seconds())
		}
	}
	g.mu.Unlock()
	if was != Warm {
		g.log.WithField("reason", reason).Debugf("%s, now awake", was)
	}

	if was == Asleep {
		g.plane.prepare() // what this guest does may wake another
	}
	_ = g.step() // if the guest ended, it was seen to
}

// step runs the guest until it is idle. It is an error if the guest ended instead.
func (g *guest) step() error {
	began, used := time.Now(), g.inst.CPU()
	err := g.inst.Run()
	g.ranFor += time.Since(began)
	used = g.inst.CPU() - used
	g.mu.Lock()
	g.stats.CPUSeconds += used.Seconds()
	g.mu.Unlock()
	if err != nil {
		var exit *runtime.Exit
		if errors.As(err, &exit) {
			g.fail(exit.Reason, errors.New(exit.Detail))
		} else {
			g.fail(runtime.ReasonTrap, err)
		}
		return err
	}
	g.park()
	return nil
}

// park notes what an idle guest left.
func (g *guest) park() {
	resident := g.stats.ResidentBytes
	if resident == 0 || g.ranFor >= measureAfter {
		var err error
		if resident, err = g.inst.Resident(); err != nil {
			g.log.Warn(err)
		}
		g.ranFor = 0
	}
	next, ok := g.inst.NextTimer()
	g.mu.Lock()
	g.state = Warm
	if g.stats.LastRun != reasonTimer { // or one that polls would seem to be needed all the time
		g.warmSince = time.Now()
	}
	g.nextTimer = -1
	if ok && next-g.plane.clock.now() < farFuture {
		g.nextTimer = next
	}
	if g.mailbox.Empty() {
		g.cause = cause{} // it came while the guest ran
	}
	g.stats.ResidentBytes = resident
	g.stats.MemoryBytes = g.inst.MemorySize()
	settled := g.underWay == 0
	g.mu.Unlock()
	if settled {
		g.started()
	}
	if time.Since(g.startedAt) > maxBackoff {
		g.backoff = 0
	}
	g.plane.enforceBudget()
}

// load brings the guest into memory: from its snapshot, or fresh.
func (g *guest) load() error {
	if g.inst != nil {
		return nil
	}
	if g.state == Asleep {
		err := g.restore()
		if err == nil {
			return nil
		}
		g.log.Warnf("snapshot discarded, starting cold: %v", err)
		g.discard()
	}
	s, err := g.setUp() // anew: certificates may have been renewed
	if err != nil {
		return err
	}
	inst, err := g.instantiate(0)
	if err != nil {
		return err
	}
	var seed [8]byte
	g.Random(seed[:])
	s.Seed = int64(binary.LittleEndian.Uint64(seed[:]))
	payload, err := json.Marshal(s)
	if err != nil {
		inst.Close()
		return err
	}
	g.inst = inst
	g.startedAt, g.lean = time.Now(), 0
	g.mu.Lock()
	g.heartbeats = map[string]time.Time{}
	g.mu.Unlock()
	g.mailbox.Push(abi.FrameStart, 0, payload)
	return nil
}

// fail ends a guest that cannot go on; it starts cold after a while.
func (g *guest) fail(reason string, err error) {
	g.mu.Lock()
	doing := g.stats.LastRun
	g.mu.Unlock()
	if g.inst != nil {
		g.inst.Close()
		g.inst = nil
	}
	g.discard()
	g.backoff = min(max(firstBackoff, 2*g.backoff), maxBackoff)
	g.retryAt = time.Now().Add(g.backoff)
	g.mu.Lock()
	g.state = Failed
	g.started()
	g.stats.Restarts++
	g.stats.LastError = reason + ": " + err.Error()
	g.mu.Unlock()
	g.plane.metrics.restarts.WithLabelValues(g.Name, reason).Inc()
	g.log.WithFields(logrus.Fields{"reason": reason, "doing": doing, "retry": g.backoff}).
		Errorf("controller ended, starting it again cold: %v", err)
}

// shutdown saves what can be saved. A guest that stays busy is left behind with
// its mark set, and starts cold next time.
func (g *guest) shutdown() {
	patience := time.NewTimer(stopPatience)
	defer patience.Stop()
	for g.inst != nil {
		err := g.sleep(asItIs)
		if !errors.Is(err, errBusy) {
			break
		}
		select {
		case <-g.notify:
			g.runForEvents()
			continue
		case <-patience.C:
		}
		g.log.Info("stopped while busy")
		break
	}
	g.mu.Lock()
	// With something in the mailbox the watches are further than the snapshot.
	asleep, head := g.inst == nil && g.state == Asleep && g.mailbox.Empty(), snapshot.Head{}
	if asleep {
		g.fillStreams(&head)
	}
	for _, x := range g.exchanges {
		x.closed = true
	}
	g.cancel()
	g.mu.Unlock()
	if asleep {
		g.saveStreams(head)
	}
	g.streams.Wait()
	if g.inst != nil {
		g.inst.Close()
		g.inst = nil
	}
}

func (g *guest) status() Status { return g.detail().Status }

func (g *guest) detail() Detail {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.stats
	d.Name, d.Identity, d.Module, d.State = g.Name, g.Identity, g.plane.config.ModuleName, g.state
	d.WakesLastMinute = g.woke.count(g.plane.clock.now())
	if due := g.nextTimerDue(g.state == Asleep); due != never {
		at := time.Now().Add(due)
		d.NextTimer = &at
	}
	d.MemoryLimit, d.RunLimit, d.TimerSlack = g.MemoryLimit, g.RunLimit.String(), g.TimerSlack.String()
	d.WarmTime = g.warm.String()
	d.LastWakes = slices.Clone(g.lastWakes)
	for _, id := range slices.Sorted(maps.Keys(g.exchanges)) {
		if x := g.exchanges[id]; x.watch {
			d.Streams = append(d.Streams, StreamStatus{ID: x.id, URL: x.url.RequestURI(), Revision: x.seen, Waiting: len(x.waiting)})
		}
	}
	return d
}
