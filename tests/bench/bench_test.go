package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
)

// TestEverythingOnce runs all phases as shortly as possible.
func TestEverythingOnce(t *testing.T) {
	dir := t.TempDir()
	figures := filepath.Join(dir, "bench.json")
	var out, errs strings.Builder
	code := doMain([]string{
		"-dormouse", "../../bin/dormouse", "-dir", filepath.Join(dir, "work"), "-json", figures,
		"-starts", "1", "-settle", "1s", "-idle", "1s", "-samples", "1", "-burst", "3",
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
	if len(r.Idle) != 3 || r.Idle[0].Memory.Anonymous <= 0 || len(r.Idle[0].Guests) == 0 || len(r.Idle[1].Guests) != 0 {
		t.Errorf("idle: %+v", r.Idle)
	}
	if len(r.Rollout) != 3 || len(r.Rollout[0].Pods) != 1 || r.Rollout[0].Pods[0] < r.Rollout[0].ReplicaSet[0] {
		t.Errorf("rollouts: %+v", r.Rollout)
	}
	if len(r.Burst) != 2 || r.Burst[0].Pods <= 0 || r.Burst[0].PeakAnonymous <= 0 {
		t.Errorf("bursts: %+v", r.Burst)
	}
	if r.Plane == nil || r.Plane.WakeSeconds.Count == 0 || r.Plane.SaveSeconds.Count == 0 {
		t.Errorf("plane: %+v", r.Plane)
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

func TestQuantile(t *testing.T) {
	bucket := func(bound float64, n uint64) *dto.Bucket {
		return &dto.Bucket{UpperBound: &bound, CumulativeCount: &n}
	}
	buckets := []*dto.Bucket{bucket(1, 0), bucket(2, 10), bucket(4, 10), bucket(8, 20), bucket(math.Inf(1), 21)}
	for q, want := range map[float64]float64{0.25: 1.525, 10.0 / 21: 2, 0.75: 6.3, 0.999: 8} {
		if got := quantile(buckets, 21, q); math.Abs(got-want) > 1e-9 {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got := quantile(nil, 0, 0.5); got != 0 {
		t.Errorf("quantile of nothing is %v", got)
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

func TestWakesAreCountedByReason(t *testing.T) {
	w := wakeWatch{guests: []Guest{{Status: plane.Status{Name: "a", Wakes: 3}, IdleReasons: map[string]int{}}}}
	for _, now := range []plane.Status{
		{Name: "a", Wakes: 3, LastWakeReason: "start"},
		{Name: "a", Wakes: 4, LastWakeReason: "timer"},
		{Name: "a", Wakes: 7, LastWakeReason: "timer", State: plane.Asleep},
	} {
		if err := w.note([]plane.Status{now}); err != nil {
			t.Fatal(err)
		}
	}
	g := w.guests[0]
	if g.IdleWakes != 4 || g.IdleReasons["timer"] != 2 || g.IdleReasons["not seen"] != 2 || g.State != plane.Asleep {
		t.Errorf("%+v", g)
	}
	if err := w.note(nil); err == nil {
		t.Error("no error for a controller that is gone")
	}
}
