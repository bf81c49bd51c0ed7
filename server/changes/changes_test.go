package changes

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/server/datastore"
)

func TestPlace(t *testing.T) {
	for key, want := range map[string]string{
		"pods/default/x":           "pods",
		"minions/n":                "minions",
		"services/specs/default/x": "services",
		"services/endpoints":       "services",
		"apiregistration.k8s.io/apiservices/v1.apps": "apiregistration.k8s.io/apiservices",
		"example.com/things/default/x":               "example.com/things",
		"/example.com/things/":                       "example.com/things",
		"example.com":                                "example.com",
		"":                                           "",
	} {
		if got := Place(key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}

// following is a real datastore, what follows it, and a client.
func following(t *testing.T) (*Changes, *clientv3.Client) {
	t.Helper()
	data := paths.Data(t.TempDir())
	store, err := datastore.Open(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	run := func(what string, service func(context.Context, func()) error) {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		ready, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- service(ctx, func() { close(ready) }) }()
		select {
		case <-ready:
		case err := <-ended:
			t.Fatalf("%s: %v", what, err)
		}
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	run("datastore", store.Serve)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{datastore.Endpoint(data)}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	create(t, client, "/registry/pods/default/before")
	c := New(datastore.Endpoint(data), "registry")
	run("changes", c.Run)
	return c, client
}

// create makes a key, in the only way that kine knows, and returns its revision.
func create(t *testing.T, client *clientv3.Client, key string) uint64 {
	t.Helper()
	r, err := client.Txn(t.Context()).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, "value")).Else(clientv3.OpGet(key)).Commit()
	if err != nil || !r.Succeeded {
		t.Fatalf("creating %s: %v, %v", key, r, err)
	}
	return uint64(r.Header.Revision)
}

func receive(t *testing.T, ch <-chan uint64) uint64 {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("no change after 20 s")
		return 0
	}
}

func TestAwait(t *testing.T) {
	c, client := following(t)
	now := create(t, client, "/registry/pods/default/x")
	await := func(place string, since uint64) <-chan uint64 {
		t.Helper()
		ch := make(chan uint64, 1)
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, ok := c.Await(place, true, since, func(before uint64) { ch <- before }); ok {
				return ch
			}
			if time.Now().After(deadline) {
				t.Fatalf("changes of %s since %d cannot be told", place, since)
			}
		}
	}
	pods := await("pods", now)
	later := create(t, client, "/registry/minions/n")
	nodes := await("minions", later)
	seen := make(chan uint64, 1)
	if _, ok := c.Await("minions", true, now, func(before uint64) { seen <- before }); ok { // it is seen in a moment
		if before := receive(t, seen); before != later-1 {
			t.Errorf("nothing had changed up to %d, want %d", before, later-1)
		}
	}
	if _, ok := c.Await("minions", true, now, nil); ok {
		t.Error("what has changed already was waited for")
	}
	if _, ok := c.Await("pods", true, 1, nil); ok {
		t.Error("what may have changed before anybody looked was waited for")
	}
	for n := range 3 {
		changed := create(t, client, fmt.Sprint("/registry/pods/default/y", n))
		if before := receive(t, pods); before != changed-1 {
			t.Errorf("nothing had changed up to %d, want %d", before, changed-1)
		}
		pods = await("pods", changed)
	}
	if len(nodes) > 0 {
		t.Error("a node has changed")
	}

	stopped := make(chan uint64, 1)
	stop, ok := c.Await("minions", true, later, func(before uint64) { stopped <- before })
	if !ok {
		t.Fatal("not ok")
	}
	stop()
	changed := create(t, client, "/registry/minions/m")
	if before := receive(t, nodes); before != changed-1 || len(stopped) > 0 {
		t.Errorf("up to %d, want %d; %d for who does not wait any more", before, changed-1, len(stopped))
	}
}

func TestUncertainPlace(t *testing.T) {
	c, client := following(t)
	now := create(t, client, "/registry/pods/default/x")
	if _, ok := c.Await("example.com/things", false, now, nil); ok {
		t.Error("changes of a resource that may be kept elsewhere were waited for")
	}
	now = create(t, client, "/registry/example.com/things/default/x")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, ok := c.Await("example.com/things", false, now, func(uint64) {}); ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("changes cannot be told although there was one")
		}
	}
}

// TestUpTo: what has not changed is as new as the newest change of anything.
func TestUpTo(t *testing.T) {
	c := New("", "registry")
	if got := c.UpTo("pods", true, 5); got != 5 {
		t.Errorf("%d before any change is seen", got)
	}
	c.begin(5)
	c.note("/registry/minions/n", 7)
	for _, tc := range []struct {
		place       string
		certain     bool
		since, want uint64
	}{
		{"pods", true, 5, 7},
		{"pods", true, 9, 9},
		{"pods", true, 4, 4}, // it may have changed before anybody looked
		{"pods", false, 5, 5},
		{"minions", true, 6, 6},
		{"minions", false, 7, 7},
	} {
		if got := c.UpTo(tc.place, tc.certain, tc.since); got != tc.want {
			t.Errorf("%+v: %d", tc, got)
		}
	}
}

// TestLose: who waits has to look for himself when changes are not seen any more.
func TestLose(t *testing.T) {
	c := New("", "registry")
	if _, ok := c.Await("pods", true, 5, nil); ok {
		t.Error("waited for changes before any is seen")
	}
	c.begin(5)
	ch := make(chan uint64, 1)
	if _, ok := c.Await("pods", true, 5, func(before uint64) { ch <- before }); !ok {
		t.Fatal("not ok")
	}
	c.note("/registry/minions/n", 7)
	c.lose()
	if before := receive(t, ch); before != 7 {
		t.Errorf("up to %d, want 7", before)
	}
	if _, ok := c.Await("pods", true, 8, nil); ok {
		t.Error("waited for changes that are not seen any more")
	}
}
