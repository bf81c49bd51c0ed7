package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// gcPercent is the garbage collector's target: less memory for a little more CPU than Go's default of 100.
	gcPercent = 50
	// startPercent is the same until the server has settled. What is made then stays for good, in between what is
	// needed for a moment only, and Go cannot move it together later. With 25 the server was ready 0.7 s earlier on
	// a machine with two cores, and had 10 MiB more for ever.
	startPercent = 10
	// startBytes is more than a start allocates: 0.4 GB until the server is ready, 0.6 GB when the controllers have
	// started. A server that allocates more has work to do, as after a power cut, and needs the processor for it:
	// with startPercent, 100 Deployments just after the start took half as long again as later.
	startBytes = 768 << 20
	// settled is how long after the start what only the start needed is given back: most of it. By then the
	// controllers have seen the cluster. In the minutes after it they go to sleep, and then their watches rest,
	// which leaves some more: that is given back for settling more times.
	settled  = 15 * time.Second
	settling = 3
	// returnEvery is how often it is looked whether memory has grown by so much that it is worth a garbage
	// collection to give it back: by worthReturning bytes after a minute, half of it after two, and so on. Go
	// itself gives back what lies far above its target, and keeps the rest for good. A burst of work is gone
	// after a minute or two; an idle server collects its garbage each four minutes, which takes it a tenth of
	// a second.
	returnEvery    = time.Minute
	worthReturning = 40 << 20
)

// memoryKeeper keeps the process small. Who sets GOGC decides for himself, and gets none.
type memoryKeeper struct{ off bool }

// keepMemorySmall is called before anything large is made.
func keepMemorySmall() memoryKeeper {
	if os.Getenv("GOGC") != "" {
		return memoryKeeper{off: true}
	}
	debug.SetGCPercent(startPercent)
	return memoryKeeper{}
}

// run gives back to the system what the start needed, and later what a burst of work did, until ctx is
// done.
func (k memoryKeeper) run(ctx context.Context) {
	if k.off || !awaitSettled(ctx) {
		return
	}
	ticker := time.NewTicker(returnEvery)
	defer ticker.Stop()
	var least, minutes uint64 // what there was, and how long ago, when memory was given back last
	for n := 0; ; n++ {
		starting := n <= settling
		if starting {
			shrinkStacks()
		}
		if minutes++; starting || goMemory() > least+worthReturning/minutes {
			debug.FreeOSMemory()
			least, minutes = goMemory(), 0
		}
		trimMalloc()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// awaitSettled sees the start through, and returns false if ctx is done before.
func awaitSettled(ctx context.Context) bool {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for began := time.Now(); time.Since(began) < settled; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return false
		}
		if goMetrics("/gc/heap/allocs:bytes")[0] > startBytes {
			debug.SetGCPercent(gcPercent)
		}
	}
	debug.SetGCPercent(gcPercent)
	return true
}

// shrinkStacks makes those of waiting goroutines as small as they can be. A garbage collection makes one that
// is at most a quarter full smaller by half.
func shrinkStacks() {
	for range 3 {
		runtime.GC()
	}
}

// goMemory is how many bytes the Go runtime has of the system.
func goMemory() uint64 {
	m := goMetrics("/memory/classes/total:bytes", "/memory/classes/heap/released:bytes")
	return m[0] - m[1]
}

// goMetrics are metrics of the Go runtime that are whole numbers.
func goMetrics(names ...string) []uint64 {
	samples := make([]metrics.Sample, len(names))
	for k, name := range names {
		samples[k].Name = name
	}
	metrics.Read(samples)
	values := make([]uint64, len(names))
	for k, s := range samples {
		values[k] = s.Value.Uint64()
	}
	return values
}
