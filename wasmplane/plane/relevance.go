package plane

import (
	"maps"
	"net/url"
	"slices"
	"strconv"

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

// urgent reports whether an event's object has, or may have, a field with which it
// does not wait.
func (g *guest) urgent(x *exchange, raw []byte) bool {
	declared := g.Urgent[x.resource]
	return len(declared) > 0 && mayHave(raw, declared)
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
	return ruled && x.lacks(declared, ev, raw)
}

func (x *exchange) lacks(declared []controllers.Field, ev event, raw []byte) bool {
	return x.having != nil && !x.having[xxhash.Sum64String(ev.UID)] && !mayHave(raw, declared)
}

// fields are what exchange.having is about.
func (x *exchange) fields() (declared []controllers.Field, ruled bool) {
	for _, of := range []map[string][]controllers.Field{x.guest.Having, x.guest.Purpose, x.guest.Counting} {
		if declared, ruled = of[x.resource]; ruled {
			return declared, true
		}
	}
	return nil, false
}

// servesNothing reports whether an event has no part in the guest's purpose, of which
// the guest knows no object either; guest.mu is held.
func (g *guest) servesNothing(x *exchange, ev event, raw []byte) bool {
	if len(g.Purpose) == 0 {
		return false
	}
	declared, ruled := g.Purpose[x.resource]
	return (!ruled || x.lacks(declared, ev, raw)) && !g.hasPurpose()
}

// hasPurpose reports whether the guest may know an object that is its purpose;
// guest.mu is held.
func (g *guest) hasPurpose() bool {
	for resource := range g.Purpose {
		watched := false
		for _, x := range g.exchanges {
			if !x.watch || x.resource != resource {
				continue
			}
			if !x.settled || x.having == nil || len(x.having) > 0 {
				return true
			}
			watched = true
		}
		if !watched {
			return true
		}
	}
	return false
}

// noteFields notes whether the guest was told of an object with a declared field;
// guest.mu is held.
func (x *exchange) noteFields(ev event, raw []byte) {
	if x.having == nil || ev.kind() == 0 {
		return
	}
	uid := xxhash.Sum64String(ev.UID)
	if declared, _ := x.fields(); ev.kind() != controllers.Deleted && mayHave(raw, declared) {
		x.having[uid] = true
	} else {
		delete(x.having, uid)
	}
}

// resumeFields takes over which objects the guest knows with a declared field.
func (x *exchange) resumeFields(uids []uint64) {
	if _, ruled := x.fields(); !ruled || uids == nil {
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

// noteChange reports whether an event changes one of the fields of which no change
// waits, and notes what they are now; guest.mu is held.
//
// It is what the host has seen last that counts: the guest knows it, or will before
// anything else. What is not known, as after the server was started, has changed.
func (x *exchange) noteChange(ev event, raw []byte) bool {
	declared := x.guest.MayNotChange(x.resource)
	if len(declared) == 0 || ev.kind() == 0 || ev.Refresh {
		return false
	}
	uid := xxhash.Sum64String(ev.UID)
	if ev.kind() == controllers.Deleted {
		delete(x.digests, uid)
		return false
	}
	before, known := x.digests[uid]
	now, ok := digest(raw, declared)
	if !ok {
		delete(x.digests, uid)
		return true
	}
	if x.digests == nil {
		x.digests = map[uint64]uint64{}
	}
	x.digests[uid] = now
	return !known || now != before
}

// digest hashes the declared fields of an event's object; ok says whether they could
// be read.
func digest(raw []byte, declared []controllers.Field) (sum uint64, ok bool) {
	kind, object, ok := objectOf(raw)
	if !ok {
		return 0, false
	}
	h := xxhash.New()
	for k, f := range declared {
		if kind == metadataKind && f.Path[0] != objectMetadata {
			return 0, false
		}
		err := eachAt(object, f.Path, func(v fieldValue) {
			_, _ = h.Write([]byte{byte(k)})
			_, _ = h.Write(v.whole)
		})
		if err != nil {
			return 0, false
		}
	}
	return h.Sum64(), true
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
		has, err := hasField(object, f.Path, counts(f))
		return has != f.Absent || err != nil
	})
}

// counts returns what says of a field with the declared numbers whether it is the
// declared one. An empty one is, as it may be a message, but not in place of one that
// is to be absent: text is in the encoding even if it is empty.
func counts(f controllers.Field) func(fieldValue) bool {
	return func(v fieldValue) bool {
		switch {
		case f.Absent:
			return len(v.value) > 0
		case f.Value != "":
			return v.typ == protowire.BytesType && string(v.value) == f.Value
		}
		return true
	}
}

// hasField reports whether a message has a field, given by the numbers on the way to
// it, that is as it has to be.
func hasField(b []byte, path []int, is func(fieldValue) bool) (has bool, err error) {
	err = eachAt(b, path, func(f fieldValue) { has = has || is(f) })
	return has, err
}

// eachAt calls do with each field of a message that the numbers on the way lead to.
func eachAt(b []byte, path []int, do func(fieldValue)) (err error) {
	inner := eachField(b, func(f fieldValue) {
		switch {
		case int(f.number) != path[0] || err != nil:
		case len(path) == 1:
			do(f)
		case f.typ == protowire.BytesType:
			err = eachAt(f.value, path[1:], do)
		}
	})
	return firstError(inner, err)
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
func (g *guest) timersRest() bool {
	return len(g.TimersFor) > 0 && g.knowsNone(g.TimersFor) || len(g.Purpose) > 0 && !g.hasPurpose()
}

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
			if !x.settled || g.toldOfSome(x) {
				return true
			}
			watched = true
		}
		return !watched
	})
}

