package plane

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
)

// benchmarked is a plane with one guest, which puts the value of every event into
// the results.
type benchmarked struct {
	*Plane
	api   *api
	count int
}

func newBenchmarked(b *testing.B) *benchmarked {
	code, err := testCode()
	if err != nil {
		b.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	a := newAPI()
	p := New(Config{
		Code: code, Digest: "digest", ModuleName: "test", Dir: b.TempDir(),
		Guests:      []controllers.Declaration{{Name: "panic", MemoryLimit: 64 << 20, RunLimit: 10 * time.Second}},
		IdleTimeout: time.Hour, // benchmarks evict
		Log:         logrus.NewEntry(log),
	})
	ctx, cancel := context.WithCancel(b.Context())
	ended, ready := make(chan error, 1), make(chan struct{})
	host := Host{
		Transport: func(string) http.RoundTripper { return a },
		Datastore: Datastore{ID: "store", Previous: "one", Generation: "one", Revision: 1 << 40},
	}
	go func() { ended <- p.Run(ctx, host, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	return &benchmarked{Plane: p, api: a}
}

// event changes an object and waits until the guest has put its value.
func (p *benchmarked) event(b *testing.B) {
	p.count++
	value := strconv.Itoa(p.count)
	p.api.put("MODIFIED", "x", value)
	for {
		p.api.mu.Lock()
		done, changed := p.api.results["x"] == value, p.api.changed
		p.api.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			b.Fatalf("event %s is without effect: %+v", value, p.List())
		}
	}
}

// evict puts the guest to sleep, at the first moment at which it is not busy.
func (p *benchmarked) evict(b *testing.B) {
	for {
		err := p.guests[0].command(b.Context(), commandEvict)
		if err == nil {
			return
		}
		if !errors.Is(err, errBusy) {
			b.Fatal(err)
		}
	}
}

// BenchmarkWake is an event that finds the guest asleep: until it has sent the
// request that follows from it.
func BenchmarkWake(b *testing.B) {
	p := newBenchmarked(b)
	p.event(b)
	for b.Loop() {
		b.StopTimer()
		p.evict(b)
		b.StartTimer()
		p.event(b)
	}
	b.ReportMetric(float64(p.guests[0].detail().SnapshotBytes), "snapshot-bytes")
}

// BenchmarkWarm is an event that finds the guest in memory: unpark, one request,
// park.
func BenchmarkWarm(b *testing.B) {
	p := newBenchmarked(b)
	p.event(b)
	for b.Loop() {
		p.event(b)
	}
}

// BenchmarkSleep saves a guest that has handled one event, and releases it. It
// waits for the disk.
func BenchmarkSleep(b *testing.B) {
	p := newBenchmarked(b)
	p.event(b)
	for b.Loop() {
		b.StopTimer()
		p.event(b)
		b.StartTimer()
		p.evict(b)
	}
}

// BenchmarkInstantiate makes a guest from the module's image and frees it.
func BenchmarkInstantiate(b *testing.B) {
	code, err := testCode()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		i, err := code.Instantiate(runtime.Config{Host: &guest{}, Mailbox: runtime.NewMailbox(func() {})})
		if err != nil {
			b.Fatal(err)
		}
		i.Close()
	}
}
