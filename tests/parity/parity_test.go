// Package parity runs one suite of controller behaviour against controllers that
// run natively and against controllers that sleep. In the Wasm run guests are
// released from memory at random moments all the time. That may change nothing:
// the cases are the same, and so is what they must see.
//
// The servers run without an agent, in namespaces of their own; the nodes are
// hollow (see tests/hollow). Each case has a Kubernetes namespace, and most run
// at the same time.
package parity

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
	"github.com/dormouse-k8s/dormouse/tests/hollow"
	"github.com/dormouse-k8s/dormouse/tests/node"
)

var (
	binary = flag.String("binary", "../../bin/dormouse", "the dormouse executable")
	seed   = flag.Uint64("seed", 1, "which guests are evicted, and when")
)

const (
	// startPatience bounds the start of a server.
	startPatience = 3 * time.Minute
	// atOnce is how many cases run at the same time: they wait most of the time.
	atOnce = "96"
	// Each evictor evicts a guest this long after the other.
	evictors                     = 4
	evictAfterMin, evictAfterMax = 100 * time.Millisecond, 500 * time.Millisecond
	evictAttempts                = 20
)

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", atOnce); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// trial is a case.
type trial struct {
	name        string
	controllers string // whose behaviour it is, for a failed test
	run         func(*run)
}

// TestParity runs all cases in both modes.
func TestParity(t *testing.T) {
	for _, mode := range []string{"native", "wasm"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := start(t, mode)
			stop := w.evictGuests(t)
			t.Run("cases", func(t *testing.T) {
				for _, c := range trials {
					t.Run(c.name, func(t *testing.T) {
						t.Parallel()
						w.try(t, c)
					})
				}
			})
			stop()
			w.verify(t)
		})
	}
}

// world is a running server in one of the modes, with two hollow nodes that take
// the pods of all cases.
type world struct {
	*cluster.Cluster
	mode    *testing.T
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
	wasm    bool

	mu   sync.Mutex
	held []hold
}

// hold is something that a case has seen, and that must stay so.
type hold struct {
	t     *testing.T
	what  string
	check func(context.Context) error
}

func (w *world) hold(h hold) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = append(w.held, h)
}

// start starts a server with further arguments, and nodes.
func start(t *testing.T, mode string, args ...string) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startPatience)
	defer cancel()
	n, err := node.Start(ctx, node.Config{Binary: *binary, Args: append([]string{
		"--disable-agent", "--controller-mode=" + mode,
		// Usage of quotas that was counted between admission and creation is counted again then.
		"--kube-controller-manager-arg=resource-quota-sync-period=30s",
	}, args...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", logTail(n.LogFile()))
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	kubeconfig, err := n.Exec(ctx, "cat", node.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{mode: t, wasm: mode == "wasm"}
	if w.Cluster, err = cluster.Connect([]byte(kubeconfig), net.JoinHostPort(n.IP.String(), "6443")); err != nil {
		t.Fatal(err)
	}
	if w.dynamic, err = dynamic.NewForConfig(w.Config); err != nil {
		t.Fatal(err)
	}
	d, err := discovery.NewDiscoveryClientForConfig(w.Config)
	if err != nil {
		t.Fatal(err)
	}
	w.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(d))
	for i := range 2 {
		hollow.Start(t, w.Cluster, hollow.Config{Name: fmt.Sprintf("hollow-%d", i)})
	}
	return w
}

func logTail(file string) string {
	const most = 16 << 10
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-most):])
}

// try runs a case.
func (w *world) try(t *testing.T, c trial) {
	r := &run{t, w, c.name}
	t.Cleanup(func() {
		if t.Failed() {
			ctx := context.Background()
			t.Logf("the events:\n%s\nthe controllers:\n%s", w.events(ctx, r.ns), w.Describe(ctx, strings.Fields(c.controllers)...))
		}
	})
	r.makeNamespace()
	c.run(r)
}

