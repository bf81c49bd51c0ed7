package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/dormouse-k8s/dormouse/internal/payload"
)

// mega is what an MB is: a million bytes.
const mega = 1_000_000

// What Dormouse is to reach.
const (
	mostIdleAnonymous    = 5 * mega
	mostWakesPerHour     = 60
	mostIdleCPU          = 0.7 // of native's
	mostSnapshotsPerHour = 1 * mega
	mostWakeP50          = 3.0  // ms
	mostWakeP99          = 10.0 // ms
	mostRolloutOver      = 40.0 // ms over native
	mostBurst            = 1.5  // of native's time
	mostBurstOfK3s       = 0.5  // of the time as k3s does it
	mostFilledOver       = 10 * mega
	mostModule           = 220 * mega
	mostModulePacked     = 40 * mega
)

// Bar is one line of the table of what is to be reached.
type Bar struct {
	Measure string  `json:"measure"`
	Wasm    string  `json:"wasm"`
	Native  string  `json:"native,omitempty"`
	K3s     string  `json:"k3s,omitempty"`
	Want    string  `json:"want"`
	Value   float64 `json:"value"` // what is compared, in the unit of Most
	Most    float64 `json:"most"`
	Reached bool    `json:"reached"`
}

// Module is the size of the compiled controllers, in bytes.
type Module struct {
	Unpacked int64 `json:"unpacked"`
	Packed   int64 `json:"packed"` // in the program that is downloaded
}

func moduleOf(binary string) (*Module, error) {
	a, err := payload.Open(binary)
	if err != nil {
		return nil, fmt.Errorf("looking for the module: %w", err)
	}
	defer a.Close()
	packed, unpacked, ok := a.Sizes(payload.Controllers)
	if !ok {
		return nil, fmt.Errorf("there is no %s in %s", payload.Controllers, binary)
	}
	return &Module{Unpacked: unpacked, Packed: packed}, nil
}

// bars sets what was measured against what is to be reached. What was not measured is left out.
func (r *Report) bars() []Bar {
	var bars []Bar
	add := func(b Bar) {
		b.Reached = b.Value <= b.Most
		bars = append(bars, b)
	}
	r.idleBars(add)
	r.rolloutBars(add)
	r.burstBars(add)
	if f := byMode(r.Filled, func(f Filled) string { return f.Mode }); len(f) > 0 {
		grown := func(mode string) int64 { return f[mode].Filled.Anonymous - f[mode].Empty.Anonymous }
		over := grown(wasm.name) - grown(bare.name)
		add(Bar{
			Measure: fmt.Sprintf("%d pods, all asleep: anonymous memory over the empty cluster", f[wasm.name].Pods),
			Wasm:    megabytes(grown(wasm.name)), Native: megabytes(grown(native.name)),
			Want:  fmt.Sprintf("≤ that of the API server alone (%s) + %s", megabytes(grown(bare.name)), megabytes(mostFilledOver)),
			Value: float64(over), Most: mostFilledOver,
		})
	}
	if m := r.Module; m != nil {
		add(Bar{Measure: "module on disk", Wasm: megabytes(m.Unpacked), Want: "≤ " + megabytes(mostModule), Value: float64(m.Unpacked), Most: mostModule})
		add(Bar{Measure: "module in the download", Wasm: megabytes(m.Packed), Want: "≤ " + megabytes(mostModulePacked), Value: float64(m.Packed), Most: mostModulePacked})
	}
	return bars
}

