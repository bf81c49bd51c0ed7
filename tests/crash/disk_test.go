package crash

import (
	"context"
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
	"github.com/dormouse-k8s/dormouse/tests/hollow"
	"github.com/dormouse-k8s/dormouse/tests/node"
)

// TestFullDisk: the disk that has the database and the snapshots becomes full. Who wants to change something is told;
// what there is can still be read, and once there is room again everything goes on, in the same process.
func TestFullDisk(t *testing.T) {
	const (
		attempts = 500
		stays    = 10 * time.Second
	)
	choose := random(t)
	s := start(t, "wasm-idle-timeout: 500ms")
	s.down()
	dir := path.Join(node.DataDir, "server")
	do := func(script string) error {
		_, err := s.Exec(t.Context(), "sh", "-c", "cd "+dir+" && "+script)
		return err
	}
	if err := do("mount -t tmpfs -o size=64m,mode=700 tmpfs ."); err != nil {
		t.Fatal(err)
	}
	s.up() // with nothing that was
	s.connect()
	hollow.Start(t, s.Cluster, hollow.Config{})
	apply(t.Context(), t, s.Cluster, "full", 2, 3)
	s.settled("full")
	pid, err := s.ServerPID()
	if err != nil {
		t.Fatal(err)
	}

	logged := s.logSize()
	if err := do("cat /dev/zero >ballast"); err == nil || !strings.Contains(err.Error(), "No space left on device") {
		t.Fatalf("filling the disk: %v", err)
	}
	// Room that the database has itself, as in its write-ahead log, is used up first.
	kept := 0
	for _, size := range []int{200 << 10, 10 << 10, 1} {
		var refused error
		for n := 0; n < attempts && refused == nil; n++ {
			c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("fills-%d-%d", size, n)}, Data: map[string]string{"x": strings.Repeat("x", size)}}
			if _, refused = s.CoreV1().ConfigMaps("full").Create(t.Context(), c, metav1.CreateOptions{}); refused == nil {
				kept++
			}
		}
		if refused == nil || !strings.Contains(refused.Error(), "disk is full") {
			t.Fatalf("of objects of %d bytes %d are accepted on a full disk, then: %v", size, attempts, refused)
		}
	}
	l, err := s.CoreV1().ConfigMaps("full").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(l.Items) - 1; n != kept { // one is the root certificate
		t.Errorf("%d objects were accepted, %d are there", kept, n)
	}
	if _, err := roll(t.Context(), s.Cluster, "full", "app-0", 5, "on-a-full-disk"); err == nil {
		t.Error("a change was accepted on a full disk")
	}
	for end := time.Now().Add(stays); time.Now().Before(end); time.Sleep(time.Second) {
		_, err := s.AppsV1().Deployments("full").Get(t.Context(), "app-0", metav1.GetOptions{})
		if err != nil {
			t.Fatalf("reading while the disk is full: %v", err)
		}
	}

	s.says(logged, "the database cannot be written, changes are refused: .*disk is full")
	for _, line := range s.logSince(logged) {
		if strings.Contains(line, "xxxxx") {
			t.Errorf("an object is in the log: %.200s", line)
		}
	}

	if err := do("rm ballast"); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, "the database takes changes again", func(ctx context.Context) error {
		return s.CoreV1().ConfigMaps("full").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "metadata.name!=kube-root-ca.crt"})
	})
	s.says(logged, "the database can be written again")
	exercise(t, s, choose, "full")
	if now, err := s.ServerPID(); err != nil || now != pid {
		t.Errorf("the server was process %d and is %d: %v", pid, now, err)
	}
	s.down()
	s.up()
	exercise(t, s, choose, "full")
}
