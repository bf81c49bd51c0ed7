package main

import (
	"context"
	"fmt"

	dto "github.com/prometheus/client_model/go"
)

// Parts is where the anonymous memory of a server is, in bytes, by what Go's runtime counts in it (see runtime/metrics).
// A heap profile does not tell: it samples one allocation in 512 KiB, which is more than what is looked for.
type Parts struct {
	Anonymous int64 `json:"anonymous"`
	Live      int64 `json:"live"`    // objects that were reachable at the last collection
	Garbage   int64 `json:"garbage"` // objects since then, and those not swept yet
	Holes     int64 `json:"holes"`   // room between objects, in pages that hold some
	Free      int64 `json:"free"`    // pages without objects, not given back yet
	Stacks    int64 `json:"stacks"`  // of goroutines
	Runtime   int64 `json:"runtime"` // the runtime's own lists; not all of it is resident
	// Rest is everything else: what C allocates, linear memories and instances of Wasm, written pages of the program.
	Rest int64 `json:"rest"`
}

// partsOf asks a server without programs beside it. That costs the server memory, so it comes after other measurements.
func partsOf(ctx context.Context, s *server) (*Parts, error) {
	m, err := memoryOf(s.pids()) // first: to answer takes memory that the answer does not count
	if err != nil {
		return nil, err
	}
	families, err := s.metrics(ctx)
	if err != nil {
		return nil, err
	}
	p, err := newParts(m.Anonymous, families)
	if err != nil {
		return nil, fmt.Errorf("reading the metrics of %s: %w", s.name, err)
	}
	return p, nil
}

func newParts(anonymous int64, families map[string]*dto.MetricFamily) (*Parts, error) {
	var missing error
	sum := func(names ...string) (total int64) {
		for _, name := range names {
			f := families["go_"+name+"_bytes"]
			if len(f.GetMetric()) != 1 {
				missing = fmt.Errorf("no metric go_%s_bytes", name)
				return 0
			}
			total += int64(f.GetMetric()[0].GetGauge().GetValue())
		}
		return total
	}
	p := &Parts{
		Anonymous: anonymous,
		Live:      sum("gc_heap_live"),
		Holes:     sum("memory_classes_heap_unused"),
		Free:      sum("memory_classes_heap_free"),
		Stacks:    sum("memory_classes_heap_stacks", "memory_classes_os_stacks"),
		Runtime: sum("memory_classes_metadata_mcache_inuse", "memory_classes_metadata_mcache_free", "memory_classes_metadata_mspan_inuse",
			"memory_classes_metadata_mspan_free", "memory_classes_metadata_other", "memory_classes_profiling_buckets", "memory_classes_other"),
	}
	p.Garbage = sum("memory_classes_heap_objects") - p.Live
	p.Rest = p.Anonymous - p.Live - p.Garbage - p.Holes - p.Free - p.Stacks - p.Runtime
	return p, missing
}

// less is how much more of each part p has than q.
func (p Parts) less(q Parts) Parts {
	return Parts{
		Anonymous: p.Anonymous - q.Anonymous, Live: p.Live - q.Live, Garbage: p.Garbage - q.Garbage, Holes: p.Holes - q.Holes,
		Free: p.Free - q.Free, Stacks: p.Stacks - q.Stacks, Runtime: p.Runtime - q.Runtime, Rest: p.Rest - q.Rest,
	}
}