// events prints the events of a namespace.
func (w *world) events(ctx context.Context, namespace string) string {
	l, err := w.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	var all strings.Builder
	for _, e := range l.Items {
		fmt.Fprintf(&all, "%s %s/%s %s: %s\n", e.Source.Component+e.ReportingController, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
	}
	return all.String()
}

// evictGuests evicts random guests that are in memory, until the function that it
// returns is called. Those that are busy it leaves alone, as Dormouse does. In
// native mode it does nothing.
func (w *world) evictGuests(t *testing.T) (stop func()) {
	if !w.wasm {
		return func() {}
	}
	t.Logf("-seed %d", *seed)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	all := make([]evictor, evictors)
	evictions := &tally{done: map[string]int{}}
	for i := range all {
		e := &all[i]
		e.world, e.tally, e.choose = w, evictions, rand.New(rand.NewPCG(*seed, uint64(i)))
		running.Go(func() { e.run(ctx) })
	}
	return func() {
		cancel()
		running.Wait()
		for _, e := range all {
			if e.failure != nil {
				t.Errorf("evicting guests: %v", e.failure)
			}
		}
		total := 0
		for _, n := range evictions.done {
			total += n
		}
		t.Logf("%d evictions of %d guests; %d times one was too busy", total, len(evictions.done), evictions.busy)
		if total == 0 {
			t.Error("no guest was evicted")
		}
	}
}

// tally counts evictions.
type tally struct {
	mu   sync.Mutex
	done map[string]int // by guest
	busy int
}

// evictor evicts one guest at a time.
type evictor struct {
	*world
	*tally
	choose  *rand.Rand
	failure error // that ended it
}

func (e *evictor) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(evictAfterMin + time.Duration(e.choose.Int64N(int64(evictAfterMax-evictAfterMin)))):
		}
		guests, err := e.guests(ctx, "warm", "awake")
		e.choose.Shuffle(len(guests), func(i, j int) { guests[i], guests[j] = guests[j], guests[i] })
		if err == nil && len(guests) > 0 {
			err = e.evict(ctx, e.rarest(guests))
		}
		if err != nil {
			if ctx.Err() == nil {
				e.failure = err
			}
			return
		}
	}
}

// rarest returns the guest that has been evicted least often: those that wake by
// timers of their own shall not have all evictions.
func (e *evictor) rarest(guests []cluster.Controller) string {
	e.tally.mu.Lock()
	defer e.tally.mu.Unlock()
	return slices.MinFunc(guests, func(a, b cluster.Controller) int { return e.done[a.Name] - e.done[b.Name] }).Name
}

// evict evicts a guest, for which it is patient: one that has much to do is busy
// at most moments.
func (e *evictor) evict(ctx context.Context, guest string) error {
	evicted := false
	for attempt := 0; attempt < evictAttempts && !evicted; attempt++ {
		var err error
		if evicted, err = e.Tell(ctx, guest, "evict"); err != nil {
			return err
		}
	}
	e.tally.mu.Lock()
	defer e.tally.mu.Unlock()
	if evicted {
		e.done[guest]++
	} else {
		e.busy++
	}
	return nil
}

// guests are the controllers in one of the states.
func (w *world) guests(ctx context.Context, states ...string) ([]cluster.Controller, error) {
	all, err := w.Controllers(ctx)
	return slices.DeleteFunc(all, func(c cluster.Controller) bool { return !slices.Contains(states, c.State) }), err
}

// verify looks whether all that the cases have seen is still so, and whether a
// guest was ended.
func (w *world) verify(t *testing.T) {
	for _, h := range w.held {
		if h.t.Failed() {
			continue
		}
		if err := h.check(t.Context()); err != nil {
			t.Errorf("%s: %s did not stay as it was: %v", h.t.Name(), h.what, err)
		}
	}
	t.Logf("%d states stayed as they were", len(w.held))
	all, err := w.Controllers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wakes, each := 0, ""
	for _, c := range all {
		if c.State == "native" {
			continue
		}
		if !w.wasm {
			t.Errorf("%s is %s in native mode", c.Name, c.State)
		}
		if c.Restarts != 0 || c.LastError != "" {
			t.Errorf("%s was restarted %d times: %s", c.Name, c.Restarts, c.LastError)
		}
		wakes += c.Wakes
		each += fmt.Sprintf("\n%6d %s", c.Wakes, c.Name)
	}
	if w.wasm {
		t.Logf("%d wakes:%s", wakes, each)
	}
}
