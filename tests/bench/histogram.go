package main

import (
	"context"
	"math"

	dto "github.com/prometheus/client_model/go"
)

// Histogram is a distribution of times in seconds.
type Histogram struct {
	Count   uint64   `json:"count"`
	Sum     float64  `json:"sum"`
	Buckets []Bucket `json:"buckets"`
	P50     float64  `json:"p50"` // interpolated in its bucket, like p99
	P99     float64  `json:"p99"`
}

// Bucket counts what does not exceed a bound.
type Bucket struct {
	UpTo  float64 `json:"upTo"`
	Count uint64  `json:"count"`
}

func newHistogram(from *dto.Histogram) Histogram {
	h := Histogram{Count: from.GetSampleCount(), Sum: from.GetSampleSum()}
	for _, b := range from.GetBucket() {
		if !math.IsInf(b.GetUpperBound(), 1) {
			h.Buckets = append(h.Buckets, Bucket{b.GetUpperBound(), b.GetCumulativeCount()})
		}
	}
	h.estimate()
	return h
}

func (h *Histogram) estimate() { h.P50, h.P99 = h.quantile(0.5), h.quantile(0.99) }

// since is what has been added to an earlier state of the same histogram; that of none is the zero value.
func (h Histogram) since(before Histogram) Histogram {
	return h.combine(before, func(a, b uint64) uint64 { return a - b }, -1)
}

// plus is both together. They have the same buckets, or one is the zero value.
func (h Histogram) plus(other Histogram) Histogram {
	if h.Buckets == nil {
		return other
	}
	return h.combine(other, func(a, b uint64) uint64 { return a + b }, 1)
}

func (h Histogram) combine(other Histogram, counts func(a, b uint64) uint64, sign float64) Histogram {
	sum := Histogram{Count: counts(h.Count, other.Count), Sum: h.Sum + sign*other.Sum}
	for k, b := range h.Buckets {
		if k < len(other.Buckets) {
			b.Count = counts(b.Count, other.Buckets[k].Count)
		}
		sum.Buckets = append(sum.Buckets, b)
	}
	sum.estimate()
	return sum
}

// quantile interpolates linearly within a bucket; beyond the last bound it is that bound.
func (h Histogram) quantile(q float64) float64 {
	rank, lower, below := q*float64(h.Count), 0.0, 0.0
	for _, b := range h.Buckets {
		n := float64(b.Count)
		if n >= rank && n > below {
			return lower + (b.UpTo-lower)*(rank-below)/(n-below)
		}
		lower, below = b.UpTo, n
	}
	return lower
}

// wakeTimes are the times from an event to a running guest, by controller.
func wakeTimes(ctx context.Context, s *server) (map[string]Histogram, error) {
	families, err := s.metrics(ctx)
	if err != nil {
		return nil, err
	}
	times := map[string]Histogram{}
	for _, m := range families["dormouse_wasm_wake_seconds"].GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "controller" {
				times[l.GetValue()] = newHistogram(m.GetHistogram())
			}
		}
	}
	return times, nil
}
