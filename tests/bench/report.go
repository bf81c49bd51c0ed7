package main

import (
	"cmp"
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
	Bars     []Bar     `json:"bars"`
	Module   *Module   `json:"module,omitempty"`
	Start    []Start   `json:"start,omitempty"`
	Idle     []Idle    `json:"idle,omitempty"`
	Filled   []Filled  `json:"filled,omitempty"`
	Rollout  []Rollout `json:"rollout,omitempty"`
	// Wake are the times from an event to a running guest in the rollouts, by controller, in seconds.
	Wake   map[string]Histogram `json:"wake,omitempty"`
	Burst  []Burst              `json:"burst,omitempty"`
	Plane  *Plane               `json:"plane,omitempty"`
	Figure *Figure              `json:"figure,omitempty"`
}

// Plane is what the plane says of itself after rollouts and bursts.
type Plane struct {
	SaveSeconds Histogram      `json:"saveSeconds"`
	Written     float64        `json:"snapshotWrittenBytes"`
	Wakes       map[string]int `json:"wakes"`    // by class of reason
	Restarts    map[string]int `json:"restarts"` // by reason
	// Restless are controllers that did not stay asleep when told to, with the reason of their last wake.
	Restless  map[string]string `json:"restless,omitempty"`
	Snapshots map[string]int64  `json:"snapshots"` // bytes, by controller
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
		Restless:  s.restless,
		Snapshots: map[string]int64{},
		Wakes:     byReason(families["dormouse_wasm_wakes_total"]),
		Restarts:  byReason(families["dormouse_wasm_restarts_total"]),
	}
	for _, m := range families["dormouse_wasm_save_seconds"].GetMetric() {
		p.SaveSeconds = newHistogram(m.GetHistogram())
	}
	for _, m := range families["dormouse_wasm_snapshot_written_bytes_total"].GetMetric() {
		p.Written += m.GetCounter().GetValue()
	}
	for _, g := range guests {
		p.Snapshots[g.Name] = g.SnapshotBytes
	}
	return p, nil
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

