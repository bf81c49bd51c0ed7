package plane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protowire"
)

// A watch cannot always be renewed: after a restart the API server's watch cache
// knows no history, and every version from before it is "too old". Natively each
// controller would list again. A sleeping guest need not even wake if nothing
// changed, and that can be told without knowing the objects: the set is the same,
// and none has a newer version.

// members is a digest of the set of objects that a guest was told of: the sum of
// hashes of their UIDs, and how many they are.
type members struct {
	known bool // all events since the empty set were seen
	sum   uint64
	count int
}

// none says that the set is known to be empty.
func (m members) none() bool { return m.known && m.count == 0 }

// note follows an event that is delivered. joins is the event's own, or that of
// all events of the object that it stands for.
func (m *members) note(e event, joins int) {
	switch {
	case e.Type == bookmark:
	case e.UID == "":
		m.known = false
	default:
		m.sum += uint64(joins) * xxhash.Sum64String(e.UID)
		m.count += joins
	}
}

// joins is 1 for an event with which an object joins the set, -1 for one with
// which it leaves.
func (e event) joins() int {
	switch e.Type {
	case "ADDED":
		return 1
	case "DELETED":
		return -1
	}
	return 0
}

// metadataList asks for lists without the objects' contents.
const metadataList = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

// maxList bounds such a list, in bytes; 100,000 objects are about a third of it.
const maxList = 256 << 20

// errMissed says that something happened that the guest was not told of.
var errMissed = errors.New("objects have changed meanwhile")

const (
	// listAttempts and listPause bound how long a resumed guest waits for an API
	// server that is not ready to list yet. The pause doubles each time.
	listAttempts = 6
	listPause    = 50 * time.Millisecond

	// listsAtATime bounds how many lists of a guest are under way together.
	listsAtATime = 4
)

// caughtUp moves all watches of a resumed guest to the present. It fails if the
// guest has missed something: then it must not wake, as it could act upon one
// watch before it hears from another. A watch of which it is not known what the
// guest was told is left to continue by itself.
func (g *guest) caughtUp(ctx context.Context) error {
	g.mu.Lock()
	all := slices.Collect(maps.Values(g.exchanges))
	g.mu.Unlock()
	var group errgroup.Group
	group.SetLimit(listsAtATime)
	var failed atomic.Bool // lists under way go on: other guests share them, and the API server warns of those that are broken off
	for _, x := range all {
		if !x.members.known {
			continue
		}
		group.Go(func() error {
			if failed.Load() {
				return nil
			}
			err := x.patientlyCatchUp(ctx)
			if err != nil {
				failed.Store(true)
			}
			return err
		})
	}
	return group.Wait()
}

// patientlyCatchUp is catchUp with an API server that may not be ready yet.
func (x *exchange) patientlyCatchUp(ctx context.Context) error {
	for attempt := range listAttempts - 1 {
		err := x.catchUp(ctx)
		if err == nil || errors.Is(err, errMissed) {
			return err
		}
		if err := pause(ctx, listPause<<attempt); err != nil {
			return err
		}
	}
	return x.catchUp(ctx)
}

// catchUp moves a watch to the present if the guest has missed nothing. It
// returns errMissed if it has, or may have.
func (x *exchange) catchUp(ctx context.Context) error {
	g := x.guest
	g.mu.Lock()
	had, delivered := x.members, x.delivered
	g.mu.Unlock()
	upTo, err := strconv.ParseUint(delivered, 10, 64)
	if err != nil || !had.known {
		return errMissed
	}
	now, err := g.plane.lists.since(ctx, upTo, x)
	if err != nil {
		return err
	}
	if now.newest > upTo || now.members.sum != had.sum {
		return fmt.Errorf("%s: %w", x.resource, errMissed)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if x.closed || len(x.waiting) > 0 {
		return errMissed
	}
	if now.at > upTo {
		x.seen, x.delivered = now.revision, now.revision
	}
	return nil
}

// lists are the latest lists of metadata, by what was listed. Guests that watch the
// same share one: it says of each what it had missed at that version, whoever
// asked for it and whenever. What a guest may see does not depend on it: its
// watches are renewed under its own identity.
type lists struct {
	mu sync.Mutex
	of map[string]*list // by exchange.objects
}

// list is one of them. It belongs to who has put something into turn.
type list struct {
	turn  chan struct{}
	taken time.Time
	listing
}

func newLists() *lists { return &lists{of: map[string]*list{}} }

// since returns a list of what x watches that is newer than the given version, or
// was made just now. If there is none it asks the API server as x's guest.
func (s *lists) since(ctx context.Context, revision uint64, x *exchange) (listing, error) {
	asked := time.Now()
	s.mu.Lock()
	l := s.of[x.objects]
	if l == nil {
		l = &list{turn: make(chan struct{}, 1)}
		s.of[x.objects] = l
	}
	s.mu.Unlock()
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return listing{}, ctx.Err()
	}
	defer func() { <-l.turn }()
	if l.at > revision || l.taken.After(asked) {
		return l.listing, nil
	}
	now, err := x.listMetadata(ctx)
	if err != nil {
		return listing{}, err
	}
	l.listing, l.taken = now, time.Now()
	return now, nil
}

// listing is what a list of metadata says.
type listing struct {
	revision string // of the list
	at       uint64 // the same as a number
	newest   uint64 // version of the object that changed last
	members  members
}

func (x *exchange) listMetadata(ctx context.Context) (listing, error) {
	header := x.header.Clone()
	header.Set("Accept", metadataList)
	resp, err := x.roundTrip(ctx, selection(x.url.Query()).Encode(), header)
	if err != nil {
		return listing{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxList))
	if err != nil {
		return listing{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return listing{}, fmt.Errorf("listing %s: status %d", x.resource, resp.StatusCode)
	}
	return decodeMetadataList(body)
}

// Field numbers of meta/v1 PartialObjectMetadataList and ListMeta.
const (
	listMetadata = 1
	listItems    = 2
	listRevision = 2
)

func decodeMetadataList(b []byte) (listing, error) {
	b, ok := bytes.CutPrefix(b, protobufMagic)
	if !ok {
		return listing{}, fmt.Errorf("decoding a list: not in protobuf")
	}
	raw, err := field(b, unknownRaw)
	if err != nil {
		return listing{}, err
	}
	var l listing
	var inner error
	err = fields(raw, func(n protowire.Number, v []byte) {
		switch n {
		case listMetadata:
			revision, err := field(v, listRevision)
			l.revision, inner = string(revision), firstError(inner, err)
		case listItems:
			inner = firstError(inner, l.add(v))
		}
	})
	if err := firstError(err, inner); err != nil {
		return listing{}, err
	}
	if l.at, err = strconv.ParseUint(l.revision, 10, 64); err != nil || l.at == 0 {
		return listing{}, fmt.Errorf("decoding a list: its resourceVersion is %q", l.revision)
	}
	return l, nil
}

// add takes in one item.
func (l *listing) add(item []byte) error {
	meta, err := field(item, objectMetadata)
	if err != nil {
		return err
	}
	uid, err := field(meta, metaUID)
	if err != nil {
		return err
	}
	revision, err := field(meta, metaRevision)
	if err != nil {
		return err
	}
	v, err := strconv.ParseUint(string(revision), 10, 64)
	if err != nil {
		return fmt.Errorf("decoding a list: %w", err)
	}
	l.newest = max(l.newest, v)
	l.members.note(event{UID: string(uid)}, 1)
	return nil
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