func (r *Report) idleBars(add func(Bar)) {
	idle := byMode(r.Idle, func(i Idle) string { return i.Mode })
	if len(idle) == 0 {
		return
	}
	over := func(mode string) Memory {
		m, base := medianMemory(idle[mode].Samples), medianMemory(idle[bare.name].Samples)
		return Memory{RSS: m.RSS - base.RSS, PSS: m.PSS - base.PSS, Anonymous: m.Anonymous - base.Anonymous}
	}
	text := func(mode string) string {
		m := over(mode)
		return fmt.Sprintf("%s (RSS %s, PSS %s)", megabytes(m.Anonymous), megabytes(m.RSS), megabytes(m.PSS))
	}
	add(Bar{
		Measure: "anonymous memory of the idle server over the one without controllers and scheduler",
		Wasm:    text(wasm.name), Native: text(native.name), K3s: text(k3sWay.name),
		Want: "≤ " + megabytes(mostIdleAnonymous), Value: float64(over(wasm.name).Anonymous), Most: mostIdleAnonymous,
	})

	hours := r.Settings.Idle.Hours()
	perHour := func(n float64) string {
		if hours == 1 {
			return ""
		}
		return fmt.Sprintf(" in %s, %.0f an hour", r.Settings.Idle, n/hours)
	}
	wakes, upkeep := 0, map[string]int{}
	for _, g := range idle[wasm.name].Guests {
		wakes += len(g.IdleWakes)
		for _, w := range g.IdleWakes {
			if class := housekeeping(w.Reason); class != "" {
				upkeep[class]++
			}
		}
	}
	add(Bar{
		Measure: fmt.Sprintf("wakes of the whole plane, idle node with %d pods", idlePods),
		Wasm:    fmt.Sprintf("%d%s", wakes, perHour(float64(wakes))), Want: fmt.Sprintf("≤ %d an hour", mostWakesPerHour),
		Value: float64(wakes) / hours, Most: mostWakesPerHour,
	})
	sum := 0
	for _, n := range upkeep {
		sum += n
	}
	add(Bar{Measure: "of these by renewed watches, heartbeats, bookmarks", Wasm: reasonsText(upkeep), Want: "0", Value: float64(sum)})
	percent := func(mode string) string {
		return fmt.Sprintf("%.2f %% of a core", 100*idle[mode].CPU/r.Settings.Idle.Seconds())
	}
	ratio := idle[wasm.name].CPU / max(idle[native.name].CPU, 1.0/userHZ) // that is how finely it is counted
	add(Bar{
		Measure: "CPU of the idle server", Wasm: fmt.Sprintf("%s, %.2f × native", percent(wasm.name), ratio), Native: percent(native.name), K3s: percent(k3sWay.name),
		Want: fmt.Sprintf("≤ %.1f × native", mostIdleCPU), Value: ratio, Most: mostIdleCPU,
	})
	snapshots := float64(idle[wasm.name].Snapshots)
	rate := ""
	if hours != 1 {
		rate = fmt.Sprintf(" in %s, %s an hour", r.Settings.Idle, megabytes(int64(snapshots/hours)))
	}
	add(Bar{
		Measure: "written by snapshots at idle", Wasm: megabytes(int64(snapshots)) + rate, Want: "≤ " + megabytes(mostSnapshotsPerHour) + " an hour",
		Value: snapshots / hours, Most: mostSnapshotsPerHour,
	})
	add(Bar{
		Measure: "written by the whole server at idle", Wasm: megabytes(idle[wasm.name].Written), Native: megabytes(idle[native.name].Written), K3s: megabytes(idle[k3sWay.name].Written),
		Want: "≤ native", Value: float64(idle[wasm.name].Written), Most: float64(idle[native.name].Written),
	})
}

func (r *Report) rolloutBars(add func(Bar)) {
	if len(r.Wake) > 0 {
		var all Histogram
		var p50, p99 []float64
		for _, h := range r.Wake {
			all = all.plus(h)
			p50, p99 = append(p50, 1000*h.P50), append(p99, 1000*h.P99)
		}
		for _, q := range []struct {
			name      string
			typical   float64
			all, most float64
		}{{"p50", median(p50), 1000 * all.P50, mostWakeP50}, {"p99", median(p99), 1000 * all.P99, mostWakeP99}} {
			add(Bar{
				Measure: "event to a sleeping guest → it runs, " + q.name + " of the guest in the middle",
				Wasm:    fmt.Sprintf("%.1f ms (%.1f ms of all)", q.typical, q.all), Want: fmt.Sprintf("≤ %.0f ms", q.most),
				Value: q.typical, Most: q.most,
			})
		}
	}
	rollout := byMode(r.Rollout, func(l Rollout) string { return l.Mode + l.Guests })
	if len(rollout) == 0 {
		return
	}
	asleep, natively, k3s := rollout[wasm.name+"asleep"], rollout[native.name], rollout[k3sWay.name]
	ms := func(values []float64) string { return fmt.Sprintf("%.0f ms", median(values)) }
	// The bar is for the pods; what comes before it has the same, as a part of it.
	for _, stage := range []struct {
		name string
		of   func(Rollout) []float64
	}{
		{"ReplicaSet exists", func(l Rollout) []float64 { return l.ReplicaSet }},
		{fmt.Sprintf("%d pods exist", replicas), func(l Rollout) []float64 { return l.Pods }},
	} {
		add(Bar{
			Measure: "Deployment created → " + stage.name + ", all asleep before, p50",
			Wasm:    ms(stage.of(asleep)), Native: ms(stage.of(natively)), K3s: ms(stage.of(k3s)),
			Want:  fmt.Sprintf("≤ native + %.0f ms", mostRolloutOver),
			Value: median(stage.of(asleep)) - median(stage.of(natively)), Most: mostRolloutOver,
		})
	}
}

