// Package crash ends servers at bad moments and spoils their files, and looks
// whether the cluster comes out right. The servers run without an agent, each in
// namespaces of its own; a node made of air (see tests/hollow) runs the pods.
package crash

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
	"github.com/dormouse-k8s/dormouse/tests/node"
)

var (
	binary = flag.String("binary", "../../bin/dormouse", "the dormouse executable")
	seed   = flag.Int64("seed", time.Now().UnixNano(), "what the random choices follow from; a failed test says which it was")
	kills  = flag.Int("kills", 20, "how often TestKill9DuringRollouts kills the server")
)

// startPatience bounds the start of a server. It starts in seconds; the rest is
// for machines that have much else to do.
const startPatience = 3 * time.Minute

// random returns the random choices of a test, and says what to do to have them again.
func random(t *testing.T) *rand.Rand {
	t.Logf("-seed %d", *seed)
	return rand.New(rand.NewPCG(uint64(*seed), 0))
}

// server is a control plane without a node.
type server struct {
	*node.Node
	*cluster.Cluster
	t       *testing.T
	config  string   // its configuration file
	passing []string // namespaces that were deleted
}

// start starts a server whose configuration file has the given lines.
func start(t *testing.T, config ...string) *server {
	t.Helper()
	s := &server{t: t, config: filepath.Join(t.TempDir(), "config.yaml")}
	s.configure(config...)
	ctx, cancel := context.WithTimeout(t.Context(), startPatience)
	defer cancel()
	var err error
	if s.Node, err = node.Start(ctx, node.Config{Binary: *binary, Args: []string{"--config", s.config}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the controllers: %s\nthe end of the server's log:\n%s", s.Describe(context.Background()), s.logTail())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	s.connect()
	return s
}

// configure replaces the configuration file. It is read at the next start.
func (s *server) configure(lines ...string) {
	s.t.Helper()
	text := strings.Join(append([]string{"disable-agent: true"}, lines...), "\n") + "\n"
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// up starts the server and waits until it is ready.
func (s *server) up() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), startPatience)
	defer cancel()
	if err := s.StartServer(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// down stops the server with SIGTERM.
func (s *server) down() {
	s.t.Helper()
	if err := s.StopServer(); err != nil {
		s.t.Fatal(err)
	}
}

// connect reads the kubeconfig that the server has written.
func (s *server) connect() {
	s.t.Helper()
	kubeconfig, err := s.Exec(s.t.Context(), "cat", node.Kubeconfig)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.Cluster, err = cluster.Connect([]byte(kubeconfig), net.JoinHostPort(s.IP.String(), "6443")); err != nil {
		s.t.Fatal(err)
	}
}

// file names a file of the server's data directory.
func (s *server) file(elem ...string) string {
	return filepath.Join(append([]string{s.Dir, "lib", "dormouse", "server"}, elem...)...)
}

// logSize is the length of the log so far, for logSince.
func (s *server) logSize() int64 {
	s.t.Helper()
	st, err := os.Stat(s.LogFile())
	if err != nil {
		s.t.Fatal(err)
	}
	return st.Size()
}

// logSince returns the lines that the server has logged after the log had a size.
func (s *server) logSince(size int64) []string {
	s.t.Helper()
	b, err := os.ReadFile(s.LogFile())
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b[size:])), "\n")
}

func (s *server) logTail() string {
	const most = 16 << 10
	b, err := os.ReadFile(s.LogFile())
	if err != nil {
		return err.Error()
	}
	if len(b) > most {
		b = b[len(b)-most:]
		b = b[bytes.IndexByte(b, '\n')+1:]
	}
	return string(b)
}

// settled waits until a namespace is as its objects want it.
func (s *server) settled(namespace string) {
	s.t.Helper()
	cluster.Eventually(s.t, "the namespace does not settle", func(ctx context.Context) error {
		return s.Settled(ctx, namespace)
	})
}

// rests waits until a namespace is settled, deleted ones are gone and, in Wasm
// mode, every controller sleeps; then nobody has anything left to do, and it must
// still be right.
func (s *server) rests(namespace string) {
	s.t.Helper()
	s.settled(namespace)
	for _, name := range s.passing {
		cluster.Eventually(s.t, "deleted namespace "+name, func(ctx context.Context) error {
			left, err := s.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
			if err == nil {
				return fmt.Errorf("it is still there: %+v", left.Status)
			}
			if apierrors.IsNotFound(err) {
				return nil
			}
			return err
		})
	}
	s.passing = nil
	s.asleep()
	if err := s.Settled(s.t.Context(), namespace); err != nil {
		s.t.Errorf("was settled, and is not after all controllers have gone to sleep: %v", err)
	}
	s.healthy()
}

// asleep waits until every guest sleeps. Those that have nothing to do are told to: left alone, one that polls stays in
// memory for a minute and a half after its start.
func (s *server) asleep() {
	s.t.Helper()
	cluster.Eventually(s.t, "the controllers do not go to sleep", func(ctx context.Context) error {
		all, err := s.Controllers(ctx)
		if err != nil {
			return err
		}
		for _, c := range all {
			if c.State != "warm" {
				continue
			}
			if _, err := s.Tell(ctx, c.Name, "evict"); err != nil {
				return err
			}
		}
		return s.Asleep(ctx)
	})
}

// during makes t the test that the server's methods report to while f runs.
func (s *server) during(t *testing.T, f func()) {
	outer := s.t
	s.t = t
	defer func() { s.t = outer }()
	f()
}

// healthy fails the test if a guest was ended since the server started.
func (s *server) healthy() {
	s.t.Helper()
	all, err := s.Controllers(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range all {
		if c.Restarts != 0 || c.State == "failed" {
			s.t.Errorf("%s was restarted %d times: %s", c.Name, c.Restarts, c.LastError)
		}
	}
}
