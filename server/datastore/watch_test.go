package datastore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dormouse-k8s/dormouse/internal/paths"
)

// TestWatches: a watch hears of every change of its keys from the revision on that it begins with, and of no other.
func TestWatches(t *testing.T) {
	serve(t, open(t, paths.Data(t.TempDir())), func(c *clientv3.Client) {
		var want []string // the changes below /registry/a/ by revision
		note := func(what string, revision int64) { want = append(want, fmt.Sprintf("%s@%d", what, revision)) }
		remove := func(key string, revision int64) int64 {
			t.Helper()
			r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).Then(clientv3.OpDelete(key)).Else(clientv3.OpGet(key)).Commit()
			if err != nil || !r.Succeeded {
				t.Fatalf("deleting %s: %v, %v", key, r, err)
			}
			return r.Header.Revision
		}
		first := create(t, c, "/registry/other/1")
		one := create(t, c, "/registry/a/1")
		note("PUT /registry/a/1", one)
		create(t, c, "/registry/other/2")
		note("DELETE /registry/a/1", remove("/registry/a/1", one))
		create(t, c, "/registry/other/3")
		note("PUT /registry/a/2", create(t, c, "/registry/a/2"))
		last := create(t, c, "/registry/other/4")

		var watches []clientv3.WatchChan
		for from := first; from <= last; from++ {
			watches = append(watches, c.Watch(t.Context(), "/registry/a/", clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithCreatedNotify()))
		}
		for _, w := range watches { // what happens from now on is for all of them
			if r := <-w; !r.Created {
				t.Fatalf("%+v, %v", r, r.Err())
			}
		}
		create(t, c, "/registry/other/5")
		end := create(t, c, "/registry/a/3")
		note("PUT /registry/a/3", end)
		for k, w := range watches {
			from := first + int64(k)
			var got []string
			for at := int64(0); at < end; {
				r := <-w
				if r.Err() != nil {
					t.Fatal(r.Err())
				}
				for _, e := range r.Events {
					at = e.Kv.ModRevision
					got = append(got, fmt.Sprintf("%s %s@%d", e.Type, e.Kv.Key, at))
				}
			}
			later := slices.DeleteFunc(slices.Clone(want), func(what string) bool {
				var revision int64
				_, _ = fmt.Sscanf(what[strings.Index(what, "@"):], "@%d", &revision)
				return revision < from
			})
			if !slices.Equal(got, later) {
				t.Errorf("from %d: %v, want %v", from, got, later)
			}
		}

		// Where the history is gone it is gone, also for keys to which nothing happened since.
		for k := range compactMinRetain {
			create(t, c, fmt.Sprintf("/registry/more/%d", k))
		}
		if _, err := c.Compact(t.Context(), last); err != nil {
			t.Fatal(err)
		}
		if r := <-c.Watch(t.Context(), "/registry/a/", clientv3.WithPrefix(), clientv3.WithRev(first)); !errors.Is(r.Err(), rpctypes.ErrCompacted) {
			t.Errorf("from a revision before the history: %+v, %v", r, r.Err())
		}
	})
}

// TestMoveOn: a watch begins with the first change of its keys, or at present, and never earlier than it was asked to.
func TestMoveOn(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	backend, log, err := newBackend(ctx, &wg, open(t, paths.Data(t.TempDir())).dsn())
	if err != nil {
		t.Fatal(err)
	}
	if err := backend.Start(ctx); err != nil {
		t.Fatal(err)
	}
	put := func(key string) int64 {
		t.Helper()
		revision, err := backend.Create(ctx, key, []byte("value"), 0)
		if err != nil {
			t.Fatal(err)
		}
		return revision
	}
	before := put("/registry/other/1")
	changed := put("/registry/a/1")
	present := put("/registry/other/2")
	for _, c := range []struct {
		key, end   string
		from, want int64
	}{
		{"/registry/a/", "/registry/a0", before, changed},
		{"/registry/a/", "/registry/a0", changed, changed},
		{"/registry/a/", "/registry/a0", changed + 1, present + 1},
		{"/registry/a/", "/registry/a0", present + 1, present + 1},
		{"/registry/a/", "/registry/a0", present + 9, present + 9},
		{"/registry/a/", "/registry/a0", 0, 0},
		{"/registry/a/1", "", before, changed},
		{"/registry/a/2", "", before, present + 1},
		{"/registry/", "/registry0", before, before},
	} {
		r := &etcdserverpb.WatchCreateRequest{Key: []byte(c.key), RangeEnd: []byte(c.end), StartRevision: c.from}
		if moveOn(ctx, log, r); r.StartRevision != c.want {
			t.Errorf("%s to %s from %d: %d, want %d", c.key, c.end, c.from, r.StartRevision, c.want)
		}
	}
}

// BenchmarkWatch begins a watch of keys to which nothing has happened for as long as kine remembers, while others,
// of the size of a pod, have changed.
func BenchmarkWatch(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	s, err := Open(ctx, paths.Data(b.TempDir()))
	if err != nil {
		b.Fatal(err)
	}
	backend, log, err := newBackend(ctx, &wg, s.dsn())
	if err != nil {
		b.Fatal(err)
	}
	if err := backend.Start(ctx); err != nil {
		b.Fatal(err)
	}
	begin, err := backend.CurrentRevision(ctx)
	if err != nil {
		b.Fatal(err)
	}
	value := bytes.Repeat([]byte("x"), 5<<10)
	for k := range compactMinRetain / 2 {
		key := fmt.Sprintf("/registry/pods/%d", k)
		revision, err := backend.Create(ctx, key, value, 0)
		if err == nil {
			_, _, _, err = backend.Update(ctx, key, value, revision, 0)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		from func() int64
	}{
		{"as asked", func() int64 { return begin }},
		{"moved on", func() int64 {
			r := &etcdserverpb.WatchCreateRequest{Key: []byte("/registry/roles/"), RangeEnd: []byte("/registry/roles0"), StartRevision: begin}
			moveOn(ctx, log, r)
			return r.StartRevision
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ctx, cancel := context.WithCancel(ctx)
				w := backend.Watch(ctx, c.from())
				<-w.Eventc
				cancel()
			}
		})
	}
	// What has been compacted cannot be watched; to find that out is to cost little, too.
	for k := range compactMinRetain {
		if _, err := backend.Create(ctx, fmt.Sprintf("/registry/more/%d", k), value, 0); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := backend.Compact(ctx, begin+10); err != nil {
		b.Fatal(err)
	}
	for name, after := range map[string]func(context.Context, string, string, int64, int64) (server.EventBatch, error){
		"compacted, as kine": log.Log.After,
		"compacted":          log.After,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := after(ctx, "", "", begin, 0); !errors.Is(err, server.ErrCompacted) {
					b.Fatal(err)
				}
			}
		})
	}
}
