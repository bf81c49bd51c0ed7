package main

import (
	"context"
	"fmt"
	"time"
)

// Start is how long a server takes from its start until it says that it is ready, in seconds.
type Start struct {
	Mode   string    `json:"mode"`
	First  []float64 `json:"first"`  // with an empty data directory
	Second []float64 `json:"second"` // with what the first left
	Load   float64   `json:"load"`   // load average at the end
}

// starts measures the modes in turn, so that what else the machine does hits both.
func (b *bench) starts(ctx context.Context) error {
	results := []Start{{Mode: wasm.name}, {Mode: native.name}}
	for n := range b.Starts {
		for k, m := range []mode{wasm, native} {
			s, err := b.newServer(m, fmt.Sprintf("start-%s-%d", m.name, n))
			if err != nil {
				return err
			}
			for _, times := range []*[]float64{&results[k].First, &results[k].Second} {
				took, err := s.start(ctx)
				if err != nil {
					return err
				}
				*times = append(*times, took.Seconds())
				b.say("%s ready after %s", s.name, took.Round(time.Millisecond))
				if err := s.stop(); err != nil {
					return err
				}
			}
		}
	}
	load, err := loadAverage()
	for k := range results {
		results[k].Load = load
	}
	b.report.Start = results
	return err
}
