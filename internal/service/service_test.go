package service

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// journal records what happened, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) index(t *testing.T, line string) int {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	i := slices.Index(j.lines, line)
	if i < 0 {
		t.Fatalf("%q did not happen; %q did", line, j.lines)
	}
	return i
}

// daemon is ready at once and runs until it is told to stop.
func (j *journal) daemon(name string, needs ...string) Service {
	return Service{Name: name, Needs: needs, Run: func(ctx context.Context, ready func()) error {
		j.add("start " + name)
		ready()
		<-ctx.Done()
		j.add("stop " + name)
		return ctx.Err()
	}}
}

func TestGraphIsCheckedBeforeAnythingStarts(t *testing.T) {
	for name, tc := range map[string]struct {
		graph map[string][]string
		want  string
	}{
		"cycle":     {map[string][]string{"a": {"b"}, "b": {"c"}, "c": {"a"}}, "cycle"},
		"self":      {map[string][]string{"a": {"a"}}, "cycle a -> a"},
		"unknown":   {map[string][]string{"a": {"b"}}, `"a" needs "b", which does not exist`},
		"good+self": {map[string][]string{"a": nil, "b": {"a", "b"}}, "cycle b -> b"},
	} {
		t.Run(name, func(t *testing.T) {
			var services []Service
			for n, needs := range tc.graph {
				services = append(services, Service{Name: n, Needs: needs, Run: func(context.Context, func()) error {
					t.Errorf("%s was started", n)
					return nil
				}})
			}
			err := Run(t.Context(), services)
			if !errors.Is(err, ErrGraph) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want ErrGraph with %q", err, tc.want)
			}
		})
	}
	one := Service{Name: "a", Run: func(context.Context, func()) error { return nil }}
	if err := Run(t.Context(), []Service{one, one}); !errors.Is(err, ErrGraph) {
		t.Fatalf("two services of one name: got %v", err)
	}
}

func TestStartsInOrderAndStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithCancel(t.Context())
		services := []Service{
			j.daemon("plane", "api"),
			j.daemon("scheduler", "api"),
			j.daemon("api", "db"),
			j.daemon("db"),
			j.daemon("all", "plane", "scheduler"),
		}
		done := make(chan error, 1)
		go func() { done <- Run(ctx, services) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		for _, p := range [][2]string{
			{"start db", "start api"}, {"start api", "start plane"}, {"start api", "start scheduler"},
			{"start plane", "start all"}, {"start scheduler", "start all"},
			{"stop all", "stop plane"}, {"stop plane", "stop api"}, {"stop scheduler", "stop api"}, {"stop api", "stop db"},
		} {
			if j.index(t, p[0]) > j.index(t, p[1]) {
				t.Errorf("%q came after %q: %q", p[0], p[1], j.lines)
			}
		}
	})
}

func TestNothingStartsBeforeItsNeedsAreReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithCancel(t.Context())
		slow := Service{Name: "slow", Run: func(ctx context.Context, ready func()) error {
			time.Sleep(time.Minute) // fake time
			j.add("slow is ready")
			ready()
			ready() // a second call is harmless
			<-ctx.Done()
			return nil
		}}
		done := make(chan error, 1)
		go func() { done <- Run(ctx, []Service{j.daemon("user", "slow"), slow}) }()
		time.Sleep(2 * time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if j.index(t, "slow is ready") > j.index(t, "start user") {
			t.Errorf("user started early: %q", j.lines)
		}
	})
}

func TestFailureStopsTheRest(t *testing.T) {
	boom := errors.New("boom")
	for name, run := range map[string]func(context.Context, func()) error{
		"error before ready": func(context.Context, func()) error { return boom },
		"error after ready":  func(_ context.Context, ready func()) error { ready(); return boom },
		"nil before ready":   func(context.Context, func()) error { return nil },
		"panic":              func(context.Context, func()) error { panic("boom") },
	} {
		t.Run(name, func(t *testing.T) {
			var j journal
			err := Run(t.Context(), []Service{j.daemon("db"), {Name: "bad", Needs: []string{"db"}, Run: run}, j.daemon("never", "bad")})
			if err == nil || !strings.HasPrefix(err.Error(), "bad: ") {
				t.Fatalf("got %v, want the error of bad", err)
			}
			j.index(t, "stop db")
		})
	}
}

func TestTaskMayEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithCancel(t.Context())
		task := Service{Name: "task", Run: func(_ context.Context, ready func()) error {
			j.add("task")
			ready()
			return nil
		}}
		done := make(chan error, 1)
		go func() { done <- Run(ctx, []Service{task, j.daemon("daemon", "task")}) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		j.index(t, "stop daemon")
		// And a graph of nothing but tasks ends by itself.
		if err := Run(t.Context(), []Service{task}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStopDuringStart(t *testing.T) {
	for name, tc := range map[string]struct {
		end    func() error
		failed bool
	}{
		"said by the context":         {end: func() error { return context.Canceled }},
		"said in the service's words": {end: func() error { return errors.New("failed to list all nodes") }},
		"panic":                       {end: func() error { panic("boom") }, failed: true},
	} {
		t.Run(name, func(t *testing.T) { testStopDuringStart(t, tc.end, tc.failed) })
	}
}

func testStopDuringStart(t *testing.T, end func() error, failed bool) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		hung := Service{Name: "hung", Run: func(ctx context.Context, _ func()) error { <-ctx.Done(); return end() }}
		never := Service{Name: "never", Needs: []string{"hung"}, Run: func(context.Context, func()) error {
			t.Error("started although what it needs never was ready")
			return nil
		}}
		done := make(chan error, 1)
		go func() { done <- Run(ctx, []Service{hung, never}) }()
		synctest.Wait()
		cancel()
		if err := <-done; (err != nil) != failed {
			t.Fatal(err)
		}
	})
}

func TestServiceThatDoesNotStopIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		ctx, cancel := context.WithCancel(t.Context())
		stuck := Service{Name: "stuck", Run: func(_ context.Context, ready func()) error { ready(); <-release; return nil }}
		done := make(chan error, 1)
		go func() { done <- Run(ctx, []Service{stuck}) }()
		synctest.Wait()
		cancel()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "did not stop within 30s: stuck") {
			t.Fatalf("got %v", err)
		}
	})
}

func TestValuesReachServicesAndCancellationDoesNot(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "v"))
	err := Run(ctx, []Service{
		{Name: "low", Run: func(ctx context.Context, ready func()) error {
			if ctx.Value(key{}) != "v" {
				t.Error("value is missing")
			}
			ready()
			<-ctx.Done()
			return nil
		}},
		{Name: "high", Needs: []string{"low"}, Run: func(own context.Context, ready func()) error {
			ready()
			cancel()
			<-own.Done()
			return own.Err()
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
}
