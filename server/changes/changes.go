// Package changes says when objects of a resource have changed, for who would otherwise keep a watch open in
// the API server: one watch of the datastore's keys stands for all of them.
package changes

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Changes follows a datastore. Its methods are safe for concurrent use.
type Changes struct {
	endpoint, prefix string

	mu      sync.Mutex
	from    int64              // every later change is seen; 0: none is
	upTo    int64              // the newest change
	last    map[string]int64   // that of each place
	waiting map[string][]*wait // by place
}

// wait is for the first change after a revision.
type wait struct {
	since   int64
	changed func(before uint64)
}

// New is for the etcd server at endpoint, in which keys of objects begin with prefix.
func New(endpoint, prefix string) *Changes {
	return &Changes{
		endpoint: endpoint, prefix: "/" + strings.Trim(prefix, "/") + "/",
		last: map[string]int64{}, waiting: map[string][]*wait{},
	}
}

// Place is where the objects of a resource are, by their key or its beginning, below the prefix: the first part
// of the key, or the first two if that is the name of an API group. Resources may share one.
func Place(key string) string {
	parts := strings.SplitN(strings.Trim(key, "/"), "/", 3)
	if len(parts) > 1 && strings.Contains(parts[0], ".") {
		return parts[0] + "/" + parts[1]
	}
	return parts[0]
}

// rewatch is the pause before a watch that has failed is opened again.
const rewatch = time.Second

// Run follows the datastore until ctx is done. It calls ready once it sees every change.
func (c *Changes) Run(ctx context.Context, ready func()) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{c.endpoint}, Logger: zap.NewNop(), Context: ctx})
	if err != nil {
		return fmt.Errorf("connecting to the datastore: %w", err)
	}
	defer client.Close()
	for {
		err := c.follow(ctx, client, ready)
		c.lose()
		if ctx.Err() != nil {
			return nil
		}
		logrus.Warnf("following the datastore's changes: %v", err)
		select {
		case <-time.After(rewatch):
		case <-ctx.Done():
		}
	}
}

// follow reads one watch to its end.
func (c *Changes) follow(ctx context.Context, client *clientv3.Client, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for r := range client.Watch(ctx, c.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify()) {
		if err := r.Err(); err != nil {
			return err
		}
		if r.Created {
			c.begin(r.Header.Revision)
			ready()
		}
		for _, e := range r.Events {
			c.note(string(e.Kv.Key), e.Kv.ModRevision)
		}
	}
	return fmt.Errorf("the watch has ended")
}

// begin says that from a revision on every change is seen.
func (c *Changes) begin(revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.from, c.upTo = revision, revision
	clear(c.last)
}

// note takes a change.
func (c *Changes) note(key string, revision int64) {
	place := Place(strings.TrimPrefix(key, c.prefix))
	c.mu.Lock()
	c.upTo = revision
	c.last[place] = revision
	// Who waits may have seen this change, by another way, before it came here.
	waiting := c.take(place, func(w *wait) bool { return w.since < revision })
	c.mu.Unlock()
	for _, w := range waiting {
		w.changed(uint64(revision - 1))
	}
}

// take returns those who wait for a place for whom done holds; they wait no more. c.mu is held.
func (c *Changes) take(place string, done func(*wait) bool) (taken []*wait) {
	var rest []*wait
	for _, w := range c.waiting[place] {
		if done(w) {
			taken = append(taken, w)
		} else {
			rest = append(rest, w)
		}
	}
	if c.waiting[place] = rest; rest == nil {
		delete(c.waiting, place)
	}
	return taken
}

// lose says that changes are not seen any more. Who waits for one has to look himself.
func (c *Changes) lose() {
	c.mu.Lock()
	all, upTo := c.waiting, c.upTo
	c.waiting, c.from = map[string][]*wait{}, 0
	c.mu.Unlock()
	for _, waiting := range all {
		for _, w := range waiting {
			w.changed(uint64(max(upTo, w.since)))
		}
	}
}

// UpTo is a revision up to which nothing at a place has become newer than the revision since: the newest that was
// seen, or since itself where that cannot be told. certain is as for Await.
func (c *Changes) UpTo(place string, certain bool, since uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.unchanged(place, certain, since) {
		return since
	}
	return max(since, uint64(c.upTo))
}

// unchanged reports whether nothing at a place is newer than since, as far as is seen; c.mu is held.
func (c *Changes) unchanged(place string, certain bool, since uint64) bool {
	last, seen := c.last[place]
	return c.from > 0 && int64(since) >= max(c.from, last) && (certain || seen)
}

// Await calls changed once, when something at a place has become newer than the revision since, with a revision
// up to which nothing had; changed must not wait for anything. stop has it not do so, but does not wait for a call
// under way. It is not ok if something is newer already or may be. Where it is not certain that this is the place,
// something must have been seen there.
func (c *Changes) Await(place string, certain bool, since uint64, changed func(before uint64)) (stop func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.unchanged(place, certain, since) {
		return nil, false
	}
	w := &wait{int64(since), changed}
	c.waiting[place] = append(c.waiting[place], w)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.take(place, func(other *wait) bool { return other == w })
	}, true
}
