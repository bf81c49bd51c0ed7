package crash

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"testing"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

// fewWatches is how many watches in the API server are left where only a node's heartbeats happen: of Leases,
// and for a minute in five of Nodes, in two forms at most.
const fewWatches = 4

var watchesMetric = regexp.MustCompile(`(?m)^dormouse_wasm_watches (\d+)$`)

// TestWatchesRest: where nothing happens the controllers keep no watch in the API server, and when something does
// they miss nothing, also after the server has been killed.
func TestWatchesRest(t *testing.T) {
	choose := random(t)
	s := start(t, "wasm-idle-timeout: 500ms")
	hollow.Start(t, s.Cluster, hollow.Config{})
	apply(t.Context(), t, s.Cluster, "quiet", 2, 3)
	s.rests("quiet")
	for range 2 {
		cluster.Eventually(t, "the watches do not rest", func(ctx context.Context) error {
			text, err := s.metrics(ctx)
			if err != nil {
				return err
			}
			m := watchesMetric.FindSubmatch(text)
			if m == nil {
				return fmt.Errorf("no metric %s", watchesMetric)
			}
			n, err := strconv.Atoi(string(m[1]))
			if err == nil && n > fewWatches {
				err = fmt.Errorf("%d are open", n)
			}
			return err
		})
		exercise(t, s, choose, "quiet")
		s.rests("quiet")
	}
	if err := s.Kill9Server(); err != nil {
		t.Fatal(err)
	}
	s.up()
	exercise(t, s, choose, "quiet")
	s.rests("quiet")
}
