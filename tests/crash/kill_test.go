package crash

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

const (
	// killWithin is the time after the server is ready in which it is killed.
	killWithin = 3 * time.Second
	// killStarting is the time after its launch in which a server is killed that
	// need not have become ready. It takes some seconds for that.
	killStarting = 3 * time.Second
)

// TestKill9DuringRollouts: a server that is killed again and again, at random
// moments of rollouts and of its own start, has lost nothing that it had
// acknowledged, and in the end there are exactly the objects that were asked for.
// Controllers are released all the time, so that some come back from snapshots that
// are older than what the cluster has come to.
func TestKill9DuringRollouts(t *testing.T) {
	choose := random(t)
	s := start(t, "wasm-idle-timeout: 50ms", "wasm-memory-budget: 16MiB")
	hollow.Start(t, s.Cluster, hollow.Config{})
	apply(t.Context(), t, s.Cluster, "crash", 4, 3)
	clients := newWriters(s.Cluster, "crash", 4, 3, choose)
	resumed := killed(t, s, clients, choose, *kills)
	t.Logf("%d kills; %d times a controller came back from its snapshot", *kills, resumed)
	if resumed == 0 {
		t.Error("no controller came back from its snapshot")
	}
	s.rests("crash")
}

// killed kills the server and starts it again a number of times, while clients write.
// It returns how often a controller came back from its snapshot.
func killed(t *testing.T, s *server, clients writers, choose *rand.Rand, times int) (resumed int) {
	t.Helper()
	for k := range times {
		stop := clients.start(t.Context())
		moment := time.NewTimer(time.Duration(choose.Int64N(int64(killWithin))))
		select {
		case <-moment.C:
		case <-s.ServerDone():
			t.Errorf("the server ended by itself before kill %d", k+1)
		}
		if err := s.Kill9Server(); err != nil {
			t.Fatal(err)
		}
		// Every third time it is killed again on its way up.
		if k%3 == 2 {
			if err := s.LaunchServer(); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Duration(choose.Int64N(int64(killStarting))))
			if err := s.Kill9Server(); err != nil {
				t.Fatal(err)
			}
		}
		s.up()
		resumed += s.resumed()
		stop()
		clients.verify(t)
	}
	return resumed
}

// resumed is how many guests have not run since the server started, but sleep.
func (s *server) resumed() (n int) {
	s.t.Helper()
	all, err := s.Controllers(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range all {
		if c.State == "asleep" && c.Wakes == 0 {
			n++
		}
	}
	return n
}

// TestEvictionsDuringRollouts: controllers that are released and woken at random
// moments, however much they have to do, do the same as if left alone.
func TestEvictionsDuringRollouts(t *testing.T) {
	choose := random(t)
	// Every run ends on disk, and there is never room for all.
	s := start(t, "wasm-idle-timeout: 1ms", "wasm-memory-budget: 8MiB")
	hollow.Start(t, s.Cluster, hollow.Config{})
	// More would leave the controllers no moment to be evicted in.
	apply(t.Context(), t, s.Cluster, "evict", 1, 3)
	clients := newWriters(s.Cluster, "evict", 1, 3, choose)
	stop := clients.start(t.Context())
	churn(t, s, choose)
	stop()
	clients.verify(t)
	s.rests("evict")
}