func (r *Report) burstBars(add func(Bar)) {
	if len(r.Burst) == 0 {
		return
	}
	bound, over := map[string][]float64{}, map[string]int64{}
	idle := map[string]int64{}
	for _, b := range r.Burst {
		if _, known := idle[b.Mode]; !known {
			idle[b.Mode] = b.Before // later the heap has grown
		}
		bound[b.Mode] = append(bound[b.Mode], b.Bound)
		over[b.Mode] = max(over[b.Mode], b.PeakAnonymous-idle[b.Mode])
	}
	seconds := func(mode string) string { return fmt.Sprintf("%.1f s", median(bound[mode])) }
	what := fmt.Sprintf("%d Deployments × %d at once → all pods bound, median of %d", r.Burst[0].Deployments, replicas, len(bound[wasm.name]))
	for _, than := range []struct {
		mode mode
		most float64
	}{{native, mostBurst}, {k3sWay, mostBurstOfK3s}} {
		ratio := median(bound[wasm.name]) / median(bound[than.mode.name])
		add(Bar{
			Measure: what, Wasm: fmt.Sprintf("%s, %.2f × %s", seconds(wasm.name), ratio, than.mode.title), Native: seconds(native.name), K3s: seconds(k3sWay.name),
			Want: fmt.Sprintf("≤ %.1f × %s", than.most, than.mode.title), Value: ratio, Most: than.most,
		})
	}
	most := over[native.name] + r.Settings.Budget
	add(Bar{
		Measure: "peak anonymous memory in that burst over idle",
		Wasm:    megabytes(over[wasm.name]), Native: megabytes(over[native.name]), K3s: megabytes(over[k3sWay.name]),
		Want: "≤ native + the budget of " + megabytes(r.Settings.Budget), Value: float64(over[wasm.name]), Most: float64(most),
	})
}

// printBars writes the table for people.
func printBars(out io.Writer, bars []Bar) {
	if len(bars) == 0 {
		return
	}
	fmt.Fprint(out, "\nWhat is to be reached (MB: a million bytes)\n")
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tmeasure\t"+strings.Join([]string{wasm.title, native.title, k3sWay.title}, "\t")+"\tbar")
	for _, b := range bars {
		verdict := "reached"
		if !b.Reached {
			verdict = "MISSED"
		}
		fmt.Fprintln(t, strings.Join([]string{verdict, b.Measure, b.Wasm, cmp.Or(b.Native, "-"), cmp.Or(b.K3s, "-"), b.Want}, "\t"))
	}
	t.Flush()
}

// megabytes is an amount or a difference for people.
func megabytes(n int64) string {
	text := fmt.Sprintf("%.1f MB", math.Abs(float64(n))/mega)
	if n%mega == 0 {
		text = fmt.Sprintf("%d MB", max(n, -n)/mega)
	}
	if n < 0 {
		text = "−" + text
	}
	return text
}

// printWakes writes how fast each guest wakes, the slowest first.
func printWakes(out io.Writer, times map[string]Histogram, snapshots map[string]int64) {
	fmt.Fprint(out, "\nEvent to a sleeping guest → it runs, ms\n")
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\twakes\tmean\tp50\tp99\tsnapshot\t")
	names := slices.SortedFunc(maps.Keys(times), func(a, b string) int {
		return cmp.Or(cmp.Compare(times[b].P50, times[a].P50), cmp.Compare(a, b))
	})
	for _, name := range names {
		h := times[name]
		fmt.Fprintf(t, "%s\t%d\t%.1f\t%.1f\t%.1f\t%s\t\n", name, h.Count, 1000*h.Sum/float64(h.Count), 1000*h.P50, 1000*h.P99, bytesText(snapshots[name]))
	}
	t.Flush()
}
