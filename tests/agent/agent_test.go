// Package agent tests the node side of the whole program: real containers, on a
// node in namespaces of its own. It needs root, bin/dormouse and build/images,
// which make builds.
package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/dormouse-k8s/dormouse/tests/node"
)

const (
	binary = "../../bin/dormouse"
	images = "../../build/images"

	// patience is how long anything may take on a busy machine.
	patience = 2 * time.Minute
)

// start starts a node whose image directory also has an archive that is none.
func start(t *testing.T) *node.Node {
	t.Helper()
	broken := filepath.Join(t.TempDir(), "broken.tar.gz")
	if err := os.WriteFile(broken, []byte("\x1f\x8bthis is not gzip"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n, err := node.Start(ctx, node.Config{Binary: binary, Images: []string{
		broken, filepath.Join(images, "web.tar.zst"), filepath.Join(images, "busybox.tar"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(n.LogFile())
			t.Logf("the server's log:\n%s", log)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// kubectl runs kubectl, which must succeed.
func kubectl(t *testing.T, n *node.Node, args ...string) string {
	t.Helper()
	out, err := n.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually repeats check until it succeeds.
func eventually(t *testing.T, what string, check func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// prints waits until kubectl succeeds and its output has the text.
func prints(t *testing.T, n *node.Node, text string, args ...string) {
	t.Helper()
	eventually(t, "kubectl "+strings.Join(args, " "), func(ctx context.Context) error {
		out, err := n.Kubectl(ctx, args...)
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("no %q in %q", text, out)
		}
		return err
	})
}

// serves waits until a request from inside the node is answered by a web pod.
func serves(t *testing.T, n *node.Node, url string) {
	t.Helper()
	eventually(t, url, func(ctx context.Context) error {
		out, err := n.Exec(ctx, "busybox", "wget", "-q", "-O", "-", url)
		if err == nil && !strings.HasPrefix(out, "web-") {
			err = fmt.Errorf("answered %q", out)
		}
		return err
	})
}

// containers returns the pods' container IDs, by pod name.
func containers(t *testing.T, n *node.Node) map[string]string {
	t.Helper()
	var pods struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				ContainerStatuses []struct{ ContainerID string }
			}
		}
	}
	if err := json.Unmarshal([]byte(kubectl(t, n, "get", "pods", "-o", "json")), &pods); err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{}
	for _, p := range pods.Items {
		for _, c := range p.Status.ContainerStatuses {
			ids[p.Metadata.Name] = c.ContainerID
		}
	}
	return ids
}

func TestNode(t *testing.T) {
	n := start(t)
	kubectl(t, n, "create", "deployment", "web", "--image=docker.io/dormouse/web:v1", "--replicas=3")
	kubectl(t, n, "expose", "deployment", "web", "--port=80", "--target-port=8080")
	kubectl(t, n, "run", "box", "--image=docker.io/dormouse/busybox:1", "--restart=Never", "--", "sleep", "100000")
	prints(t, n, "3/3", "get", "deployment", "web")
	prints(t, n, "Running", "get", "pod", "box")

	address := strings.TrimSpace(kubectl(t, n, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	serves(t, n, "http://"+address)
	prints(t, n, "web-", "exec", "box", "--", "wget", "-q", "-O", "-", "http://"+address)
	prints(t, n, "listening on :8080", "logs", "deployment/web")

	t.Run("port-forward", func(t *testing.T) {
		forward, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := n.Kubectl(forward, "port-forward", "deployment/web", "18080:8080")
			done <- err
		}()
		serves(t, n, "http://127.0.0.1:18080")
		stop()
		if err := <-done; err == nil {
			t.Error("it ended by itself")
		}
	})

	t.Run("broken archive", func(t *testing.T) {
		log, err := os.ReadFile(n.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "broken.tar.gz") {
				lines = append(lines, line)
			}
		}
		if len(lines) != 1 || !strings.Contains(lines[0], "gzip") {
			t.Errorf("want one line with the file's name and the reason, got %q", lines)
		}
	})

	t.Run("archive that appears", func(t *testing.T) {
		b, err := os.ReadFile(filepath.Join(images, "web-v2.tar.zst"))
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(n.Dir, "lib", "dormouse", "agent", "images")
		if err := os.WriteFile(filepath.Join(dir, "later.tar.zst"), b, 0o644); err != nil {
			t.Fatal(err)
		}
		kubectl(t, n, "run", "later", "--image=docker.io/dormouse/web:v2", "--image-pull-policy=IfNotPresent")
		prints(t, n, "Running", "get", "pod", "later")
		kubectl(t, n, "delete", "pod", "later", "--grace-period=1")
	})

	before := containers(t, n)
	for _, c := range []struct {
		name string
		stop func() error
	}{{"SIGTERM", n.StopServer}, {"SIGKILL", n.Kill9Server}} {
		t.Run("pods survive "+c.name, func(t *testing.T) {
			if err := c.stop(); err != nil {
				t.Fatal(err)
			}
			serves(t, n, "http://"+address) // nobody is there to restart anything
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := n.StartServer(ctx); err != nil {
				t.Fatal(err)
			}
			prints(t, n, "uid=0", "exec", "box", "--", "id")
			prints(t, n, "3/3", "get", "deployment", "web")
			if after := containers(t, n); !reflect.DeepEqual(after, before) {
				t.Errorf("containers were %v, are %v", before, after)
			}
			serves(t, n, "http://"+address)
		})
	}

	// The shims taken over still work: a pod ends, its container is replaced.
	kubectl(t, n, "delete", "pod", "box", "--grace-period=1")
	kubectl(t, n, "delete", "pods", "-l", "app=web", "--grace-period=1")
	prints(t, n, "3/3", "get", "deployment", "web")
	for name := range containers(t, n) {
		if _, old := before[name]; old {
			t.Errorf("pod %s is still there", name)
		}
	}
}
