package e2e

import (
	"context"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
)

// TestRestart: when the process ends, in order or by kill -9, the containers run
// on and the Service answers; when it is back, it takes them over untouched and
// goes on with what there is to do.
func TestRestart(t *testing.T) {
	w := theNode(t)
	ns := w.namespace(t)
	w.kubectl(t, ns, "create", "deployment", "web", "--image="+web1, "--replicas=2")
	w.kubectl(t, ns, "expose", "deployment", "web", "--port=80", "--target-port=8080")
	w.settled(t, ns)
	service, err := w.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + service.Spec.ClusterIP
	cluster.Eventually(t, "the service", func(ctx context.Context) error {
		_, err := w.fetch(ctx, url)
		return err
	})
	other := w.namespace(t, "other")
	w.sleeper(t, other, "sleeper")
	before := w.containers(t, ns, other)

	for _, end := range []struct {
		how  string
		stop func() error
	}{{"SIGTERM", w.StopServer}, {"kill -9", w.Kill9Server}} {
		t.Run(end.how, func(t *testing.T) {
			if err := end.stop(); err != nil {
				t.Fatal(err)
			}
			if answer, err := w.fetch(t.Context(), url); err != nil {
				t.Errorf("the service does not answer while the server is away: %q, %v", answer, err)
			}
			w.restart(t)
			// What the kubelet has found out anew overwrites what was known.
			w.kubectl(t, ns, "scale", "deployment/web", "--replicas=3")
			w.settled(t, ns)
			after := w.containers(t, ns, other)
			for name, was := range before {
				if is := after[name]; is != was {
					t.Errorf("pod %s was %+v and is %+v", name, was, is)
				}
			}
			if got := w.kubectl(t, other, "exec", "sleeper", "--", "echo", "awake"); got != "awake\n" {
				t.Errorf("exec in a container of before gives %q", got)
			}
			if got := w.kubectl(t, other, "logs", "sleeper"); got != "asleep\n" {
				t.Errorf("the log of a container of before is %q", got)
			}
			// The youngest pod is the first to go.
			w.kubectl(t, ns, "scale", "deployment/web", "--replicas=2")
			w.settled(t, ns)
		})
	}
}

// container is what must not change while a container runs.
type container struct {
	id, started string
	restarts    int32
}

func (w *world) containers(t *testing.T, namespaces ...string) map[string]container {
	t.Helper()
	all := map[string]container{}
	for _, ns := range namespaces {
		for _, p := range w.pods(t, ns) {
			s := p.Status.ContainerStatuses[0]
			if s.State.Running == nil {
				t.Errorf("pod %s does not run: %+v", p.Name, s.State)
				continue
			}
			all[p.Name] = container{s.ContainerID, s.State.Running.StartedAt.String(), s.RestartCount}
		}
	}
	return all
}