// signedBytes is for differences.
func signedBytes(n int64) string {
	if n < 0 {
		return "−" + bytesText(-n)
	}
	return bytesText(n)
}

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
		heading("At idle: a node with %d pods, over %s, memory as median (load average %.1f)", idlePods, r.Settings.Idle, r.Idle[0].Load)
		row("", "RSS", "PSS", "anonymous", "least", "most", "CPU s", "CPU %", "written", "snapshots")
		for _, i := range r.Idle {
			var anonymous []int64
			for _, m := range i.Samples {
				anonymous = append(anonymous, m.Anonymous)
			}
			m := medianMemory(i.Samples)
			row(i.Mode, m.RSS, m.PSS, m.Anonymous, percentile(anonymous, 0), percentile(anonymous, 100),
				fmt.Sprintf("%.2f", i.CPU), fmt.Sprintf("%.2f", 100*i.CPU/r.Settings.Idle.Seconds()), i.Written, i.Snapshots)
		}
		printParts(heading, row, r.Idle, func(i Idle) (string, *Parts) { return i.Mode, i.Parts })
		for _, i := range r.Idle {
			if len(i.Guests) == 0 {
				continue
			}
			heading("Controllers: %s at first, %s later", stateText(i.Guests, func(g Guest) plane.State { return g.SettledAs }),
				stateText(i.Guests, func(g Guest) plane.State { return g.State }))
			row("", "state", "resident", "snapshot", "wakes at idle", "because of")
			for _, g := range i.Guests {
				row(g.Name, g.State, g.ResidentBytes, g.SnapshotBytes, len(g.IdleWakes), reasonsText(countReasons(g.IdleWakes)))
			}
		}
		heading("On disk")
		for _, i := range r.Idle {
			for _, name := range slices.Sorted(maps.Keys(i.Files)) {
				row(i.Mode, name, i.Files[name])
			}
		}
	}
	if len(r.Filled) > 0 {
		heading("Anonymous memory with %d pods, every controller asleep", r.Filled[0].Pods)
		row("", "empty", "filled", "more")
		for _, f := range r.Filled {
			row(f.Mode, f.Empty.Anonymous, f.Filled.Anonymous, signedBytes(f.Filled.Anonymous-f.Empty.Anonymous))
		}
		printParts(heading, row, r.Filled, func(f Filled) (string, *Parts) { return f.Mode, f.Parts })
	}
	if len(r.Rollout) > 0 {
		heading("One Deployment of %d pods until the objects exist, ms, p50 and p99 of %d (load average %.1f)", replicas, len(r.Rollout[0].Created), r.Rollout[0].Load)
		row("", "accepted", "", "ReplicaSet", "", "first pod", "", "all pods", "", "bound", "")
		for _, l := range r.Rollout {
			cells := []any{strings.TrimSpace(l.Mode + " " + l.Guests)}
			for _, values := range [][]float64{l.Created, l.ReplicaSet, l.FirstPod, l.Pods, l.Bound} {
				cells = append(cells, percentile(values, 50), percentile(values, 99))
			}
			row(cells...)
		}
	}
	if len(r.Burst) > 0 {
		heading("%d Deployments at once, seconds", r.Burst[0].Deployments)
		row("", "accepted", "ReplicaSets", "pods", "bound", "gone again", "CPU", "anonymous before", "peak", "load")
		for _, b := range r.Burst {
			row(b.Mode, fmt.Sprintf("%.2f", b.Created), fmt.Sprintf("%.2f", b.ReplicaSets), fmt.Sprintf("%.2f", b.Pods), fmt.Sprintf("%.2f", b.Bound),
				fmt.Sprintf("%.2f", b.Gone), b.CPU, b.Before, b.PeakAnonymous, b.Load)
		}
		for _, b := range r.Burst {
			if len(b.Guests) > 0 {
				fmt.Fprintf(t, "\nCPU of the controllers in Wasm in that, seconds: %s", largest(b.Guests, 6))
			}
		}
	}
	t.Flush()
	if p := r.Plane; p != nil {
		if len(r.Wake) > 0 {
			printWakes(out, r.Wake, p.Snapshots)
		}
		fmt.Fprintf(out, "\nThe plane: wakes: %s; restarts: %s; %s of snapshots written, in %.1f ms each (p99 %.1f ms)\n", reasonsText(p.Wakes), reasonsText(p.Restarts),
			bytesText(int64(p.Written)), 1000*p.SaveSeconds.P50, 1000*p.SaveSeconds.P99)
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
	printBars(out, r.Bars)
}

// printParts prints where the memory of servers is, and how much more than in the bare one.
func printParts[T any](heading func(string, ...any), row func(...any), servers []T, of func(T) (mode string, parts *Parts)) {
	heading("Where the anonymous memory is, and how much more than in a server without controllers")
	row("", "anonymous", "live", "garbage", "holes", "free", "stacks", "runtime", "rest")
	var least *Parts
	for _, s := range servers {
		if mode, parts := of(s); mode == bare.name {
			least = parts
		}
	}
	for _, s := range servers {
		mode, p := of(s)
		if p == nil {
			continue
		}
		row(mode, p.Anonymous, p.Live, p.Garbage, p.Holes, p.Free, p.Stacks, p.Runtime, p.Rest)
		if least != nil && p != least {
			d := p.less(*least)
			row("", signedBytes(d.Anonymous), signedBytes(d.Live), signedBytes(d.Garbage), signedBytes(d.Holes), signedBytes(d.Free),
				signedBytes(d.Stacks), signedBytes(d.Runtime), signedBytes(d.Rest))
		}
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

// largest are the names with the largest values, and how much the others have together.
func largest(values map[string]float64, most int) string {
	names := slices.SortedFunc(maps.Keys(values), func(a, b string) int {
		return cmp.Or(cmp.Compare(values[b], values[a]), cmp.Compare(a, b))
	})
	var text []string
	others := 0.0
	for k, name := range names {
		if k < most {
			text = append(text, fmt.Sprintf("%s %.2f", name, values[name]))
		} else {
			others += values[name]
		}
	}
	return strings.Join(append(text, fmt.Sprintf("others %.2f", others)), ", ")
}
