// Package service runs the parts of a process as a graph: each part has a name, the names of the parts
// it needs, and one function that says when it is ready and returns when it is told to stop.
//
// Parts start as soon as everything they need is ready, independent ones side by side. They stop in
// reverse: a part is told to stop only after all that need it have returned, so nobody ever talks to
// something that has already gone.
package service

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// StopTimeout bounds how long a stop may take once everything has been told to stop. What has not
// returned by then is named in the error and left behind.
const StopTimeout = 30 * time.Second

// ErrGraph is wrapped by every error about the graph itself: two services of one name, a need that no
// service satisfies, a cycle. Nothing has been started when it is returned.
var ErrGraph = errors.New("invalid service graph")

// Service is one part of a process.
type Service struct {
	// Name is unique within a graph and appears in logs and errors.
	Name string
	// Needs are the names of the services that must be ready before this one starts.
	Needs []string
	// Run does the work until ctx is done. It calls ready once, when those that need it may start;
	// further calls do nothing. Returning before ctx is done means: with an error, that the service
	// failed and everything has to stop; with nil after ready, that it was a task and is finished. An
	// error that comes because ctx is done counts only from one that has been ready; a panic always counts.
	Run func(ctx context.Context, ready func()) error
}

// Run starts the services, waits until ctx is done or one of them fails, and stops them all. It returns
// nil after a stop that was asked for through ctx and went cleanly, or the joined errors of the
// services that failed. The values of ctx are visible to every service, its cancellation is not: each
// service has a context of its own, cancelled when its turn to stop has come.
func Run(ctx context.Context, services []Service) error {
	order, err := sorted(services)
	if err != nil {
		return err
	}
	return newGraph(ctx, order).run(ctx)
}

// sorted returns the services in an order in which each comes after all it needs.
func sorted(services []Service) ([]Service, error) {
	byName := make(map[string]Service, len(services))
	for _, s := range services {
		if _, dup := byName[s.Name]; dup {
			return nil, fmt.Errorf("%w: two services are named %q", ErrGraph, s.Name)
		}
		byName[s.Name] = s
	}
	var (
		order []Service
		path  []string
		done  = make(map[string]bool, len(services))
		visit func(Service) error
	)
	visit = func(s Service) error {
		if i := slices.Index(path, s.Name); i >= 0 {
			return fmt.Errorf("%w: cycle %s", ErrGraph, strings.Join(append(path[i:], s.Name), " -> "))
		}
		if done[s.Name] {
			return nil
		}
		path = append(path, s.Name)
		for _, need := range s.Needs {
			dep, ok := byName[need]
			if !ok {
				return fmt.Errorf("%w: %q needs %q, which does not exist", ErrGraph, s.Name, need)
			}
			if err := visit(dep); err != nil {
				return err
			}
		}
		path = path[:len(path)-1]
		done[s.Name] = true
		order = append(order, s)
		return nil
	}
	for _, s := range services {
		if err := visit(s); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// node is a service in a running graph.
type node struct {
	Service
	ctx    context.Context
	stop   context.CancelFunc
	ready  chan struct{} // closed once it is ready
	done   chan struct{} // closed once Run has returned, or will never be called
	needs  []*node
	needed []*node // those that need it

	took time.Duration // from the start of Run to ready; valid once ready is closed
	err  error         // valid once done is closed
}

type graph struct {
	nodes    []*node // in start order
	begun    time.Time
	stopping chan struct{}
	once     sync.Once
}

func newGraph(ctx context.Context, order []Service) *graph {
	g := &graph{begun: time.Now(), stopping: make(chan struct{})}
	byName := make(map[string]*node, len(order))
	for _, s := range order {
		n := &node{Service: s, ready: make(chan struct{}), done: make(chan struct{})}
		n.ctx, n.stop = context.WithCancel(context.WithoutCancel(ctx))
		for _, need := range s.Needs {
			dep := byName[need]
			n.needs = append(n.needs, dep)
			dep.needed = append(dep.needed, n)
		}
		byName[s.Name] = n
		g.nodes = append(g.nodes, n)
	}
	return g
}

func (g *graph) run(ctx context.Context) error {
	for _, n := range g.nodes {
		go g.drive(n)
		go g.stopInTurn(n)
	}
	go g.reportReady()

	finished := make(chan struct{})
	go func() {
		for _, n := range g.nodes {
			<-n.done
		}
		close(finished)
	}()

	select {
	case <-ctx.Done():
		g.beginStop()
	case <-g.stopping:
	case <-finished: // nothing but tasks, all done
		g.beginStop()
	}
	timeout := time.NewTimer(StopTimeout)
	defer timeout.Stop()
	select {
	case <-finished:
	case <-timeout.C:
	}
	return g.result()
}

// drive waits for what n needs, then runs it.
func (g *graph) drive(n *node) {
	defer close(n.done)
	for _, dep := range n.needs {
		select {
		case <-dep.ready:
		case <-g.stopping:
			return
		}
	}
	select {
	case <-g.stopping:
		return
	default:
	}

	start := time.Now()
	var once sync.Once
	ready := func() {
		once.Do(func() {
			n.took = time.Since(start)
			logrus.Debugf("%s is ready after %s", n.Name, n.took.Round(time.Millisecond))
			close(n.ready)
		})
	}
	err := guarded(n.Run, n.ctx, ready)
	switch {
	case n.ctx.Err() != nil:
		// It was told to stop; that it says so is no failure. Nor is that a start broke off: upstream's code
		// has its own words for that, in which context.Canceled is not always found.
		if err != nil && !errors.Is(err, errPanic) && (errors.Is(err, context.Canceled) || !isClosed(n.ready)) {
			logrus.Debugf("%s stopped: %v", n.Name, err)
			err = nil
		}
	case err == nil && !isClosed(n.ready):
		err = errors.New("ended before it was ready")
	}
	if err != nil {
		n.err = fmt.Errorf("%s: %w", n.Name, err)
		g.beginStop()
	}
}

var errPanic = errors.New("panic")

// guarded turns a panic of a service into its error, so that the others still stop in order.
func guarded(run func(context.Context, func()) error, ctx context.Context, ready func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			logrus.Errorf("panic: %v\n%s", r, debug.Stack())
			err = fmt.Errorf("%w: %v", errPanic, r)
		}
	}()
	return run(ctx, ready)
}

// stopInTurn tells n to stop once everything that needs it has returned.
func (g *graph) stopInTurn(n *node) {
	<-g.stopping
	for _, user := range n.needed {
		<-user.done
	}
	n.stop()
}

func (g *graph) beginStop() { g.once.Do(func() { close(g.stopping) }) }

// reportReady logs once how long the start took and where the time went.
func (g *graph) reportReady() {
	times := make([]string, 0, len(g.nodes))
	for _, n := range g.nodes {
		select {
		case <-n.ready:
			times = append(times, fmt.Sprintf("%s %s", n.Name, n.took.Round(time.Millisecond)))
		case <-g.stopping:
			return
		}
	}
	logrus.Infof("started in %s (%s)", time.Since(g.begun).Round(time.Millisecond), strings.Join(times, ", "))
}

// result joins the errors of the services that failed and names those that have not returned.
func (g *graph) result() error {
	var errs []error
	var late []string
	for _, n := range g.nodes {
		if !isClosed(n.done) {
			late = append(late, n.Name)
		} else if n.err != nil {
			errs = append(errs, n.err)
		}
	}
	if len(late) > 0 {
		errs = append(errs, fmt.Errorf("did not stop within %s: %s", StopTimeout, strings.Join(late, ", ")))
	}
	return errors.Join(errs...)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
