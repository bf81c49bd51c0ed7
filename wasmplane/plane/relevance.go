package plane

import "slices"

// A declaration says which events concern its controller. By their kind alone
// (Wait) too many do: each Pod is watched by a dozen controllers, and most of its
// changes are for one of them. So there are rules that look at the object, and at
// what else the guest knows. None of them may leave out what upstream acts on;
// what a rule cannot decide concerns the guest.

// ownedByOthers reports whether an event is of an object that is none of the
// guest's business, because an owner of another kind controls it.
//
// An object that nobody controls concerns the guest, which may adopt it. That is
// also how it hears of an object that its owner releases: the reference goes, and
// that event has none. An object that passes from one owner to another in a single
// update, as no controller does it, is noticed at the next wake only.
func (g *guest) ownedByOthers(x *exchange, ev event) bool {
	kinds, ruled := g.Owned[x.resource]
	return ruled && ev.Controller != "" && !slices.Contains(kinds, ev.Controller)
}

// lacksOthers reports whether objects of a watch are none of the guest's business
// because it knows no object of the resources that make them so; guest.mu is held.
// The first of these wakes it by itself, and what has waited comes before.
func (g *guest) lacksOthers(x *exchange) bool {
	others := g.Without[x.resource]
	return len(others) > 0 && g.knowsNone(others)
}

// timersRest reports whether the timers of the guest have nothing to do, as it knows
// no object of those that they are for; guest.mu is held. An object that appears
// wakes the guest, which then finds its timers overdue.
func (g *guest) timersRest() bool { return len(g.TimersFor) > 0 && g.knowsNone(g.TimersFor) }

// knowsNone reports whether the guest surely knows no object of any of these
// resources: it watches each, and was told of none that is still there. guest.mu is
// held.
func (g *guest) knowsNone(resources []string) bool {
	return !slices.ContainsFunc(resources, func(resource string) bool {
		watched := false
		for _, x := range g.exchanges {
			if !x.watch || x.resource != resource {
				continue
			}
			if !x.settled || !x.members.none() {
				return true
			}
			watched = true
		}
		return !watched
	})
}
