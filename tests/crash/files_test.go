package crash

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
	"github.com/dormouse-k8s/dormouse/tests/hollow"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

// spoiled is something that happens to the snapshots while no server runs.
type spoiled struct {
	name  string
	spoil func(t *testing.T, file string)
	// says is a line that the server logs then. Empty: it need not say anything.
	says string
}

// TestSpoiledSnapshots: whatever becomes of the file with the sleeping
// controllers, the server starts, says in a line what it does not use, and the
// controllers do what they would have done.
func TestSpoiledSnapshots(t *testing.T) {
	choose := random(t)
	other := start(t)
	apply(t.Context(), t, other.Cluster, "files", 2, 3)
	other.down()
	foreign := read(t, other.snapshots())

	s := start(t, "wasm-idle-timeout: 500ms")
	hollow.Start(t, s.Cluster, hollow.Config{})
	apply(t.Context(), t, s.Cluster, "files", 2, 3)
	s.settled("files")
	s.down()
	older := read(t, s.snapshots())
	s.up()
	exercise(t, s, choose, "files")
	s.resumes()

	const allCold = `snapshots.*every guest starts cold`
	for _, c := range []spoiled{
		{"a bit of each page", func(t *testing.T, file string) {
			rewrite(t, file, func(b []byte) []byte {
				for at := 0; at < len(b); at += os.Getpagesize() {
					flip(b[at:min(at+os.Getpagesize(), len(b))], choose)
				}
				return b
			})
		}, allCold},
		// This and the next may hit what is not in use.
		{"one bit", func(t *testing.T, file string) {
			rewrite(t, file, func(b []byte) []byte { flip(b, choose); return b })
		}, ""},
		{"cut off", func(t *testing.T, file string) {
			rewrite(t, file, func(b []byte) []byte { return b[:choose.IntN(len(b)-1)+1] })
		}, ""},
		{"cut short", func(t *testing.T, file string) {
			rewrite(t, file, func(b []byte) []byte { return b[:3*os.Getpagesize()] })
		}, allCold},
		{"of another cluster", func(t *testing.T, file string) {
			rewrite(t, file, func([]byte) []byte { return foreign })
		}, `snapshots are of another datastore; every guest starts cold`},
		{"an older one", func(t *testing.T, file string) {
			rewrite(t, file, func([]byte) []byte { return older })
		}, `snapshot discarded, starting cold`},
		{"removed", func(t *testing.T, file string) { remove(t, file) }, ""},
		{"removed with all beside it", func(t *testing.T, file string) { remove(t, filepath.Dir(file)) }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.during(t, func() {
				s.down()
				c.spoil(t, s.snapshots())
				logged := s.logSize()
				s.up()
				s.says(logged, c.says)
				exercise(t, s, choose, "files")
			})
		})
		if t.Failed() {
			return
		}
	}
	s.rests("files")
}

// TestRestoredDatastore: a database from an older copy is the truth again, and
// no controller acts on what it has seen since the copy was made.
func TestRestoredDatastore(t *testing.T) {
	choose := random(t)
	s := start(t, "wasm-idle-timeout: 500ms")
	hollow.Start(t, s.Cluster, hollow.Config{})
	apply(t.Context(), t, s.Cluster, "restore", 2, 3)
	s.rests("restore")

	// The first is made and restored within one run of the server, which
	// snapshots and database have in common. Nothing but leases is written
	// meanwhile, so that the copy is sound.
	t.Run("copy of a running server", func(t *testing.T) {
		s.during(t, func() {
			copied := s.database()
			exercise(t, s, choose, "restore")
			if _, err := roll(t.Context(), s.Cluster, "restore", "app-0", 6, "lost"); err != nil {
				t.Fatal(err)
			}
			s.rests("restore")
			s.restore(copied)
			s.restored("restore")
			exercise(t, s, choose, "restore")
			s.rests("restore")
		})
	})
	t.Run("copy of a stopped server", func(t *testing.T) {
		s.during(t, func() {
			s.down()
			copied := s.database()
			s.up()
			exercise(t, s, choose, "restore")
			s.restore(copied)
			s.restored("restore")
			exercise(t, s, choose, "restore")
		})
	})
}

