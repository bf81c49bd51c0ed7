package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
)

// Report is everything that was measured.
type Report struct {
	Machine  Machine   `json:"machine"`
	Settings settings  `json:"settings"`
	Start    []Start   `json:"start,omitempty"`
	Idle     []Idle    `json:"idle,omitempty"`
	Rollout  []Rollout `json:"rollout,omitempty"`
	Burst    []Burst   `json:"burst,omitempty"`
	Plane    *Plane    `json:"plane,omitempty"`
}

// Plane is what the plane says of itself after everything.
type Plane struct {
	WakeSeconds Histogram      `json:"wakeSeconds"`
	SaveSeconds Histogram      `json:"saveSeconds"`
	Written     float64        `json:"snapshotWrittenBytes"`
	Wakes       map[string]int `json:"wakes"`    // by class of reason
	Restarts    map[string]int `json:"restarts"` // by reason
	// Restless are controllers that did not stay asleep when told to, with the reason of their last wake.
	Restless  map[string]string `json:"restless,omitempty"`
	Snapshots map[string]int64  `json:"snapshots"` // bytes, by controller
}

// Histogram is a distribution.
type Histogram struct {
	Count   uint64            `json:"count"`
	Sum     float64           `json:"sum"`
	Buckets map[string]uint64 `json:"buckets"` // upper bound to count of all below it
	P50     float64           `json:"p50"`     // interpolated in its bucket, like p99
	P99     float64           `json:"p99"`
}

// planeFigures reads the plane's metrics.
func planeFigures(ctx context.Context, s *server) (*Plane, error) {
	families, err := s.metrics(ctx)
	if err != nil {
		return nil, err
	}
	guests, err := s.guests(ctx)
	if err != nil {
		return nil, err
	}
	p := &Plane{
		Restless:    s.restless,
		Snapshots:   map[string]int64{},
		WakeSeconds: histogram(families["dormouse_wasm_wake_seconds"]),
		SaveSeconds: histogram(families["dormouse_wasm_save_seconds"]),
		Wakes:       byReason(families["dormouse_wasm_wakes_total"]),
		Restarts:    byReason(families["dormouse_wasm_restarts_total"]),
	}
	for _, m := range families["dormouse_wasm_snapshot_written_bytes_total"].GetMetric() {
		p.Written += m.GetCounter().GetValue()
	}
	for _, g := range guests {
		p.Snapshots[g.Name] = g.SnapshotBytes
	}
	return p, nil
}

func histogram(f *dto.MetricFamily) Histogram {
	h := Histogram{Buckets: map[string]uint64{}}
	if len(f.GetMetric()) == 0 {
		return h
	}
	from := f.GetMetric()[0].GetHistogram()
	h.Count, h.Sum = from.GetSampleCount(), from.GetSampleSum()
	for _, b := range from.GetBucket() {
		h.Buckets[fmt.Sprint(b.GetUpperBound())] = b.GetCumulativeCount()
	}
	h.P50, h.P99 = quantile(from.GetBucket(), h.Count, 0.5), quantile(from.GetBucket(), h.Count, 0.99)
	return h
}

// quantile interpolates linearly within a bucket; beyond the last finite bound it is that bound.
func quantile(buckets []*dto.Bucket, count uint64, q float64) float64 {
	rank, lower, below := q*float64(count), 0.0, 0.0
	for _, b := range buckets {
		upper, n := b.GetUpperBound(), float64(b.GetCumulativeCount())
		if math.IsInf(upper, 1) {
			break
		}
		if n >= rank && n > below {
			return lower + (upper-lower)*(rank-below)/(n-below)
		}
		lower, below = upper, n
	}
	return lower
}

// byReason adds a counter up by its label reason.
func byReason(f *dto.MetricFamily) map[string]int {
	sums := map[string]int{}
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "reason" {
				sums[l.GetValue()] += int(m.GetCounter().GetValue())
			}
		}
	}
	return sums
}

// percentile is the smallest value that p percent of all do not exceed (nearest rank); 0 of none.
func percentile[T int64 | float64](values []T, p float64) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

