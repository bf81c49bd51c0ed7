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
