package plane

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

const (
	// worthSleeping is the least time until the next timer for which a guest is
	// saved; below it writing the snapshot costs more than the memory.
	worthSleeping = 10 * time.Second

	// slackAfter is how long nothing may have stirred a guest before its
	// declaration's slack, or its TimersFor, holds. Until then its next timer may be
	// one that cannot wait: another attempt at what has failed. The scheduler waits for
	// up to 10 seconds before one.
	slackAfter = 12 * time.Second

	// hasteSlack is the slack until then, for a guest that was put to sleep all the
	// same: by command, or because memory is scarce. Without any, one that polls ten
	// times a second would be back at once.
	hasteSlack = 5 * time.Second

	// lingerForResponse is how long an idle guest with a request under way waits
	// in place. The API server answers most requests within some milliseconds.
	lingerForResponse = 20 * time.Millisecond
	// lingerForTimer is the shortest timer that is worth leaving the guest for.
	lingerForTimer = 2 * time.Millisecond

	// waitLimit is how long an event may wait that does not wake its guest, where its
	// declaration names no other limit. Heartbeats may wait forever. Where more wait than heavyWaiting, in bytes, they do for
	// heavyLimit after a burst: in a snapshot they are on disk, and here in memory.
	waitLimit    = 6 * time.Hour
	heavyLimit   = time.Minute
	heavyWaiting = 256 << 10

	// lateness is how late an event of Declaration.Late wakes its guest. It is more than
	// a Deployment takes to have its pods, and less than people wait for.
	lateness = time.Second

	// Back-off after a guest was ended, doubled each time and forgotten once it
	// has behaved for as long as the longest.
	firstBackoff = time.Second
	maxBackoff   = 5 * time.Minute

	// measureAfter is how long a guest has run when its memory is measured anew.
	// That takes about as long as handling one event.
	measureAfter = 5 * time.Millisecond

	// worthCollecting is by how many bytes a guest must have grown since its garbage
	// was collected last for that to be done before it is saved. It takes some ten
	// milliseconds, as the base image is looked through too; without, the next wake
	// takes longer.
	worthCollecting = 256 << 10

	// saveRetry is the pause after a snapshot could not be written.
	saveRetry = 30 * time.Second

	// stopPatience bounds the wait at shutdown for requests under way.
	stopPatience = 3 * time.Second

	// farFuture: upstream's queues have a timer that far away where they need
	// none (see wasmplane/module/overlay). It is shown as no timer.
	farFuture = 365 * 24 * time.Hour
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
	quiet     bool      // nothing had stirred it for slackAfter when it was saved
	retryAt   time.Time // next start of a failed guest
	backoff   time.Duration
	startedAt time.Time
	ranFor    time.Duration // since its memory was measured
	lean      int64         // bytes of the pages that were saved when its garbage had been collected last

	mu           sync.Mutex // guards what follows
	state        State
	exchanges    map[uint32]*exchange
	underWay     int                  // exchanges that will answer soon
	asked        int                  // bytes of the requests of all exchanges
	waitingBytes int                  // of the events that wait
	nextDue      time.Time            // when one of them has waited for long enough, as far as loop was told
	cause        cause                // of the next wake
	heartbeats   map[string]time.Time // last event, by UID, of the declared heartbeat
	nextTimer    time.Duration        // less than 0: none
	warmSince    time.Time
	warm         time.Duration // how long it stays when idle, see adapt
	sleptAt      time.Time     // when it was saved last in this process
	stirred      time.Time     // last wake, response, or event that would have woken it
	marked       bool          // the snapshot is behind the cluster
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
	start := abi.Start{Controller: g.Name, Options: setup.Options, Verbosity: g.plane.config.Verbosity}
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
	for _, fields := range []map[string][]controllers.Field{g.Having, g.Purpose} {
		_ = json.NewEncoder(h).Encode(fields) // plain data, in a fixed order
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// loop owns the guest's memory until ctx is done.
func (g *guest) loop(ctx context.Context) {
	defer context.AfterFunc(ctx, g.stop)()
	stacked(func() {
		if g.resume(ctx) {
			g.openStreams()
		} else {
			g.startInTurn(ctx)
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
			stacked(func() { _ = g.sleep(asItIs) }) // a busy guest keeps its memory
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

const never = time.Duration(1<<63 - 1)

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

// timerDue is the time until the guest's next timer, with the slack that its
// declaration allows while it sleeps.
func (g *guest) timerDue() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(g.nextTimerDue(g.inst == nil), time.Until(g.timersFrom))
}

// nextTimerDue is timerDue for a guest that sleeps, or does not; guest.mu is held.
func (g *guest) nextTimerDue(sleeps bool) time.Duration {
	if g.nextTimer < 0 {
		return never
	}
	due := g.nextTimer - g.plane.clock.now()
	if sleeps {
		rest, slack := g.timersRest(), g.TimerSlack
		switch {
		case rest && g.quiet:
			return never
		case rest:
			slack = hasteSlack
		case slack > 0:
			slack = min(slack, g.heartbeatSlack(time.Now(), due))
		}
		if !g.quiet {
			slack = min(slack, hasteSlack)
		}
		due += slack
	}
	return due
}

// heartbeatSlack is how much slack the declared heartbeat leaves for a timer that
// is due; guest.mu is held.
func (g *guest) heartbeatSlack(now time.Time, due time.Duration) time.Duration {
	if g.Heartbeat.Resource == "" {
		return never
	}
	slack := never
	for _, last := range g.heartbeats {
		slack = min(slack, last.Add(g.Heartbeat.Within).Sub(now)-due)
	}
	return max(0, slack)
}

// noteHeartbeat records an event of the declared heartbeat; guest.mu is held.
func (g *guest) noteHeartbeat(x *exchange, ev event) {
	if ev.UID == "" || g.Heartbeat.Resource == "" || x.resource != g.Heartbeat.Resource ||
		(g.Heartbeat.Namespace != "" && ev.Namespace != g.Heartbeat.Namespace) {
		return
	}
	if ev.kind() == controllers.Deleted {
		delete(g.heartbeats, ev.UID)
		return
	}
	silent := g.heartbeatSlack(time.Now(), 0) == 0
	g.heartbeats[ev.UID] = time.Now()
	if silent {
		poke(g.notify) // the next timer is another now
	}
}

// sleepIn is the time until an idle guest is to be saved; never if that is not
// worth it or not possible now.
func (g *guest) sleepIn(now time.Time) time.Duration {
	g.mu.Lock()
	underWay, next, slack, stirred, warm := g.underWay, g.nextTimer, g.TimerSlack, g.stirred, g.warm
	rest := next >= 0 && g.timersRest()
	if slack > 0 {
		slack = min(slack, g.heartbeatSlack(now, 0))
	}
	g.mu.Unlock()
	if underWay > 0 {
		return never // its response will come, and with it a run
	}
	at := stirred.Add(warm)
	if quiet := stirred.Add(max(slackAfter, g.SlackAfter)); (g.TimerSlack > 0 || rest) && quiet.After(at) {
		at = quiet
	}
	if g.saveAfter.After(at) {
		at = g.saveAfter
	}
	if next >= 0 && !rest && next+slack-g.plane.clock.now()-at.Sub(now) < worthSleeping {
		return never // a timer runs first, and the question comes again
	}
	return at.Sub(now)
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

// resume decides whether the snapshot on disk, if there is one, can be used.
func (g *guest) resume(ctx context.Context) bool {
	head, err := g.plane.store.Head(g.Name)
	switch {
	case errors.Is(err, snapshot.ErrNotFound):
		return false
	case err != nil:
	case g.plane.marks.InDoubt(g.Name):
		err = errors.New("after a crash or a power cut it may be older than what the controller did")
	case head.Start != g.startSum:
		err = errors.New("its options or its declaration are others now")
	case head.Generation != g.plane.host.Datastore.Previous:
		err = errors.New("it was not saved in the run before this one")
	case head.Revision > g.plane.host.Datastore.Revision:
		err = fmt.Errorf("it has seen revision %d, the datastore only %d", head.Revision, g.plane.host.Datastore.Revision)
	}
	if err == nil {
		head.Generation = g.plane.host.Datastore.Generation
		err = g.plane.store.SaveHead(g.Name, head, g.plane.clock.saved())
	}
	if err == nil {
		err = g.adopt(head)
	}
	if err != nil {
		g.log.Infof("snapshot discarded, starting cold: %v", err)
		g.discard()
		return false
	}
	if err := g.caughtUp(ctx); err != nil {
		// Nothing unusual: the cluster has changed while the server was stopped,
		// or did as it started.
		g.log.Debugf("starting cold: %v", err)
		g.discard()
		return false
	}
	return true
}

// adopt takes over what a snapshot says besides memory.
func (g *guest) adopt(head snapshot.Head) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range head.Streams {
		x, err := g.resumeExchange(s)
		if err != nil {
			g.exchanges = map[uint32]*exchange{}
			return err
		}
		g.exchanges[x.id] = x
	}
	g.state, g.nextTimer, g.quiet = Asleep, head.NextTimer, head.Quiet
	for _, uid := range head.Heartbeats {
		g.heartbeats[uid] = time.Now() // it may have fallen silent since; that will show
	}
	g.stats.SnapshotBytes = g.plane.store.Size(g.Name)
	return nil
}

// openStreams starts the watches of an adopted snapshot.
func (g *guest) openStreams() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, x := range g.exchanges {
		g.launch(x)
	}
}

// launch starts an exchange's goroutine; guest.mu is held.
func (g *guest) launch(x *exchange) {
	x.ctx, x.cancel = context.WithCancel(g.base)
	if x.watch {
		context.AfterFunc(x.ctx, func() { g.plane.feeds.leave(x) })
	}
	g.spawn(x, x.run)
}

// spawn runs an exchange to its end, unless a feed takes over; guest.mu is held.
func (g *guest) spawn(x *exchange, run func() error) {
	g.streams.Go(func() {
		err := run()
		if errors.Is(err, errFollows) {
			return
		}
		if x.ctx.Err() == nil {
			x.end(err)
		}
		g.finish(x)
	})
}

func (g *guest) finish(x *exchange) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.close(x)
}

// close ends an exchange once; guest.mu is held.
func (g *guest) close(x *exchange) {
	if x.closed {
		return
	}
	x.closed = true
	if !x.settled {
		g.answered()
	}
	for _, w := range x.waiting {
		g.waitingBytes -= len(w.raw)
	}
	x.waiting = nil
	g.asked -= x.size
	x.cancel()
	delete(g.exchanges, x.id)
}

// settle says that a watch is open; it may stay silent from now on.
func (g *guest) settle(x *exchange) {
	if x.release != nil {
		x.release()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !x.closed && !x.settled {
		x.settled = true
		g.answered()
	}
}

// answered notes that one exchange less is under way; guest.mu is held.
func (g *guest) answered() {
	if g.underWay--; g.underWay == 0 {
		poke(g.notify) // the guest may be put to sleep now
	}
}

// Request implements runtime.Host.
func (g *guest) Request(encoded []byte) uint32 {
	errno, err := g.accept(encoded)
	if err != nil {
		g.refused.Do(func() {
			g.log.Warnf("refused a request: %v (more such lines are left out for %s)", err, complaintPeriod)
		})
	}
	return errno
}

// accept begins an exchange, or says why not.
func (g *guest) accept(encoded []byte) (errno uint32, err error) {
	r, err := abi.DecodeRequest(encoded)
	if err != nil {
		return abi.ErrFormat, err
	}
	x, err := g.newExchange(r)
	if err != nil {
		return abi.ErrFormat, err
	}
	x.size = len(encoded)
	if g.requests.Tokens() < 1 {
		g.slowed.Do(func() { g.log.Warnf("asks too often; slowed down to %d requests a second", requestRate) })
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, taken := g.exchanges[x.id]; taken {
		return abi.ErrFormat, fmt.Errorf("stream %d is in use", x.id)
	}
	if len(g.exchanges) >= maxExchanges {
		return abi.ErrLimit, fmt.Errorf("%d are under way", maxExchanges)
	}
	if g.asked+x.size > maxRequestBytes {
		return abi.ErrLimit, fmt.Errorf("those under way have more than %d MiB", maxRequestBytes>>20)
	}
	if x.method != http.MethodGet && !g.marked {
		// Before the API server sees it: after a crash the snapshot must not be
		// taken for what the controller knows.
		if err := g.plane.marks.Set(g.Name); err != nil {
			return abi.ErrLimit, err
		}
		g.marked = true
	}
	g.exchanges[x.id] = x
	g.underWay++
	g.asked += x.size
	g.launch(x)
	return abi.OK, nil
}

// Cancel implements runtime.Host.
func (g *guest) Cancel(id uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if x := g.exchanges[id]; x != nil {
		g.close(x)
	}
}

// Log implements runtime.Host. Controllers write klog's text format, whose first
// letter is the severity. What upstream calls an error is nearly always tried
// again, and is a warning here, as it is for controllers that run natively.
// Anything else is a Go program's last words.
func (g *guest) Log(line string) {
	level := logrus.ErrorLevel
	if header, text, ok := strings.Cut(line, "] "); ok && len(header) >= 6 {
		switch header[0] {
		case 'I':
			level, line = logrus.DebugLevel, text
		case 'W', 'E':
			level, line = logrus.WarnLevel, text
		}
	}
	if g.log.Logger.IsLevelEnabled(level) && g.output.admit(g.log, line, time.Now()) {
		g.log.Log(level, line)
	}
}

// Clock implements runtime.Host.
func (g *guest) Clock() (wall, monotonic time.Duration) {
	return time.Duration(time.Now().UnixNano()), g.plane.clock.now()
}

// Random implements runtime.Host.
func (g *guest) Random(b []byte) { _, _ = rand.Read(b) } // never fails, see crypto/rand

// Linger implements runtime.Host.
func (g *guest) Linger(next time.Duration) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	linger := time.Duration(0)
	switch {
	case g.stopping:
	case g.underWay > 0:
		linger = lingerForResponse
	case next >= 0 && next <= lingerForTimer:
		linger = lingerForTimer
	}
	if next >= 0 && next <= linger && !g.timers.Allow() {
		return 0 // it is parked, and its timer is late
	}
	return linger
}

// mayWait reports whether an event that need not wake the guest can be kept for
// later; guest.mu is held. Also while the guest is in memory: in a burst most events
// are overtaken before it has something to do.
func (g *guest) mayWait(ev event) bool {
	return g.mailbox.Empty() && ev.UID != "" && g.waitingBytes < maxWaiting
}

// needNotWake reports what the declaration says of an event; guest.mu is held.
func (g *guest) needNotWake(x *exchange, ev event, raw []byte) bool {
	kind := ev.kind()
	return kind != 0 && (g.MayWait(x.resource)&kind != 0 && !g.urgent(x, raw) || g.ownedByOthers(x, ev) || g.lacksOthers(x) || x.lacksFields(ev, raw) ||
		g.servesNothing(x, ev, raw))
}

// mayKeep reports whether an event need not wake the guest now, and when it does
// after all; zero: never. guest.mu is held.
func (g *guest) mayKeep(x *exchange, ev event, raw []byte) (waits bool, due time.Time) {
	switch {
	case ev.Refresh:
		return true, time.Time{}
	case g.needNotWake(x, ev, raw):
		limit := waitLimit
		if g.WaitLimit > 0 {
			limit = g.WaitLimit
		}
		if g.waitingBytes > heavyWaiting {
			limit = min(limit, heavyLimit)
		}
		return true, time.Now().Add(limit)
	case g.MayBeLate(x.resource)&ev.kind() != 0:
		return true, time.Now().Add(lateness)
	}
	return false, time.Time{}
}

// flushWaiting delivers what waited; guest.mu is held.
func (g *guest) flushWaiting() {
	if g.waitingBytes == 0 {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(g.exchanges)) {
		g.exchanges[id].flush()
	}
	g.nextDue = time.Time{}
}

// waitingDue is the time until an event has waited for long enough.
func (g *guest) waitingDue(now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	due := never
	for _, x := range g.exchanges {
		for _, w := range x.waiting {
			if !w.due.IsZero() {
				due = min(due, w.due.Sub(now))
			}
		}
	}
	return due
}

// overdue names an event that has waited for long enough; guest.mu is held.
func (g *guest) overdue(now time.Time) string {
	for _, id := range slices.Sorted(maps.Keys(g.exchanges)) {
		x := g.exchanges[id]
		for _, w := range x.waiting {
			if !w.due.IsZero() && !w.due.After(now) {
				return x.describe(w.event)
			}
		}
	}
	return "waiting events"
}

// awaitDue has loop look again when the next event has waited for long enough, if
// that is earlier than it knows; guest.mu is held.
func (g *guest) awaitDue(due time.Time) {
	if g.nextDue.IsZero() || due.Before(g.nextDue) {
		g.nextDue = due
		poke(g.notify)
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
	g.state, g.warmSince = Warm, time.Now()
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
	inst, err := g.instantiate()
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

func (g *guest) instantiate() (*runtime.Instance, error) {
	return g.plane.config.Code.Instantiate(runtime.Config{
		Host:    g,
		Mailbox: g.mailbox,
		Memory:  g.MemoryLimit,
		Run:     g.RunLimit,
		Files:   g.files,
	})
}

// restore makes an instance of the snapshot.
func (g *guest) restore() error {
	inst, err := g.instantiate()
	if err != nil {
		return err
	}
	if err := g.fill(inst); err != nil {
		inst.Close()
		return err
	}
	g.inst = inst
	if g.startedAt.IsZero() {
		g.startedAt = time.Now()
	}
	return nil
}

func (g *guest) fill(inst *runtime.Instance) error {
	return g.plane.store.Load(g.Name, func(head snapshot.Head, pages snapshot.Pages) error {
		if g.MemoryLimit > 0 && head.Memory > g.MemoryLimit {
			return fmt.Errorf("%d bytes of memory, more than the limit of %d", head.Memory, g.MemoryLimit)
		}
		if err := inst.Grow(head.Memory); err != nil {
			return err
		}
		restored, err := inst.Restore(pages)
		if err != nil {
			return err
		}
		if g.lean == 0 { // it is of an earlier run of the plane
			g.lean = restored
		}
		inst.SetNextTimer(head.NextTimer, head.NextTimer >= 0)
		return inst.SetGlobals(head.Globals)
	})
}

// What may be done before a guest is saved.
const (
	asItIs    = false // there is no time for anything
	collected = true  // its garbage is collected, if there may be much of it
)

// sleep saves the guest and releases its memory. It returns errBusy where the
// guest has something to do.
func (g *guest) sleep(collect bool) error {
	if g.inst == nil {
		return nil
	}
	if _, err := g.head(); err != nil {
		return err
	}
	if collect {
		var err error
		if collect, err = g.collect(); err != nil {
			return err
		}
	}
	head, err := g.head()
	if err != nil {
		return err
	}
	began := time.Now()
	dirty, err := g.inst.Dirty()
	size := int64(0)
	pages := func(yield func(int, []byte) bool) {
		size = 0 // they may be gone through more than once
		for k, delta := range dirty {
			size += int64(runtime.PageSize)
			if !yield(k, delta) {
				return
			}
		}
	}
	if err == nil {
		head.Memory = g.inst.MemorySize()
		head.Globals, err = g.inst.Globals()
	}
	written := 0
	if err == nil {
		written, err = g.plane.store.Save(g.Name, head, g.plane.clock.saved(), pages)
	}
	g.plane.noteSave(g.Name, err)
	if err != nil {
		g.saveAfter = time.Now().Add(saveRetry)
		return err
	}
	g.plane.metrics.saveSeconds.Observe(time.Since(began).Seconds())
	g.plane.metrics.written.Add(float64(written))
	if err := g.plane.marks.Clear(g.Name); err != nil {
		g.log.Warn(err) // the next start is cold, that is all
	}
	if collect {
		g.lean = size
	}
	stored := g.plane.store.Size(g.Name)
	now := time.Now()
	g.mu.Lock()
	g.marked = false
	g.sleptAt = now
	g.stats.SnapshotBytes = stored
	g.stats.SnapshotAt = &now
	g.stats.WrittenBytes += int64(written)
	if !g.mailbox.Empty() { // needed again while it was saved
		g.warm = adapt(g.warm, 0, g.plane.config.IdleTimeout)
		g.mu.Unlock()
		return errBusy
	}
	g.state = Asleep
	g.stats.ResidentBytes = 0
	g.mu.Unlock()
	g.quiet = head.Quiet
	g.inst.Close()
	g.inst = nil
	g.log.WithFields(logrus.Fields{"written": written, "took": time.Since(began).Round(10 * time.Microsecond)}).Debug("asleep")
	return nil
}

// collect has the guest collect its garbage, if it has grown by much since that was
// done last: dead objects would be saved, and restored, like any others. It reports
// whether it was done.
func (g *guest) collect() (bool, error) {
	dirty, err := g.inst.Dirty()
	if err != nil {
		return false, err
	}
	size := int64(0)
	for range dirty {
		size += int64(runtime.PageSize)
	}
	if size < g.lean+worthCollecting {
		return false, nil
	}
	g.mailbox.Push(abi.FrameCollect, 0, nil)
	return true, g.step()
}

// head describes the guest as it is, if it has nothing to do. From here to the
// end of the save nothing reaches its memory: only loop runs it.
func (g *guest) head() (snapshot.Head, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.underWay > 0 || !g.mailbox.Empty() {
		return snapshot.Head{}, errBusy
	}
	head := snapshot.Head{Generation: g.plane.host.Datastore.Generation, Start: g.startSum, NextTimer: g.nextTimer, Quiet: g.isQuiet()}
	g.fillStreams(&head)
	return head, nil
}

// isQuiet reports whether the next timer may be late: nothing has stirred the guest
// for a while, or will have when the timer is due; guest.mu is held.
func (g *guest) isQuiet() bool {
	at := time.Now()
	if g.nextTimer >= 0 {
		at = at.Add(max(0, g.nextTimer-g.plane.clock.now()))
	}
	return at.Sub(g.stirred) >= max(slackAfter, g.SlackAfter)
}

// fillStreams describes the open watches; guest.mu is held.
func (g *guest) fillStreams(head *snapshot.Head) {
	head.Streams, head.Revision = nil, 0
	head.Heartbeats = slices.Sorted(maps.Keys(g.heartbeats))
	for _, id := range slices.Sorted(maps.Keys(g.exchanges)) {
		x := g.exchanges[id]
		head.Streams = append(head.Streams, x.snapshotStream())
		if rv, err := strconv.ParseInt(x.delivered, 10, 64); err == nil {
			head.Revision = max(head.Revision, rv)
		}
	}
}

// discard forgets the snapshot and everything that belongs to that life.
func (g *guest) discard() {
	g.mu.Lock()
	g.cancel()
	for _, x := range g.exchanges {
		if x.cancel != nil {
			g.close(x)
		}
	}
	g.exchanges = map[uint32]*exchange{}
	g.underWay = 0
	g.mu.Unlock()
	g.streams.Wait() // nobody delivers to the next life
	g.mailbox.Reset()
	err := g.plane.store.Drop(g.Name)
	g.plane.noteSave(g.Name, err)
	if err == nil {
		if err := g.plane.marks.Clear(g.Name); err != nil {
			g.log.Warn(err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.base, g.cancel = context.WithCancel(context.Background())
	g.state, g.marked, g.nextTimer, g.cause, g.sleptAt = Cold, false, -1, cause{}, time.Time{}
	g.stats.SnapshotBytes, g.stats.ResidentBytes = 0, 0
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

// saveStreams writes how far the watches of a sleeping guest have come.
func (g *guest) saveStreams(now snapshot.Head) {
	head, err := g.plane.store.Head(g.Name)
	if err == nil {
		head.Streams, head.Revision, head.Heartbeats = now.Streams, now.Revision, now.Heartbeats
		err = g.plane.store.SaveHead(g.Name, head, g.plane.clock.saved())
	}
	if err != nil {
		g.log.Warnf("how far the watches have come was not saved: %v", err)
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
