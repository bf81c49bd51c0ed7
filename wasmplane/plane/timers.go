package plane

import (
	"math/bits"
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

// never is the time until something that does not come.
const never = time.Duration(1<<63 - 1)

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

	// farFuture: upstream's queues have a timer that far away where they need
	// none (see wasmplane/module/overlay). It is shown as no timer.
	farFuture = 365 * 24 * time.Hour
)

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
	now := g.plane.clock.now()
	if !sleeps {
		return g.nextTimer - now
	}
	rest, slack := g.timersRest(), g.TimerSlack
	switch {
	case rest && g.quiet:
		return never
	case rest:
		slack = hasteSlack
	case slack > 0:
		slack = min(slack, g.heartbeatSlack(time.Now(), g.nextTimer-now))
	}
	if !g.quiet {
		slack = min(slack, hasteSlack)
	}
	at := g.nextTimer + slack
	if slack > hasteSlack && g.Heartbeat.Resource == "" { // heartbeats move it on
		at = together(g.nextTimer, at)
	}
	return at - now
}

// together is when a timer fires that may between from and to, which is later, so that
// those of several guests do at once: at the roundest moment there is, the one that most
// powers of two divide. Whose slack is large fires at moments that are round for all
// others, too.
func together(from, to time.Duration) time.Duration {
	differ := bits.Len64(uint64(from ^ to)) // the bits in which no moment in between has to agree
	return to &^ (1<<differ>>1 - 1)
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

// isQuiet reports whether the next timer may be late: nothing has stirred the guest
// for a while, or will have when the timer is due; guest.mu is held.
func (g *guest) isQuiet() bool {
	at := time.Now()
	if g.nextTimer >= 0 {
		at = at.Add(max(0, g.nextTimer-g.plane.clock.now()))
	}
	return at.Sub(g.stirred) >= max(slackAfter, g.SlackAfter)
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
	silent := len(g.heartbeats) == 0 || g.heartbeatSlack(time.Now(), 0) == 0
	g.heartbeats[ev.UID] = time.Now()
	if silent {
		poke(g.notify) // the next timer is another now
	}
}