func median[T int64 | float64](values []T) T { return percentile(values, 50) }

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func bytesText(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%.0f KiB", float64(n)/(1<<10))
	case n < 10<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// print writes everything for people.
func (r *Report) print(out io.Writer) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(cells ...any) {
		text := make([]string, len(cells))
		for k, c := range cells {
			switch c := c.(type) {
			case float64:
				text[k] = fmt.Sprintf("%.1f", c)
			case int64:
				text[k] = bytesText(c)
			default:
				text[k] = fmt.Sprint(c)
			}
		}
		fmt.Fprintln(t, strings.Join(text, "\t")+"\t")
	}
	heading := func(format string, args ...any) {
		t.Flush()
		fmt.Fprintf(out, "\n"+format+"\n", args...)
	}
	if len(r.Start) > 0 {
		heading("Start until ready, seconds, median of %d (load average %.1f)", len(r.Start[0].First), r.Start[0].Load)
		row("", "first", "second", "slowest")
		for _, s := range r.Start {
			row(s.Mode, fmt.Sprintf("%.2f", median(s.First)), fmt.Sprintf("%.2f", median(s.Second)), fmt.Sprintf("%.2f", slices.Max(append(slices.Clone(s.First), s.Second...))))
		}
	}
	if len(r.Idle) > 0 {
		heading("At idle: memory %s after the last change, then over %s (load average %.1f)", r.Settings.Settle, r.Settings.Idle, r.Idle[0].Load)
		row("", "RSS", "PSS", "anonymous", "least", "median", "most", "CPU s", "CPU %", "written")
		for _, i := range r.Idle {
			row(i.Mode, i.Memory.RSS, i.Memory.PSS, i.Memory.Anonymous, percentile(i.Anonymous, 0), median(i.Anonymous), percentile(i.Anonymous, 100),
				fmt.Sprintf("%.2f", i.CPU), fmt.Sprintf("%.2f", 100*i.CPU/r.Settings.Idle.Seconds()), i.Written)
		}
		for _, i := range r.Idle {
			if i.Guests == nil {
				continue
			}
			heading("Controllers: %s at first, %s later", stateText(i.Guests, func(g Guest) plane.State { return g.SettledAs }),
				stateText(i.Guests, func(g Guest) plane.State { return g.State }))
			row("", "state", "resident", "snapshot", "wakes at idle", "because of")
			for _, g := range i.Guests {
				row(g.Name, g.State, g.ResidentBytes, g.SnapshotBytes, g.IdleWakes, reasonsText(g.IdleReasons))
			}
		}
		heading("On disk")
		for _, i := range r.Idle {
			for _, name := range slices.Sorted(maps.Keys(i.Files)) {
				row(i.Mode, name, i.Files[name])
			}
		}
	}
	if len(r.Rollout) > 0 {
		heading("One Deployment of %d pods until the objects exist, ms, p50 and p99 of %d (load average %.1f)", replicas, len(r.Rollout[0].Created), r.Rollout[0].Load)
		row("", "accepted", "", "ReplicaSet", "", "pods", "")
		for _, l := range r.Rollout {
			row(strings.TrimSpace(l.Mode+" "+l.Guests), percentile(l.Created, 50), percentile(l.Created, 99),
				percentile(l.ReplicaSet, 50), percentile(l.ReplicaSet, 99), percentile(l.Pods, 50), percentile(l.Pods, 99))
		}
	}
	if len(r.Burst) > 0 {
		heading("%d Deployments at once, seconds", r.Burst[0].Deployments)
		row("", "accepted", "ReplicaSets", "pods", "gone again", "CPU", "anonymous before", "peak", "with pods", "load")
		for _, b := range r.Burst {
			row(b.Mode, fmt.Sprintf("%.2f", b.Created), fmt.Sprintf("%.2f", b.ReplicaSets), fmt.Sprintf("%.2f", b.Pods), fmt.Sprintf("%.2f", b.Gone),
				b.CPU, b.Before.Anonymous, b.PeakAnonymous, b.Held.Anonymous, b.Load)
		}
	}
	if p := r.Plane; p != nil {
		heading("The plane, ms")
		row("", "count", "mean", "p50", "p99")
		for _, h := range []struct {
			name string
			Histogram
		}{{"wake", p.WakeSeconds}, {"save", p.SaveSeconds}} {
			row(h.name, h.Count, 1000*h.Sum/max(float64(h.Count), 1), 1000*h.P50, 1000*h.P99)
		}
		t.Flush()
		fmt.Fprintf(out, "wakes: %s; restarts: %s; %s of snapshots written\n", reasonsText(p.Wakes), reasonsText(p.Restarts), bytesText(int64(p.Written)))
		total, largest := int64(0), ""
		for name, size := range p.Snapshots {
			if total += size; largest == "" || size > p.Snapshots[largest] {
				largest = name
			}
		}
		fmt.Fprintf(out, "%d snapshots, together %s, the largest %s with %s\n", len(p.Snapshots), bytesText(total), largest, bytesText(p.Snapshots[largest]))
		for _, name := range slices.Sorted(maps.Keys(p.Restless)) {
			fmt.Fprintf(out, "%s does not stay asleep: %s\n", name, p.Restless[name])
		}
	}
	t.Flush()
	r.printGoals(out)
}

// printGoals sets figures against what they should be.
func (r *Report) printGoals(out io.Writer) {
	var lines []string
	goal := func(what, format string, is, most float64) {
		verdict := "reached"
		if is > most {
			verdict = "MISSED"
		}
		lines = append(lines, fmt.Sprintf("  %-7s  %s: "+format+", goal "+format, verdict, what, is, most))
	}
	for _, s := range r.Start {
		if s.Mode == wasm.name {
			goal("first start", "%.2f s", median(s.First), 6)
			goal("second start", "%.2f s", median(s.Second), 6)
		}
	}
	if idle := byMode(r.Idle, func(i Idle) string { return i.Mode }); len(idle) > 0 {
		goal("anonymous memory that the plane adds at idle", "%.1f MiB", float64(median(idle["wasm"].Anonymous)-median(idle["without"].Anonymous))/(1<<20), 10)
	}
	if len(r.Rollout) > 0 {
		p50 := map[string]float64{}
		for _, l := range r.Rollout {
			p50[l.Mode+l.Guests] = median(l.ReplicaSet)
		}
		goal("ReplicaSet p50 over native, controller asleep", "%.1f ms", p50["wasmasleep"]-p50["native"], 25)
		goal("ReplicaSet p50 over native, controller warm", "%.1f ms", p50["wasmwarm"]-p50["native"], 5)
	}
	if len(lines) > 0 {
		fmt.Fprintf(out, "\nAgainst the goals\n%s\n", strings.Join(lines, "\n"))
	}
}

func byMode[T any](list []T, name func(T) string) map[string]T {
	m := map[string]T{}
	for _, v := range list {
		m[name(v)] = v
	}
	return m
}

func reasonsText(reasons map[string]int) string {
	var text []string
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		text = append(text, fmt.Sprintf("%s ×%d", name, reasons[name]))
	}
	if len(text) == 0 {
		return "none"
	}
	return strings.Join(text, ", ")
}