// toldOfSome reports whether the guest may have been told of an object of a watch that
// counts and is still there; guest.mu is held.
func (g *guest) toldOfSome(x *exchange) bool {
	if _, ruled := g.Counting[x.resource]; ruled {
		return x.having == nil || len(x.having) > 0
	}
	return !x.members.none()
}

// Some updates say nothing but that something lives: a Lease is renewed each ten
// seconds for each node, and a node's status every five minutes. One such event
// cannot be told from a change, but two successive ones of the same object can. A
// feed sees them all.

// except are the fields of a message that do not count; those with fields of their
// own count but for these.
type except map[protowire.Number]except

// heartbeats are the resources whose objects have heartbeats, and what changes with
// these.
var heartbeats = map[string]except{
	"nodes": {objectMetadata: unmanaged, nodeStatus: {
		nodeConditions: {conditionHeartbeat: nil},
	}},
	"leases.coordination.k8s.io": {objectMetadata: unmanaged, leaseSpec: {
		leaseRenewTime: nil,
	}},
}

// unmanaged is metadata without what each update changes.
var unmanaged = except{metaRevision: nil, metaManaged: nil}

// Field numbers of core/v1 Node, NodeStatus and NodeCondition, and of
// coordination/v1 Lease and LeaseSpec.
const (
	nodeStatus         = 3
	nodeConditions     = 4
	conditionHeartbeat = 3
	leaseSpec          = 2
	leaseRenewTime     = 4
)

// fingerprint hashes a message without some of its fields. What is hashed can be
// read back in one way only: fields as encoded, and a message that lacks some as its
// tag, its fields and a zero, which is no tag.
func fingerprint(b []byte, without except) (uint64, error) {
	h := xxhash.New()
	err := without.write(h, b)
	return h.Sum64(), err
}

func (e except) write(h *xxhash.Digest, b []byte) (err error) {
	inner := eachField(b, func(f fieldValue) {
		within, excepted := e[f.number]
		switch {
		case err != nil, excepted && within == nil:
		case excepted && f.typ == protowire.BytesType:
			_, _ = h.Write(protowire.AppendTag(nil, f.number, f.typ))
			err = within.write(h, f.value)
			_, _ = h.Write([]byte{0})
		default:
			_, _ = h.Write(f.whole)
		}
	})
	return firstError(inner, err)
}

// prints are fingerprints of the objects of a watch, as at the version up to which it
// was read. A nil one is of a watch whose objects have no heartbeats.
//
// They belong to the watch's goroutine. The watch that becomes a feed brings along
// those that it has made of the list it began with, or takes over those of the feed
// before, so that the first heartbeat after it was renewed wakes nobody either.
type prints struct {
	without except
	from    uint64            // the version after which the watch began; 0: with a list
	upTo    uint64            // the newest version that was seen
	of      map[string]uint64 // by UID; 0: not known
}

// newPrints is for a watch that was asked for with this query.
func newPrints(resource string, query url.Values) *prints {
	without, has := heartbeats[resource]
	if !has {
		return nil
	}
	p := &prints{without: without, of: map[string]uint64{}}
	if query.Get("sendInitialEvents") != "true" {
		p.from, _ = strconv.ParseUint(query.Get("resourceVersion"), 10, 64)
	}
	p.upTo = p.from
	return p
}

// note takes the watch's next event, and reports whether it changes nothing but
// heartbeats.
func (p *prints) note(ev event, raw []byte) (refresh bool) {
	if p == nil {
		return false
	}
	if revision, err := strconv.ParseUint(ev.Revision, 10, 64); err == nil {
		p.upTo = max(p.upTo, revision)
	}
	kind := ev.kind()
	if kind == 0 || ev.UID == "" {
		return false
	}
	if kind == controllers.Deleted {
		delete(p.of, ev.UID)
		return false
	}
	before, now := p.of[ev.UID], uint64(0)
	if _, object, ok := objectOf(raw); ok {
		if sum, err := fingerprint(object, p.without); err == nil {
			now = sum
		}
	}
	p.of[ev.UID] = now
	return now != 0 && now == before && kind != controllers.Added
}

// inherit takes over the prints of a watch that has ended, nil if there are none. They
// must be of a version between the first that this watch has seen and the last: then
// what it has heard nothing of is as it was, and no change is missed.
func (p *prints) inherit(old *prints) {
	if p == nil || old == nil || p.from == 0 || old.upTo < p.from || old.upTo > p.upTo {
		return
	}
	for uid, sum := range old.of {
		if _, newer := p.of[uid]; !newer {
			p.of[uid] = sum
		}
	}
}

// newerThan reports whether prints say more of the present than others; both may be
// nil.
func (p *prints) newerThan(other *prints) bool {
	return p != nil && (other == nil || p.upTo > other.upTo)
}