// database returns the files of the database, by name.
func (s *server) database() map[string][]byte {
	s.t.Helper()
	files := map[string][]byte{}
	// In this order a commit in between is missing rather than half there.
	for _, name := range []string{"state.db", "state.db-wal"} {
		b, err := os.ReadFile(s.file("db", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			s.t.Fatal(err)
		}
		files[name] = b
	}
	return files
}

// restore stops the server, puts the files of the database back and starts it again.
func (s *server) restore(files map[string][]byte) {
	s.t.Helper()
	s.down()
	for _, name := range []string{"state.db", "state.db-wal", "state.db-shm"} {
		remove(s.t, s.file("db", name))
		if b, ok := files[name]; ok {
			if err := os.WriteFile(s.file("db", name), b, 0o600); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	logged := s.logSize()
	s.up()
	s.says(logged, `snapshot discarded, starting cold`)
}

// relisted checks that every guest which watches one of some resources started cold: none goes on from a snapshot.
func (s *server) relisted(resources ...string) {
	s.t.Helper()
	for _, d := range controllers.All() {
		watches := slices.ContainsFunc(resources, func(r string) bool { return slices.Contains(d.Resources, r) })
		if !watches || !slices.Contains(cluster.Guests, d.Name) {
			continue
		}
		started := regexp.MustCompile(`(?m)^dormouse_wasm_wakes_total\{controller="` + d.Name + `",reason="start"\} [1-9]`)
		cluster.Eventually(s.t, d.Name+" starts cold", func(ctx context.Context) error {
			text, err := s.metrics(ctx)
			if err == nil && !started.Match(text) {
				err = fmt.Errorf("no metric %s", started)
			}
			return err
		})
	}
}

func (s *server) metrics(ctx context.Context) ([]byte, error) {
	return s.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
}

// restored waits for the restored state, in which objects that came later are
// gone and others are there again.
func (s *server) restored(namespace string) {
	s.t.Helper()
	s.relisted("deployments.apps", "replicasets.apps", "pods")
	s.settled(namespace)
	d, err := s.AppsV1().Deployments(namespace).Get(s.t.Context(), "app-0", metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	if wanted(d).version == "lost" {
		s.t.Error("the deployment is not the one of the restored database")
	}
}

// resumes restarts the server and checks that guests come back from their
// snapshots: all but those for which something changes as the server starts.
func (s *server) resumes() {
	s.t.Helper()
	s.asleep()
	s.down()
	logged := s.logSize()
	s.up()
	all, err := s.Controllers(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	resumed := 0
	for _, c := range all {
		if c.State != "native" && c.LastWakeReason != "start" {
			resumed++
		}
	}
	if resumed == 0 {
		s.t.Error("every guest started cold, though all slept when the server was stopped")
	}
	for _, line := range s.logSince(logged) {
		if regexp.MustCompile(`snapshots? .*(discarded|damaged)|starts cold`).MatchString(line) {
			s.t.Error(line)
		}
	}
}

// says waits until the server has logged a line since the log had a size.
func (s *server) says(logged int64, pattern string) {
	s.t.Helper()
	line := regexp.MustCompile(pattern)
	cluster.Eventually(s.t, "the log", func(context.Context) error {
		lines := s.logSince(logged)
		if slices.ContainsFunc(lines, line.MatchString) {
			return nil
		}
		return fmt.Errorf("none of %d lines matches %q", len(lines), pattern)
	})
}

func (s *server) snapshots() string { return s.file("wasm", "snapshots.db") }

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func rewrite(t *testing.T, file string, change func([]byte) []byte) {
	t.Helper()
	if err := os.WriteFile(file, change(read(t, file)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
}

// flip turns over one bit of b.
func flip(b []byte, choose *rand.Rand) {
	b[choose.IntN(len(b))] ^= 1 << choose.IntN(8)
}
