package plane

import (
	"maps"
	"slices"
	"time"
)

const (
	// waitLimit is how long an event may wait that does not wake its guest, where its
	// declaration names no other limit. Heartbeats may wait forever. Where more wait than
	// heavyWaiting, in bytes, as after a burst, they do for heavyLimit: in a snapshot they
	// are on disk, and here in memory.
	waitLimit    = 6 * time.Hour
	heavyLimit   = time.Minute
	heavyWaiting = 256 << 10

	// lateness is how late an event of Declaration.Late wakes its guest. It is more than
	// a Deployment takes to have its pods, and less than people wait for.
	lateness = time.Second
)

// mayWait reports whether an event that need not wake the guest can be kept for
// later; guest.mu is held. Also while the guest is in memory: in a burst most events
// are overtaken before it has something to do.
func (g *guest) mayWait(ev event) bool {
	return g.mailbox.Empty() && ev.UID != "" && g.waitingBytes < maxWaiting
}

// needNotWake reports what the declaration says of an event; guest.mu is held.
func (g *guest) needNotWake(x *exchange, ev event, raw []byte) bool {
	kind := ev.kind()
	return kind != 0 && (g.MayWait(x.resource)&kind != 0 && !ev.Changed && !g.urgent(x, raw) || g.ownedByOthers(x, ev) || g.lacksOthers(x) || x.lacksFields(ev, raw) ||
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
}

// waitingDue is the time until an event has waited for long enough. It is for loop,
// which then knows.
func (g *guest) waitingDue(now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nextDue = time.Time{}
	for _, x := range g.exchanges {
		for _, w := range x.waiting {
			if !w.due.IsZero() && (g.nextDue.IsZero() || w.due.Before(g.nextDue)) {
				g.nextDue = w.due
			}
		}
	}
	if g.nextDue.IsZero() {
		return never
	}
	return g.nextDue.Sub(now)
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
