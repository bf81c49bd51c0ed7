package plane

import (
	"maps"
	"slices"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

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

// lacksFields reports whether an event is of an object that is none of the guest's
// business because it has none of the declared fields, and did not have one when the
// guest was told of it last; guest.mu is held.
//
// For the latter the exchange keeps, in having, the hashes of the UIDs of all
// objects that it has delivered with a field. Where that is not known each event
// concerns the guest.
func (x *exchange) lacksFields(ev event, raw []byte) bool {
	declared, ruled := x.guest.Having[x.resource]
	return ruled && x.having != nil && !x.having[xxhash.Sum64String(ev.UID)] && !mayHave(raw, declared)
}

// noteFields notes whether the guest was told of an object with a declared field;
// guest.mu is held.
func (x *exchange) noteFields(ev event, raw []byte) {
	if x.having == nil || ev.kind() == 0 {
		return
	}
	uid := xxhash.Sum64String(ev.UID)
	if ev.kind() != controllers.Deleted && mayHave(raw, x.guest.Having[x.resource]) {
		x.having[uid] = true
	} else {
		delete(x.having, uid)
	}
}

// resumeFields takes over which objects the guest knows with a declared field.
func (x *exchange) resumeFields(uids []uint64) {
	if _, ruled := x.guest.Having[x.resource]; !ruled || uids == nil {
		return
	}
	x.having = map[uint64]bool{}
	for _, uid := range uids {
		x.having[uid] = true
	}
}

// savedFields is what resumeFields takes.
func (x *exchange) savedFields() []uint64 {
	if x.having == nil {
		return nil
	}
	uids := slices.AppendSeq([]uint64{}, maps.Keys(x.having))
	slices.Sort(uids)
	return uids
}

// metadataKind is the kind of an object of which a watch tells the metadata alone.
const metadataKind = "PartialObjectMetadata"

// mayHave reports whether an event's object has one of these fields, or may have one
// as it cannot be told.
func mayHave(raw []byte, declared []controllers.Field) bool {
	kind, object, ok := objectOf(raw)
	return !ok || slices.ContainsFunc(declared, func(f controllers.Field) bool {
		if len(f.Path) == 0 || kind == metadataKind && f.Path[0] != objectMetadata {
			return true
		}
		has, err := hasField(object, f.Path, f.Value)
		return has || err != nil
	})
}

// hasField reports whether a message has a field, given by the numbers on the way to
// it. A value, if not empty, is what the field has to be, as a string. A field that
// is there and empty counts: it may be a message.
func hasField(b []byte, path []int, value string) (has bool, err error) {
	inner := eachField(b, func(f fieldValue) {
		if int(f.number) != path[0] || has || err != nil {
			return
		}
		switch {
		case len(path) == 1:
			has = value == "" || f.typ == protowire.BytesType && string(f.value) == value
		case f.typ == protowire.BytesType:
			has, err = hasField(f.value, path[1:], value)
		}
	})
	return has, firstError(inner, err)
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
