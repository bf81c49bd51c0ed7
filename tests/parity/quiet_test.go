package parity

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

// stirs are cases of one event each, on which a controller acts although most events
// of the kind are nothing to it. Among other cases something else would wake it soon.
var stirs = []trial{
	{"owner-changes", "garbage-collector-controller", ownerChanges},
	{"pod-on-tainted-node", "taint-eviction-controller", podOnTaintedNode},
	{"volume-after-claim", "persistentvolume-binder-controller", volumeAfterClaim},
	{"schedule", "cronjob-controller", schedule},
	{"nothing", "", nothing},
}

// TestOneEventWakes: on a cluster where nothing else happens each controller sleeps,
// and the event, or the time, that is for it wakes it.
func TestOneEventWakes(t *testing.T) {
	w := start(t, "wasm")
	for _, c := range stirs {
		t.Run(c.name, func(t *testing.T) { w.try(t, c) })
	}
	w.verify(t)
}

// asleep waits until these controllers sleep.
func (r *run) asleep(controllers ...string) {
	r.Helper()
	r.eventually("sleep", func(ctx context.Context) error {
		up, err := r.guests(ctx, "cold", "warm", "awake", "failed")
		for _, c := range up {
			if slices.Contains(controllers, c.Name) {
				return fmt.Errorf("%s is %s", c.Name, c.State)
			}
		}
		return err
	})
}

// wokenBy reports whether an event of an object in the case's namespace is among those that
// woke a controller last, if the controller has acted on it.
func (r *run) wokenBy(controller, event, object string) bool {
	r.Helper()
	_, body, err := r.Request(r.Context(), http.MethodGet, "/v1-dormouse/wasm/controllers/"+controller)
	if err != nil {
		r.Fatal(err)
	}
	want := fmt.Sprintf("%s %s/%s", event, r.ns, object)
	woken := strings.Contains(string(body), want)
	if !woken {
		r.Logf("no wake by %s: %s", want, body)
	}
	return woken
}

// ownerChanges: an object that passes to an owner that does not exist goes.
func ownerChanges(r *run) {
	r.apply(configMap, "changed", "", "[]")
	for n := range 3 { // the event may come while a timer has the controller awake
		name := fmt.Sprint("passed-on-", n)
		r.apply(configMap, name, "", "[]")
		r.asleep("garbage-collector-controller")
		r.patch("configmaps/changed", "data: {key: value-%d}", n)
		r.patch("configmaps/"+name, "metadata: {ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: never, uid: 6a0e2f4e-0000-4000-8000-000000000000}]}")
		r.absent("configmaps/" + name)
		r.want("configmaps/changed", "data: {key: value-%d}", n)
		if r.wokenBy("garbage-collector-controller", "MODIFIED configmaps", name) {
			return
		}
	}
	r.Error("the collector was never woken by the change of an owner")
}

// podOnTaintedNode: a pod that is put onto a node, past the scheduler, which would not
// have done it, is evicted.
func podOnTaintedNode(r *run) {
	r.node(hollow.Config{Name: "tainted", Taints: append(r.keepOut(), corev1.Taint{Key: "trouble", Effect: corev1.TaintEffectNoExecute})})
	r.asleep("taint-eviction-controller", "node-lifecycle-controller")
	r.apply(barePod, "late", "", "", fmt.Sprintf("nodeName: tainted, tolerations: [{key: parity, value: %s}], ", r.ns))
	r.absent("pods/late")
	if !r.wokenBy("taint-eviction-controller", "ADDED pods", "late") {
		r.Error("the pod woke nobody")
	}
}

// volumeAfterClaim: upstream finds the volume for a claim that waits when it looks at
// all claims next.
func volumeAfterClaim(r *run) {
	const class = "parity-quiet"
	r.apply(claim, "first", class, "1Gi", "")
	r.reaches("persistentvolumeclaims/first", "status: {phase: Pending}")
	r.asleep("persistentvolume-binder-controller")
	r.apply(volume, "parity-quiet", r.ns, class, "1Gi", onHost)
	r.want("persistentvolumeclaims/first", "{spec: {volumeName: parity-quiet}, status: {phase: Bound}}")
}

// schedule: a CronJob has its Job when the minute is full.
func schedule(r *run) {
	r.apply("{apiVersion: batch/v1, kind: CronJob, metadata: {name: minutely}, spec: {schedule: '* * * * *', jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: none}]}}}}}}")
	r.asleep("cronjob-controller", "job-controller")
	r.reaches("cronjobs/minutely", "status: {lastScheduleTime: '*'}")
	r.patch("cronjobs/minutely", "spec: {suspend: true}")
}

// quietFor is how long nothing happens in nothing, but some heartbeats of nodes.
const quietFor = 30 * time.Second

// nothing: with something of everything there, that does not change, nobody wakes, but
// for a timer.
func nothing(r *run) {
	const pod = "{metadata: {labels: {app: %[1]s}}, spec: {containers: [{name: main, image: none}]}}"
	r.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {replicas: 2, selector: {matchLabels: {app: web}}, template: `+pod+`}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}`, "web")
	r.apply("{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: all}, spec: {selector: {matchLabels: {app: all}}, template: "+pod+"}}", "all")
	r.apply("{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: one}, spec: {serviceName: one, selector: {matchLabels: {app: one}}, template: "+pod+"}}", "one")
	r.reaches("deployments/web", "status: {availableReplicas: 2}")
	r.reaches("poddisruptionbudgets/web", "status: {currentHealthy: 2}")
	r.reaches("daemonsets/all", "status: {numberAvailable: 2}")
	r.reaches("statefulsets/one", "status: {availableReplicas: 1}")
	var up []string
	all, err := r.Controllers(r.Context())
	for _, c := range all {
		if c.Name != "pod-garbage-collector-controller" { // it stays for longer
			up = append(up, c.Name)
		}
	}
	if err != nil {
		r.Fatal(err)
	}
	r.asleep(up...)
	before, err := r.Controllers(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	select {
	case <-time.After(quietFor):
	case <-r.Context().Done():
	}
	after, err := r.Controllers(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	for k, c := range after {
		if wakes := c.Wakes - before[k].Wakes; wakes > 1 || wakes == 1 && c.LastWakeReason != "timer" {
			r.Errorf("%s was woken %d times: %s", c.Name, wakes, c.LastWakeReason)
		}
	}
}
