package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
)

// image is what the deployments' pods are made of. Nobody looks for it.
const image = "docker.io/dormouse/web:v1"

// deployment returns a Deployment of that name with as many replicas.
func deployment(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	history := int32(3)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas:             &replicas,
			RevisionHistoryLimit: &history,
			Selector:             &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: image}}},
			},
		},
	}
}

// service returns a Service for the Deployment of that name.
func service(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name},
			Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
}

// apply makes a namespace with deployments and their services, app-0 and on.
func apply(ctx context.Context, t *testing.T, c *cluster.Cluster, namespace string, deployments int, replicas int32) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	if _, err := c.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for i := range deployments {
		name := "app-" + strconv.Itoa(i)
		if _, err := c.AppsV1().Deployments(namespace).Create(ctx, deployment(name, replicas), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.CoreV1().Services(namespace).Create(ctx, service(name), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// roll changes what a deployment is to be: its replicas, and its template.
func roll(ctx context.Context, c *cluster.Cluster, namespace, name string, replicas int, version string) (*appsv1.Deployment, error) {
	patch := fmt.Sprintf(`{"spec":{"replicas":%d,"template":{"metadata":{"annotations":{"version":%q}}}}}`, replicas, version)
	return c.AppsV1().Deployments(namespace).Patch(ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
}

// want is what somebody asked of a Deployment.
type want struct {
	replicas int32
	version  string
}

func wanted(d *appsv1.Deployment) want {
	return want{*d.Spec.Replicas, d.Spec.Template.Annotations["version"]}
}

// writer is a client that rolls out one Deployment again and again, and notes
// things down in ConfigMaps, while the server comes and goes. It knows what was
// acknowledged:
//
//  1. an acknowledged change of the Deployment is in force until the next change
//     is; a change without an answer may be in force, but none before it;
//  2. a ConfigMap whose creation was acknowledged exists, until its deletion is asked for;
//  3. a ConfigMap whose deletion was acknowledged does not come back.
type writer struct {
	cluster    *cluster.Cluster
	namespace  string
	deployment string
	random     *rand.Rand
	most       int // replicas

	changes      int
	acknowledged want
	unanswered   []want // asked for since then

	notes    int
	kept     map[string]bool // ConfigMaps that exist
	deleted  map[string]bool // ConfigMaps that do not
	problems []string
}

func newWriter(c *cluster.Cluster, namespace, deployment string, replicas int32, random *rand.Rand) *writer {
	return &writer{cluster: c, namespace: namespace, deployment: deployment, random: random, most: 8,
		acknowledged: want{replicas: replicas}, kept: map[string]bool{}, deleted: map[string]bool{}}
}

// run writes until stop is closed. Between two changes a rollout gets some way.
func (w *writer) run(ctx context.Context, stop <-chan struct{}) {
	for {
		pause := time.NewTimer(time.Duration(50+w.random.IntN(500)) * time.Millisecond)
		select {
		case <-stop:
			pause.Stop()
			return
		case <-pause.C:
		}
		w.note(ctx)
		if len(w.unanswered) > 0 {
			w.check(ctx)
		} else {
			w.change(ctx)
		}
	}
}

// change asks for another number of replicas, another template, or both.
func (w *writer) change(ctx context.Context) {
	next := w.acknowledged
	if w.random.IntN(3) > 0 {
		w.changes++
		next.version = strconv.Itoa(w.changes)
	}
	if w.random.IntN(2) > 0 {
		next.replicas = int32(w.random.IntN(w.most + 1))
	}
	w.unanswered = append(w.unanswered, next)
	if _, err := roll(ctx, w.cluster, w.namespace, w.deployment, int(next.replicas), next.version); err == nil {
		w.acknowledged, w.unanswered = next, nil
	}
}

// check compares the Deployment with what was asked for, if the server is there.
func (w *writer) check(ctx context.Context) {
	d, err := w.cluster.AppsV1().Deployments(w.namespace).Get(ctx, w.deployment, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		w.problem("deployment %s is gone", w.deployment)
		return
	}
	if err != nil {
		return
	}
	got := wanted(d)
	for _, u := range append(w.unanswered, w.acknowledged) {
		if got == u {
			w.acknowledged, w.unanswered = got, nil
			return
		}
	}
	w.problem("deployment %s wants %+v; acknowledged was %+v, and unanswered since %+v", w.deployment, got, w.acknowledged, w.unanswered)
	w.acknowledged, w.unanswered = got, nil
}

// note creates a ConfigMap, and sometimes deletes an old one.
func (w *writer) note(ctx context.Context) {
	maps := w.cluster.CoreV1().ConfigMaps(w.namespace)
	w.notes++
	name := fmt.Sprintf("%s-%d", w.deployment, w.notes)
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"name": name}}
	if _, err := maps.Create(ctx, m, metav1.CreateOptions{}); err == nil {
		w.kept[name] = true
	}
	if w.random.IntN(4) > 0 {
		return
	}
	for name := range w.kept { // any
		delete(w.kept, name)
		if err := maps.Delete(ctx, name, metav1.DeleteOptions{}); err == nil {
			w.deleted[name] = true
		}
		return
	}
}

// verify compares everything with what was acknowledged; the server has to be there.
func (w *writer) verify(ctx context.Context) {
	w.check(ctx)
	list, err := w.cluster.CoreV1().ConfigMaps(w.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		w.problem("list the config maps: %v", err)
		return
	}
	there := map[string]bool{}
	for _, m := range list.Items {
		there[m.Name] = m.Data["name"] == m.Name
	}
	for name := range w.kept {
		if !there[name] {
			w.problem("config map %s was acknowledged and is gone, or has lost its content", name)
		}
	}
	for name := range w.deleted {
		if _, ok := there[name]; ok {
			w.problem("config map %s came back after its deletion was acknowledged", name)
		}
	}
}

func (w *writer) problem(format string, args ...any) {
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

// writers are several that work at the same time.
type writers []*writer

func newWriters(c *cluster.Cluster, namespace string, n int, replicas int32, random *rand.Rand) writers {
	var all writers
	for i := range n {
		all = append(all, newWriter(c, namespace, "app-"+strconv.Itoa(i), replicas, rand.New(rand.NewPCG(random.Uint64(), 0))))
	}
	return all
}

// start lets all write, until the function that it returns is called.
func (all writers) start(ctx context.Context) (stop func()) {
	done := make(chan struct{})
	var running sync.WaitGroup
	for _, w := range all {
		running.Go(func() { w.run(ctx, done) })
	}
	return func() {
		close(done)
		running.Wait()
	}
}

// verify fails the test for everything acknowledged that is not so.
func (all writers) verify(t *testing.T) {
	t.Helper()
	changes, notes := 0, 0
	for _, w := range all {
		w.verify(t.Context())
		changes, notes = changes+w.changes, notes+len(w.kept)+len(w.deleted)
		for _, p := range w.problems {
			t.Error(p)
		}
		w.problems = nil
	}
	t.Logf("%d rollouts, %d acknowledged notes", changes, notes)
}
