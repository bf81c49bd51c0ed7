package plane

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
)

// benchmarked is a plane with one guest, which holds a cache and puts the value of
// every event into the results.
type benchmarked struct {
	*Plane
	api   *api
	count int
}

func newBenchmarked(b *testing.B, cache int) *benchmarked {
	code, err := testCode()
	if err != nil {
		b.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	a := newAPI()
	p := New(Config{
		Code: code, Digest: "digest", ModuleName: "test", Dir: b.TempDir(),
		Guests:      []controllers.Declaration{{Name: "cache", MemoryLimit: 64 << 20, RunLimit: 10 * time.Second}},
		IdleTimeout: time.Hour, // benchmarks evict
		Log:         logrus.NewEntry(log),
	})
	ctx, cancel := context.WithCancel(b.Context())
	ended, ready := make(chan error, 1), make(chan struct{})
	host := Host{
		Transport: func(string) http.RoundTripper { return a },
		Datastore: Datastore{ID: "store", Previous: "one", Generation: "one", Revision: 1 << 40},
		Setup:     func(string) (Setup, error) { return Setup{Options: json.RawMessage(strconv.Itoa(cache))}, nil },
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

// caches are sizes of a guest's cache. Of a whole guest the typical controller has
// between one and three MiB of its own.
var caches = []struct {
	name  string
	bytes int
}{{"no-cache", 0}, {"1MiB", 1 << 20}, {"2MiB", 2 << 20}, {"16MiB", 16 << 20}}

// BenchmarkWake is an event that finds the guest asleep: until it has sent the
// request that follows from it.
func BenchmarkWake(b *testing.B) {
	for _, cache := range caches {
		b.Run(cache.name, func(b *testing.B) {
			p := newBenchmarked(b, cache.bytes)
			p.event(b)
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				p.evict(b)
				began := time.Now()
				b.StartTimer()
				p.event(b)
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(took[len(took)/2].Seconds()*1e3, "p50-ms")
			b.ReportMetric(took[len(took)*99/100].Seconds()*1e3, "p99-ms")
			b.ReportMetric(float64(p.guests[0].detail().SnapshotBytes), "snapshot-B")
		})
	}
}

// BenchmarkRestore is the part of a wake before the guest runs.
func BenchmarkRestore(b *testing.B) {
	for _, cache := range caches {
		b.Run(cache.name, func(b *testing.B) {
			p := newBenchmarked(b, cache.bytes)
			p.event(b)
			p.evict(b)
			g := p.guests[0]
			var resident int64
			for b.Loop() {
				if err := g.restore(); err != nil { // the guest sleeps, and does not look
					b.Fatal(err)
				}
				b.StopTimer()
				var err error
				if resident, err = g.inst.Resident(); err != nil {
					b.Fatal(err)
				}
				g.inst.Close()
				g.inst = nil
				b.StartTimer()
			}
			b.ReportMetric(float64(resident), "restored-B")
		})
	}
}

// BenchmarkWarm is an event that finds the guest in memory: unpark, one request,
// park.
func BenchmarkWarm(b *testing.B) {
	p := newBenchmarked(b, 2<<20)
	p.event(b)
	for b.Loop() {
		p.event(b)
	}
}

// BenchmarkSleep saves a guest that has handled one event, and releases it. It
// waits for the disk.
func BenchmarkSleep(b *testing.B) {
	p := newBenchmarked(b, 2<<20)
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
