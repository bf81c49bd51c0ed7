package plane

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestLastMinute compares with a list of all times.
func TestLastMinute(t *testing.T) {
	var m lastMinute
	var all []time.Duration
	now := 90 * time.Hour
	for range 2000 {
		now += rand.N(10 * time.Second)
		if rand.N(50) == 0 {
			now += rand.N(3 * time.Minute)
		}
		for range rand.N(3) {
			m.add(now)
			all = append(all, now)
		}
		want := 0
		for _, at := range all {
			if now/time.Second-at/time.Second < 60 {
				want++
			}
		}
		if got := m.count(now); got != want {
			t.Fatalf("%d at %s, want %d", got, now, want)
		}
	}
}
