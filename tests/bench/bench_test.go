package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
)

// TestMain lets the test's executable be what the program starts of itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == upstreamVerb {
		os.Exit(doMain(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// TestEverythingOnce runs all phases as shortly as possible.
func TestEverythingOnce(t *testing.T) {
	dir := t.TempDir()
	figures, picture := filepath.Join(dir, "bench.json"), filepath.Join(dir, "memory.svg")
	var out, errs strings.Builder
	code := doMain([]string{
		"-dormouse", "../../bin/dormouse", "-dir", filepath.Join(dir, "work"), "-json", figures, "-svg", picture,
		"-starts", "1", "-settle", "1s", "-idle", "1s", "-pods", "40", "-samples", "1", "-burst", "3", "-bursts", "1", "-figure", "5s",
	}, &out, &errs)
	if code != 0 {
		t.Fatalf("exit code %d: %s\n%s", code, errs.String(), out.String())
	}
	text, err := os.ReadFile(figures)
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Start) != 2 || r.Start[0].First[0] <= 0 || r.Start[1].Second[0] <= 0 {
		t.Errorf("starts: %+v", r.Start)
	}
	if len(r.Idle) != 5 || r.Idle[0].Samples[0].Anonymous <= 0 || len(r.Idle[0].Guests) == 0 || len(r.Idle[1].Guests) != 0 {
		t.Errorf("idle: %+v", r.Idle)
	}
	if p := r.Idle[0].Parts; p == nil || p.Live <= 0 || p.Live >= p.Anonymous || r.Idle[4].Parts != nil {
		t.Errorf("parts of the memory: %+v, %+v", p, r.Idle[4].Parts)
	}
	if len(r.Filled) != 3 || r.Filled[2].Filled.Anonymous <= 0 {
		t.Errorf("many pods: %+v", r.Filled)
	}
	if len(r.Rollout) != 4 || len(r.Rollout[0].Pods) != 1 || r.Rollout[0].Pods[0] < r.Rollout[0].ReplicaSet[0] || r.Rollout[3].Bound[0] <= 0 {
		t.Errorf("rollouts: %+v", r.Rollout)
	}
	if len(r.Burst) != 3 || r.Burst[0].Bound <= 0 || r.Burst[0].PeakAnonymous <= 0 {
		t.Errorf("bursts: %+v", r.Burst)
	}
	if r.Plane == nil || r.Plane.SaveSeconds.Count == 0 || r.Wake[subjects[0]].Count == 0 {
		t.Errorf("plane: %+v, wakes: %+v", r.Plane, r.Wake)
	}
	if len(r.Bars) != 16 {
		t.Errorf("%d bars: %+v", len(r.Bars), r.Bars)
	}
	for _, b := range r.Bars {
		if b.Wasm == "" || b.Want == "" || math.IsNaN(b.Value) || b.Reached != (b.Value <= b.Most) {
			t.Errorf("%+v", b)
		}
	}
	if r.Figure == nil || len(r.Figure.Lines) != 3 || len(r.Figure.Lines[2].Points) == 0 || len(r.Figure.Wakes) == 0 {
		t.Errorf("figure: %+v", r.Figure)
	}
	if svg, err := os.ReadFile(picture); err != nil || !strings.Contains(string(svg), "polyline") {
		t.Errorf("%v: %s", err, svg)
	}
}

func TestPercentile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for p, want := range map[float64]float64{50: 3, 99: 5, 100: 5, 0: 1, 20: 1, 21: 2} {
		if got := percentile(values, p); got != want {
			t.Errorf("p%v of %v is %v, want %v", p, values, got, want)
		}
	}
	if got := percentile([]int64(nil), 50); got != 0 {
		t.Errorf("p50 of nothing is %v", got)
	}
}

