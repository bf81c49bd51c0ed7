package plane

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// How long guests stay in memory. To leave costs a save, and a restore when the
// guest is needed again; to stay costs its memory. Both are spared by knowing when
// it will be needed, and the best guess is that it will be as it was.
//
// So each guest has a warm time of its own, which begins with the idle time-out. If
// an event brings the guest back when it has slept for less than a few warm times,
// staying would have been cheaper, and the next time it stays twice as long. If it
// slept for long, it stays half as long the next time. In between nothing changes.
// Timers do not count: they are known, and looked at, before a guest is saved.
//
// When guests hold more than the budget, those go first that have been idle for
// longest in proportion to their warm time, which is the time for which they are
// expected to be idle. But in a burst a guest is needed again within milliseconds,
// and to save and restore it each time would take longer than the work. Therefore
// one that ran lately, its timers aside, stays although the budget is exceeded; if it
// is by far, that is not lately any more but just now.
const (
	// soon is how many warm times a guest has slept at most when staying would
	// have been better.
	soon = 4
	// maxWarm and minWarm bound the warm time, in parts of the idle time-out.
	maxWarm = 15
	minWarm = 0.5

	// lately is for how long after it ran a guest does not have to leave.
	lately = time.Second
	// justNow is the same where guests hold more than farOver budgets.
	justNow = 50 * time.Millisecond
	farOver = 2

	// pressureLasts is how long after a sign that memory is scarce there is no
	// budget at all.
	pressureLasts = 10 * time.Second
)

// adapt is the warm time of a guest whose warm time was warm, when an event wakes
// it that has slept for asleep. idle is the idle time-out.
func adapt(warm, asleep, idle time.Duration) time.Duration {
	longest, shortest := maxWarm*idle, time.Duration(minWarm*float64(idle))
	switch {
	case asleep < soon*warm:
		return min(2*warm, longest)
	case asleep > longest:
		return max(warm/2, shortest)
	}
	return warm
}

// holder is what decides whether a guest has to leave.
type holder struct {
	bytes int64
	mayGo bool          // it is idle and waits for no response
	idle  time.Duration // since it ran, but for timers
	warm  time.Duration // its warm time
}

// leave picks those that leave, first to last. If more have to, but ran lately, it
// says when to ask again; 0: when something changes.
func leave(holders []holder, budget int64, grace time.Duration) (which []int, again time.Duration) {
	excess := -budget
	var may []int
	for k, h := range holders {
		excess += h.bytes
		if h.mayGo {
			may = append(may, k)
		}
	}
	ripeness := func(k int) float64 { return float64(holders[k].idle) / float64(max(holders[k].warm, 1)) }
	slices.SortStableFunc(may, func(a, b int) int { return cmp.Compare(ripeness(b), ripeness(a)) })
	for _, k := range may {
		if excess <= 0 {
			return which, 0
		}
		if left := grace - holders[k].idle; left > 0 {
			if again == 0 || left < again {
				again = left
			}
			continue
		}
		which = append(which, k)
		excess -= holders[k].bytes
	}
	if excess <= 0 {
		again = 0
	}
	return which, again
}

// enforceBudget asks guests to release their memory if all together hold too much.
func (p *Plane) enforceBudget() {
	now := time.Now()
	if p.config.Pressure != nil && p.config.Pressure.Short() {
		p.notePressure(now)
	}
	pressed := p.pressed(now)
	if pressed {
		p.config.Code.DropSlots()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	budget := p.config.MemoryBudget
	if budget == 0 {
		budget = math.MaxInt64
	}
	if pressed {
		budget = 0
	} else if p.config.MemoryBudget == 0 {
		return
	}
	holders := make([]holder, len(p.guests))
	var total int64
	for k, g := range p.guests {
		g.mu.Lock()
		holders[k] = holder{
			bytes: g.stats.ResidentBytes,
			mayGo: g.state == Warm && g.underWay == 0,
			idle:  now.Sub(g.warmSince),
			warm:  g.warm,
		}
		g.mu.Unlock()
		total += holders[k].bytes
	}
	grace := lately
	if !pressed && total > farOver*budget {
		grace = justNow
	}
	which, again := leave(holders, budget, grace)
	for _, k := range which {
		poke(p.guests[k].pressure)
	}
	if again > 0 {
		p.recheck.Reset(again)
	}
}

// scarce has the guests leave memory that is needed elsewhere.
func (p *Plane) scarce() {
	p.config.Log.Debug("memory is scarce: idle controllers are put to sleep")
	p.notePressure(time.Now())
	p.enforceBudget()
}

// prepare makes the next wake faster, unless memory is scarce.
func (p *Plane) prepare() {
	if !p.pressed(time.Now()) {
		p.config.Code.Prepare()
	}
}

// pressed reports whether memory was scarce a moment ago.
func (p *Plane) pressed(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Sub(p.pressedAt) < pressureLasts
}

func (p *Plane) notePressure(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pressedAt = now
}
