package crash

import (
	"testing"

	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

// TestNativeAndBack: with the controllers in the process instead of in Wasm a
// cluster behaves the same, kill -9 included, and one data directory can change
// between the two: no controller acts on a snapshot from before the change.
func TestNativeAndBack(t *testing.T) {
	choose := random(t)
	const native = "controller-mode: native"
	s := start(t, native)
	hollow.Start(t, s.Cluster, hollow.Config{})
	apply(t.Context(), t, s.Cluster, "modes", 4, 3)
	clients := newWriters(s.Cluster, "modes", 4, 3, choose)
	killed(t, s, clients, choose, 3)
	s.settled("modes")
	all, err := s.Controllers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.State != "native" {
			t.Errorf("%s is %s", c.Name, c.State)
		}
	}

	apply(t.Context(), t, s.Cluster, "changed", 2, 3)
	for _, mode := range []string{"controller-mode: wasm", native, "controller-mode: wasm"} {
		s.down()
		s.configure(mode, "wasm-idle-timeout: 500ms")
		s.up()
		exercise(t, s, choose, "changed")
	}
	s.rests("changed")
	s.settled("modes")
	clients.verify(t)
}