func TestHistogram(t *testing.T) {
	h := Histogram{Count: 21, Sum: 90, Buckets: []Bucket{{1, 0}, {2, 10}, {4, 10}, {8, 20}}} // one is larger
	for q, want := range map[float64]float64{0.25: 1.525, 10.0 / 21: 2, 0.75: 6.3, 0.999: 8} {
		if got := h.quantile(q); math.Abs(got-want) > 1e-9 {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got := (Histogram{}).quantile(0.5); got != 0 {
		t.Errorf("quantile of nothing is %v", got)
	}
	before := Histogram{Count: 12, Sum: 30, Buckets: []Bucket{{1, 0}, {2, 10}, {4, 10}, {8, 11}}}
	later := h.since(before)
	if want := []Bucket{{1, 0}, {2, 0}, {4, 0}, {8, 9}}; later.Count != 9 || later.Sum != 60 || !slices.Equal(later.Buckets, want) {
		t.Errorf("since: %+v", later)
	}
	for _, sum := range []Histogram{later.plus(before), h.since(Histogram{}), (Histogram{}).plus(h)} {
		if sum.Count != h.Count || sum.Sum != h.Sum || !slices.Equal(sum.Buckets, h.Buckets) {
			t.Errorf("%+v, want %+v", sum, h)
		}
	}
}

func TestMedianMemory(t *testing.T) {
	got := medianMemory([]Memory{{1, 20, 300}, {2, 10, 100}, {3, 30, 200}})
	if want := (Memory{2, 20, 200}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestPartsWithoutMetrics(t *testing.T) {
	if _, err := newParts(1, nil); err == nil || !strings.Contains(err.Error(), "go_memory_classes_heap_objects_bytes") {
		t.Errorf("got %v", err)
	}
}

func TestCPUTime(t *testing.T) {
	// A name may look like the fields after it.
	got, err := cpuTime([]byte("42 (a) 1 (b)) S 1 2 3 0 -1 4 5 6 7 8 150 50 9 9 20 0 1 0 5"))
	if err != nil || got != 2*time.Second {
		t.Errorf("%v, %v; want 2 s", got, err)
	}
	for _, bad := range []string{"", "42 (a) S 1 2", "42 (a) S 1 2 3 0 -1 4 5 6 7 8 x 50"} {
		if got, err := cpuTime([]byte(bad)); err == nil {
			t.Errorf("%q gives %v", bad, got)
		}
	}
}

func TestWakesAreNotedWithReasons(t *testing.T) {
	at := func(n int) *time.Time { t := time.Unix(int64(n), 0); return &t }
	wake := func(n int, reason string) plane.Wake { return plane.Wake{At: *at(n), Reason: reason} }
	w := wakeWatch{guests: []Guest{{Status: plane.Status{Name: "a", Wakes: 3, LastWake: at(3), WrittenBytes: 100}}}}
	asked := 0
	for _, look := range []struct {
		now  plane.Status
		last []plane.Wake
	}{
		{plane.Status{Name: "a", Wakes: 3, LastWake: at(3), WrittenBytes: 100}, nil},
		// It woke again before it was asked for the reasons.
		{plane.Status{Name: "a", Wakes: 5, LastWake: at(5)}, []plane.Wake{wake(3, "start"), wake(4, "timer"), wake(5, "MODIFIED nodes n"), wake(6, "timer")}},
		// It is asked for more than the plane remembers.
		{plane.Status{Name: "a", Wakes: 9, LastWake: at(9), WrittenBytes: 150, State: plane.Asleep}, []plane.Wake{wake(8, "timer"), wake(9, "x")}},
	} {
		if err := w.note([]plane.Status{look.now}, func(string) ([]plane.Wake, error) { asked++; return look.last, nil }); err != nil {
			t.Fatal(err)
		}
	}
	g := w.guests[0]
	want := map[string]int{"timer": 2, "MODIFIED nodes n": 1, "x": 1, "not seen": 2}
	if got := countReasons(g.IdleWakes); !maps.Equal(got, want) || len(g.IdleWakes) != 6 || g.State != plane.Asleep || w.written != 50 || asked != 2 {
		t.Errorf("%v, want %v; %+v", got, want, w)
	}
	if err := w.note(nil, nil); err == nil {
		t.Error("no error for a controller that is gone")
	}
}

// TestFollowerGoesOn has a watch end before all has been seen.
func TestFollowerGoesOn(t *testing.T) {
	pod := func(uid string) *corev1.Pod { return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}} }
	opened := 0
	f, err := follow(t.Context(), "x", func(_ context.Context, list metav1.ListOptions) (watch.Interface, error) {
		if opened++; list.LabelSelector != "bench=x" {
			t.Errorf("watches %q", list.LabelSelector)
		}
		w := watch.NewFakeWithOptions(watch.FakeOptions{ChannelSize: 4})
		w.Add(pod("a"))
		if opened == 2 {
			w.Add(pod("skip"))
			w.Modify(pod("b"))
		}
		w.Stop()
		return w, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	at, err := f.await(t.Context(), 2, func(o metav1.Object) bool { return o.GetUID() != "skip" })
	if err != nil || at.IsZero() || opened != 2 {
		t.Errorf("%v, %v, %d watches", at, err, opened)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.await(ctx, 5, nil); err == nil {
		t.Error("no error although there are no five")
	}
}

func TestHousekeeping(t *testing.T) {
	for reason, want := range map[string]string{
		"timer": "", "ADDED nodes hollow": "", "ADDED pods default/web": "",
		"MODIFIED leases.coordination.k8s.io kube-node-lease/hollow": "heartbeat",
		"MODIFIED nodes hollow":     "heartbeat",
		"end of the watch of pods":  "renewal",
		"BOOKMARK deployments.apps": "bookmark",
	} {
		if got := housekeeping(reason); got != want {
			t.Errorf("%s: %q, want %q", reason, got, want)
		}
	}
}

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		most float64
		n    int
		want []float64
	}{
		{190, 6, []float64{0, 50, 100, 150, 200}},
		{10, 10, []float64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}},
		{0.3, 4, []float64{0, 0.1, 0.2, 0.3}},
		{61, 6, []float64{0, 20, 40, 60, 80}},
		{0, 6, []float64{0, 1}},
	} {
		got := ticks(c.most, c.n)
		if !slices.EqualFunc(got, c.want, func(a, b float64) bool { return math.Abs(a-b) < 1e-9 }) {
			t.Errorf("%v in %d: %v, want %v", c.most, c.n, got, c.want)
		}
	}
}

// TestFigure looks at a picture as a program can: it is well-formed, all that was measured is in it, and nothing lies
// outside.
func TestFigure(t *testing.T) {
	f := &Figure{Seconds: 600, Wakes: []float64{0, 120, 600}, Happens: []Happens{{120, "1 < 2"}}}
	for k, m := range []mode{bare, native, wasm} {
		l := Line{Mode: m.name}
		for at := range 601 {
			l.Points = append(l.Points, Point{float64(at), int64(100+k+at%90) << 20})
		}
		f.Lines = append(f.Lines, l)
	}
	decoder := xml.NewDecoder(bytes.NewReader(f.svg()))
	seen := map[string]int{}
	var text strings.Builder
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.CharData:
			text.Write(e)
		case xml.StartElement:
			seen[e.Name.Local]++
			for _, a := range e.Attr {
				most := map[string]float64{"x": svgWidth, "x1": svgWidth, "x2": svgWidth, "y": svgHeight, "y1": svgHeight, "y2": svgHeight}[a.Name.Local]
				if most == 0 {
					continue
				}
				if v, err := strconv.ParseFloat(a.Value, 64); err != nil || v < 0 || v > most {
					t.Errorf("%s: %s=%s", e.Name.Local, a.Name.Local, a.Value)
				}
			}
		}
	}
	if seen["polyline"] != 3 || seen["line"] < len(f.Wakes)+len(f.Happens) {
		t.Errorf("elements: %v", seen)
	}
	for _, want := range []string{"MiB", "minutes", "3 wakes", "1 < 2", "asleep in Wasm", "native", "no controllers", "200"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in the picture:\n%s", want, text.String())
		}
	}
}
