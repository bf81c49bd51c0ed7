package parity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

var workloads = []trial{
	{"deployment-rollout", "deployment-controller replicaset-controller", deploymentRollout},
	{"deployment-scale-during-rollout", "deployment-controller replicaset-controller", deploymentScaleDuringRollout},
	{"deployment-pause", "deployment-controller replicaset-controller", deploymentPause},
	{"deployment-deadline", "deployment-controller replicaset-controller", deploymentDeadline},
	{"deployment-recreate", "deployment-controller replicaset-controller", deploymentRecreate},
	{"deployment-adoption", "deployment-controller replicaset-controller garbage-collector-controller", deploymentAdoption},
	{"conflicting-writes", "deployment-controller replicaset-controller", conflictingWrites},
	{"replicaset-adoption", "replicaset-controller garbage-collector-controller", replicaSetAdoption},
	{"replicaset-scale-down", "replicaset-controller", replicaSetScaleDown},
	{"replicationcontroller", "replicationcontroller-controller garbage-collector-controller", replicationController},
	{"statefulset-order", "statefulset-controller", statefulSetOrder},
	{"statefulset-partition", "statefulset-controller", statefulSetPartition},
	{"statefulset-claims", "statefulset-controller garbage-collector-controller persistentvolumeclaim-protection-controller", statefulSetClaims},
	{"daemonset", "daemonset-controller pod-garbage-collector-controller node-lifecycle-controller", daemonSet},
	{"daemonset-rollout", "daemonset-controller", daemonSetRollout},
	{"disruption-budget", "disruption-controller deployment-controller replicaset-controller", disruptionBudget},
	{"autoscaler", "horizontal-pod-autoscaler-controller deployment-controller", autoscaler},
	{"autoscaler-metrics", "horizontal-pod-autoscaler-controller deployment-controller", autoscalerMetrics},
}

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {replicas: %d, selector: {matchLabels: {app: web}}, %s, template: ` + template + `}`

// template is a pod's with an annotation v, its version, for pods that are ready at once.
const template = `{metadata: {labels: {app: web}, annotations: {v: "%s"}}, spec: {containers: [{name: main, image: none}]}}`

// rolledOut waits until a Deployment has come to its end, of a revision.
func (r *run) rolledOut(replicas, revision int) *object {
	r.Helper()
	var last *object
	r.eventually("roll out", func(ctx context.Context) error { return r.Settled(ctx, r.ns) })
	last = r.reaches("deployments/web", `
metadata: {annotations: {deployment.kubernetes.io/revision: "%[2]d"}}
spec: {replicas: %[1]d}
status:
  replicas: %[1]d
  updatedReplicas: %[1]d
  readyReplicas: %[1]d
  availableReplicas: %[1]d
  unavailableReplicas: null
  terminatingReplicas: 0
  conditions:
  - {type: Available, status: "True", reason: MinimumReplicasAvailable}
  - {type: Progressing, status: "True", reason: NewReplicaSetAvailable}
`, replicas, revision)
	return last
}

// settled says that the Deployments of the namespace have come to their end for good.
func (r *run) settled() {
	r.Helper()
	r.holds("deployments", func(ctx context.Context) error { return r.Settled(ctx, r.ns) })
}

// current is the ReplicaSet of a Deployment's template version.
func (r *run) replicaSet(version string) *object {
	r.Helper()
	var found *object
	r.eventually("replica set of version "+version, func(context.Context) error {
		all := r.list("replicasets", "")
		for i := range all {
			if field(&all[i], "spec", "template", "metadata", "annotations", "v") == version {
				found = &all[i]
				return nil
			}
		}
		return fmt.Errorf("none of %d", len(all))
	})
	return found
}

func deploymentRollout(r *run) {
	r.apply(deployment, 3, "revisionHistoryLimit: 1, strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}", "1")
	web := r.rolledOut(3, 1)
	first := r.replicaSet("1")
	hash := first.GetLabels()["pod-template-hash"]
	r.reaches("replicasets/"+first.GetName(), `
metadata:
  name: web-%[1]s
  labels: {app: web, pod-template-hash: %[1]s}
  annotations: {deployment.kubernetes.io/desired-replicas: "3", deployment.kubernetes.io/max-replicas: "4", deployment.kubernetes.io/revision: "1"}
  ownerReferences: %[2]s
spec: {replicas: 3, selector: {matchLabels: {app: web, pod-template-hash: %[1]s}}}
status: {replicas: 3, fullyLabeledReplicas: 3, readyReplicas: 3, availableReplicas: 3, observedGeneration: 1}
`, hash, ownedBy(web))
	r.counted(3, "pods", "app=web", "metadata: {generateName: web-%s-, labels: {pod-template-hash: %s}, ownerReferences: %s}", hash, hash, ownedBy(first))

	r.patch("deployments/web", `spec: {template: {metadata: {annotations: {v: "2"}}}}`)
	r.rolledOut(3, 2)
	second := r.replicaSet("2")
	r.patch("deployments/web", `spec: {template: {metadata: {annotations: {v: "3"}}}}`)
	r.rolledOut(3, 3)
	r.gone("replicasets/" + first.GetName()) // one old revision is kept

	// Going back uses the replica set that is there.
	r.patch("deployments/web", `spec: {template: {metadata: {annotations: {v: "2"}}}}`)
	r.rolledOut(3, 4)
	r.want("replicasets/"+second.GetName(), `
metadata: {uid: %s, annotations: {deployment.kubernetes.io/revision: "4", deployment.kubernetes.io/revision-history: "2"}}
spec: {replicas: 3}`, second.GetUID())
	r.want("replicasets/"+r.replicaSet("3").GetName(), `
metadata: {annotations: {deployment.kubernetes.io/revision: "3"}}
spec: {replicas: 0}
status: {replicas: 0}`)
	r.count(2, "replicasets", "", "{}")
	r.count(3, "pods", "", "metadata: {annotations: {v: '2'}, deletionTimestamp: null}")
	r.settled()
}

func deploymentScaleDuringRollout(r *run) {
	r.apply(deployment, 4, "strategy: {rollingUpdate: {maxSurge: 2, maxUnavailable: 0}}", "1")
	r.rolledOut(4, 1)
	first := r.replicaSet("1")
	r.patch("deployments/web", `spec: {template: {metadata: {annotations: {v: "2", %s: "false"}}}}`, hollow.Ready)
	second := r.replicaSet("2")
	r.reaches("replicasets/"+second.GetName(), "{spec: {replicas: 2}, status: {replicas: 2}}")

	// What is added goes to both in proportion: 10 pods over 4 and 2.
	r.patch("deployments/web", "spec: {replicas: 8}")
	r.reaches("replicasets/"+first.GetName(), "{spec: {replicas: 7}, status: {readyReplicas: 7}}")
	r.reaches("replicasets/"+second.GetName(), "{spec: {replicas: 3}, status: {replicas: 3, readyReplicas: null}}")
	r.reaches("deployments/web", "status: {replicas: 10, updatedReplicas: 3, readyReplicas: 7, availableReplicas: 7, unavailableReplicas: 3}")
	// And so does what is taken away.
	r.patch("deployments/web", "spec: {replicas: 5}")
	r.reaches("deployments/web", "status: {replicas: 7, updatedReplicas: 2, readyReplicas: 5, unavailableReplicas: 2}")

	r.eventually("new pods become ready", func(ctx context.Context) error {
		for _, p := range r.list("pods", "pod-template-hash="+second.GetLabels()["pod-template-hash"]) {
			if p.GetAnnotations()[hollow.Ready] == "false" && p.GetDeletionTimestamp() == nil {
				r.patch("pods/"+p.GetName(), "metadata: {annotations: {%s: null}}", hollow.Ready)
			}
		}
		return match("", r.value("{replicas: 5, updatedReplicas: 5, readyReplicas: 5}"), field(r.get("deployments/web"), "status"))
	})
	r.rolledOut(5, 2)
	r.settled()
	r.count(2, "replicasets", "", "{}")
}

func deploymentPause(r *run) {
	r.apply(deployment, 2, "paused: false", "1")
	r.rolledOut(2, 1)
	r.patch("deployments/web", "spec: {paused: true}")
	r.reaches("deployments/web", `status: {conditions: [{type: Progressing, status: Unknown, reason: DeploymentPaused}]}`)
	r.patch("deployments/web", `spec: {replicas: 4, template: {metadata: {annotations: {v: "2"}}}}`)
	r.reaches("deployments/web", `
metadata: {generation: 3, annotations: {deployment.kubernetes.io/revision: "1"}}
status: {observedGeneration: 3, replicas: 4, readyReplicas: 4, updatedReplicas: null}`)
	r.counted(1, "replicasets", "", "spec: {replicas: 4, template: {metadata: {annotations: {v: '1'}}}}")
	r.patch("deployments/web", "spec: {paused: false}")
	r.rolledOut(4, 2)
	r.settled()
	r.count(2, "replicasets", "", "{}")
}

func deploymentDeadline(r *run) {
	r.apply(deployment, 2, "progressDeadlineSeconds: 4, minReadySeconds: 1, strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 1}}", "1")
	r.rolledOut(2, 1)
	r.patch("deployments/web", `spec: {template: {metadata: {annotations: {v: "2", %s: "false"}}}}`, hollow.Ready)
	r.reaches("deployments/web", `
status:
  replicas: 3
  updatedReplicas: 2
  availableReplicas: 1
  unavailableReplicas: 2
  conditions:
  - {type: Available, status: "True"}
  - {type: Progressing, status: "False", reason: ProgressDeadlineExceeded}`)
	r.patch("deployments/web", `spec: {template: {metadata: {annotations: {v: "1", %s: null}}}}`, hollow.Ready)
	r.rolledOut(2, 3)
	r.settled()
}

func deploymentRecreate(r *run) {
	r.apply(deployment, 2, "strategy: {type: Recreate}", "1")
	r.rolledOut(2, 1)
	held := r.list("pods", "")[0].GetName()
	r.patch("pods/"+held, "metadata: {annotations: {%s: 'true'}}", hollow.Linger)
	r.patch("deployments/web", `spec: {template: {metadata: {annotations: {v: "2"}}}}`)
	r.counted(1, "pods", "", "metadata: {name: %s, deletionTimestamp: '*'}", held)
	r.reaches("deployments/web", `status: {observedGeneration: 2, replicas: null}`)
	r.patch("pods/"+held, "metadata: {annotations: {%s: null}}", hollow.Linger)
	r.rolledOut(2, 2)
	r.settled()
	r.count(2, "pods", "", "metadata: {annotations: {v: '2'}}")
}

// A deleted Deployment's replica sets are the next one's, of the same template.
func deploymentAdoption(r *run) {
	web := r.apply(deployment, 2, "revisionHistoryLimit: 3", "1")
	r.rolledOut(2, 1)
	set := r.replicaSet("1")
	pods := r.list("pods", "")
	r.delete("deployments/web", metav1.DeletePropagationOrphan)
	r.gone("deployments/web")
	r.reaches("replicasets/"+set.GetName(), "{metadata: {ownerReferences: null}, status: {readyReplicas: 2}}")
	again := r.apply(deployment, 2, "revisionHistoryLimit: 3", "1")
	if again.GetUID() == web.GetUID() {
		r.Fatal("the deployment was not deleted")
	}
	r.rolledOut(2, 1)
	r.want("replicasets/"+set.GetName(), "metadata: {uid: %s, ownerReferences: %s}", set.GetUID(), ownedBy(again))
	for _, p := range pods {
		r.want("pods/"+p.GetName(), "metadata: {uid: %s, deletionTimestamp: null, ownerReferences: %s}", p.GetUID(), ownedBy(set))
	}
	r.count(1, "replicasets", "", "{}")
	r.settled()
}

// Two clients scale and roll out the same Deployment, each with what it last read.
func conflictingWrites(r *run) {
	r.apply(deployment, 2, "revisionHistoryLimit: 10", "1")
	const rounds = 15
	deployments := r.AppsV1().Deployments(r.ns)
	var writers sync.WaitGroup
	errs := make([]error, 2)
	for w := range errs {
		writers.Go(func() {
			for i := 0; i < rounds; {
				scale, err := deployments.GetScale(r.Context(), "web", metav1.GetOptions{})
				if err == nil {
					scale = &autoscalingv1.Scale{ObjectMeta: scale.ObjectMeta, Spec: autoscalingv1.ScaleSpec{Replicas: int32((w*3 + i) % 6)}}
					_, err = deployments.UpdateScale(r.Context(), "web", scale, metav1.UpdateOptions{})
				}
				if err == nil && i%5 == 0 {
					d, getErr := deployments.Get(r.Context(), "web", metav1.GetOptions{})
					if err = getErr; err == nil {
						d.Spec.Template.Annotations["v"] = fmt.Sprintf("%d-%d", w, i)
						_, err = deployments.Update(r.Context(), d, metav1.UpdateOptions{})
					}
				}
				switch {
				case err == nil:
					i++
				case !apierrors.IsConflict(err):
					errs[w] = err
					return
				}
			}
		})
	}
	writers.Wait()
	if err := errors.Join(errs...); err != nil {
		r.Fatal(err)
	}
	r.patch("deployments/web", `spec: {replicas: 3, template: {metadata: {annotations: {v: last}}}}`)
	// Not by the Deployment's status: natively it has been seen to stay behind.
	r.count(3, "pods", "", "metadata: {annotations: {v: last}, deletionTimestamp: null}")
}

const replicaSet = `
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: set}
spec: {replicas: %d, selector: {matchLabels: {app: set}}, template: {metadata: {labels: {app: set}}, spec: {containers: [{name: main, image: none}]}}}`

const barePod = `
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {%s}, annotations: {%s}}
spec: {%s containers: [{name: main, image: none}]}`

func replicaSetAdoption(r *run) {
	r.apply(barePod, "stray", "app: set", "", "")
	set := r.apply(replicaSet, 3)
	r.reaches("pods/stray", "metadata: {ownerReferences: %s}", ownedBy(set))
	r.reaches("replicasets/set", "status: {replicas: 3, fullyLabeledReplicas: 3, readyReplicas: 3, availableReplicas: 3, observedGeneration: 1}")
	r.counted(3, "pods", "", "metadata: {ownerReferences: %s, deletionTimestamp: null}", ownedBy(set))

	// A pod that loses the label is let go, and replaced.
	r.patch("pods/stray", "metadata: {labels: {app: other}}")
	r.reaches("pods/stray", "metadata: {ownerReferences: null}")
	r.counted(3, "pods", "app=set", "status: {phase: Running}")
	// One that gets it back is one too many.
	r.patch("pods/stray", "metadata: {labels: {app: set}}")
	r.eventually("one pod too many", func(context.Context) error {
		if all := r.list("pods", ""); len(all) != 3 {
			return fmt.Errorf("%d pods", len(all))
		}
		return nil
	})
	// One that goes is replaced.
	victim := r.list("pods", "")[0]
	r.delete("pods/" + victim.GetName())
	r.gone("pods/" + victim.GetName())
	pods := r.counted(3, "pods", "app=set", "status: {phase: Running}")

	// Orphans stay, and the next set of their label adopts them.
	r.delete("replicasets/set", metav1.DeletePropagationOrphan)
	r.gone("replicasets/set")
	r.counted(3, "pods", "app=set", "metadata: {ownerReferences: null, deletionTimestamp: null}")
	again := r.apply(replicaSet, 3)
	for _, p := range pods {
		r.want("pods/"+p.GetName(), "metadata: {uid: %s, ownerReferences: %s}", p.GetUID(), ownedBy(again))
	}
	// A pod of another controller is not taken.
	r.apply(`
apiVersion: v1
kind: Pod
metadata:
  name: taken
  labels: {app: set}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: set, uid: %s, controller: true}]
spec: {containers: [{name: main, image: none}]}`, set.GetUID())
	r.absent("pods/taken") // its owner is no more
	r.count(3, "pods", "", "metadata: {ownerReferences: %s, deletionTimestamp: null}", ownedBy(again))
	r.want("replicasets/set", "status: {replicas: 3, readyReplicas: 3}")
}

func replicaSetScaleDown(r *run) {
	r.apply(replicaSet, 4)
	r.reaches("replicasets/set", "status: {readyReplicas: 4}")
	pods := r.list("pods", "")
	kept := pods[2].GetName()
	for _, p := range pods {
		cost := -10
		if p.GetName() == kept {
			cost = 10
		}
		r.patch("pods/"+p.GetName(), `metadata: {annotations: {controller.kubernetes.io/pod-deletion-cost: "%d"}}`, cost)
	}
	// One that is not ready goes first whatever it costs.
	r.patch("pods/"+pods[0].GetName(), "metadata: {annotations: {%s: 'false', controller.kubernetes.io/pod-deletion-cost: '1000'}}", hollow.Ready)
	r.reaches("replicasets/set", "status: {readyReplicas: 3, replicas: 4}")
	r.patch("replicasets/set", "spec: {replicas: 3}")
	r.gone("pods/" + pods[0].GetName())
	r.reaches("replicasets/set", "status: {readyReplicas: 3, replicas: 3}")
	r.patch("replicasets/set", "spec: {replicas: 1}")
	r.want("replicasets/set", "status: {readyReplicas: 1, replicas: 1}")
	r.count(1, "pods", "", "metadata: {name: %s, deletionTimestamp: null}", kept)
}

func replicationController(r *run) {
	rc := r.apply(`
apiVersion: v1
kind: ReplicationController
metadata: {name: old}
spec: {replicas: 2, template: {metadata: {labels: {app: old}}, spec: {containers: [{name: main, image: none}]}}}`)
	r.reaches("replicationcontrollers/old", `
spec: {selector: {app: old}}
status: {replicas: 2, fullyLabeledReplicas: 2, readyReplicas: 2, availableReplicas: 2, observedGeneration: 1}`)
	pods := r.counted(2, "pods", "app=old", "metadata: {ownerReferences: %s}", ownedBy(rc))
	r.patch("pods/"+pods[0].GetName(), "metadata: {labels: {app: let-go}}")
	r.reaches("pods/"+pods[0].GetName(), "metadata: {ownerReferences: null}")
	r.patch("replicationcontrollers/old", "spec: {replicas: 4}")
	r.reaches("replicationcontrollers/old", "status: {replicas: 4, readyReplicas: 4, observedGeneration: 2}")
	r.patch("replicationcontrollers/old", "spec: {replicas: 1}")
	r.reaches("replicationcontrollers/old", "status: {replicas: 1, readyReplicas: 1, observedGeneration: 3}")
	r.counted(1, "pods", "app=old", "metadata: {deletionTimestamp: null}")
	r.delete("replicationcontrollers/old", metav1.DeletePropagationForeground)
	r.absent("replicationcontrollers/old")
	r.count(1, "pods", "", "metadata: {name: %s, deletionTimestamp: null}", pods[0].GetName())
}

const statefulSet = `
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 5432}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: %d
  selector: {matchLabels: {app: db}}
  %s
  template: {metadata: {labels: {app: db}, annotations: {v: "1", %s}}, spec: {%s containers: [{name: main, image: none}]}}`

func statefulSetOrder(r *run) {
	set := r.apply(statefulSet, 3, "", hollow.Ready+": 'false'", "")
	// The second comes when the first is ready.
	for i := range 3 {
		name := fmt.Sprintf("pods/db-%d", i)
		r.reaches(name, `
metadata:
  labels: {statefulset.kubernetes.io/pod-name: db-%[1]d, apps.kubernetes.io/pod-index: "%[1]d", controller-revision-hash: "*"}
  ownerReferences: %[2]s
spec: {hostname: db-%[1]d, subdomain: db}
status: {phase: Running}`, i, ownedBy(set))
		r.reaches("statefulsets/db", "status: {replicas: %d, currentReplicas: %d}", i+1, i+1)
		r.counted(i+1, "pods", "", "{}")
		r.patch(name, "metadata: {annotations: {%s: null}}", hollow.Ready)
	}
	r.reaches("statefulsets/db", "status: {replicas: 3, readyReplicas: 3, availableReplicas: 3, currentReplicas: 3, updatedReplicas: 3, observedGeneration: 1, collisionCount: 0}")

	// The last goes first, and the next when it is gone.
	r.patch("pods/db-2", "metadata: {annotations: {%s: 'true'}}", hollow.Linger)
	r.patch("statefulsets/db", "spec: {replicas: 1}")
	r.reaches("pods/db-2", "metadata: {deletionTimestamp: '*'}")
	r.reaches("statefulsets/db", "status: {observedGeneration: 2}")
	r.counted(2, "pods", "statefulset.kubernetes.io/pod-name notin (db-2)", "metadata: {deletionTimestamp: null}")
	r.patch("pods/db-2", "metadata: {annotations: {%s: null}}", hollow.Linger)
	r.absent("pods/db-1")
	r.absent("pods/db-2")

	// A lost pod comes back under its name.
	first := r.get("pods/db-0")
	r.delete("pods/db-0")
	r.eventually("another db-0", func(ctx context.Context) error {
		p, err := r.CoreV1().Pods(r.ns).Get(ctx, "db-0", metav1.GetOptions{})
		if err == nil && p.UID == first.GetUID() {
			err = errors.New("it is the old one")
		}
		return err
	})
	r.patch("pods/db-0", "metadata: {annotations: {%s: null}}", hollow.Ready)
	r.want("statefulsets/db", "status: {replicas: 1, readyReplicas: 1, availableReplicas: 1}")
	r.count(1, "controllerrevisions", "app=db", "{metadata: {ownerReferences: %s}, revision: 1}", ownedBy(set))

	// Without order all come at once.
	set = r.apply(`
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: all}
spec:
  replicas: 3
  podManagementPolicy: Parallel
  ordinals: {start: 5}
  selector: {matchLabels: {app: all}}
  template: {metadata: {labels: {app: all}, annotations: {%s: 'false'}}, spec: {containers: [{name: main, image: none}]}}`, hollow.Ready)
	for i := 5; i < 8; i++ {
		r.want(fmt.Sprintf("pods/all-%d", i), "{metadata: {ownerReferences: %s}, status: {phase: Running}}", ownedBy(set))
	}
	r.count(3, "pods", "app=all", "{}")
	r.want("statefulsets/all", "status: {replicas: 3, readyReplicas: null, availableReplicas: 0}")
}

func statefulSetPartition(r *run) {
	set := r.apply(statefulSet, 3, "updateStrategy: {rollingUpdate: {partition: 2}}", "", "")
	ready := "status: {replicas: 3, readyReplicas: 3, updatedReplicas: %d, currentReplicas: %d}"
	before := r.reaches("statefulsets/db", ready, 3, 3)
	old := field(before, "status", "currentRevision")
	r.patch("statefulsets/db", `spec: {template: {metadata: {annotations: {v: "2"}}}}`)
	changed := r.reaches("statefulsets/db", ready, 1, 2)
	update := field(changed, "status", "updateRevision")
	if update == old {
		r.Errorf("the revision is still %v", old)
	}
	for i, version := range []string{"1", "1", "2"} {
		r.reaches(fmt.Sprintf("pods/db-%d", i), "{metadata: {annotations: {v: '%s'}}, status: {phase: Running}}", version)
	}
	// A pod below the partition comes back as it was.
	first := r.get("pods/db-0")
	r.delete("pods/db-0")
	r.eventually("another db-0", func(context.Context) error {
		all := r.list("pods", "statefulset.kubernetes.io/pod-name=db-0")
		if len(all) != 1 || all[0].GetUID() == first.GetUID() {
			return errors.New("not yet")
		}
		return nil
	})
	r.reaches("pods/db-0", "metadata: {annotations: {v: '1'}, labels: {controller-revision-hash: %v}}", old)
	r.reaches("statefulsets/db", ready, 1, 2)

	r.patch("statefulsets/db", "spec: {updateStrategy: {rollingUpdate: {partition: 0}}}")
	r.want("statefulsets/db", "status: {replicas: 3, readyReplicas: 3, updatedReplicas: 3, currentReplicas: 3, currentRevision: %v, updateRevision: %v}", update, update)
	r.count(3, "pods", "", "metadata: {annotations: {v: '2'}, labels: {controller-revision-hash: %v}}", update)
	r.count(2, "controllerrevisions", "", "metadata: {ownerReferences: %s}", ownedBy(set))
}

func statefulSetClaims(r *run) {
	const claims = `persistentVolumeClaimRetentionPolicy: {whenScaled: Delete, whenDeleted: Retain}
  volumeClaimTemplates:
  - metadata: {name: data, labels: {of: db}}
    spec: {accessModes: [ReadWriteOnce], storageClassName: "", resources: {requests: {storage: 1Gi}}}`
	// Without the scheduler: nobody provides the volumes.
	r.apply(statefulSet, 2, claims, "", "nodeName: hollow-0, ")
	r.reaches("statefulsets/db", "status: {replicas: 2, readyReplicas: 2}")
	for i := range 2 {
		r.reaches(fmt.Sprintf("pods/db-%d", i), "spec: {volumes: [{name: data, persistentVolumeClaim: {claimName: data-db-%d}}, '*']}", i)
		r.reaches(fmt.Sprintf("persistentvolumeclaims/data-db-%d", i), `
metadata: {labels: {app: db, of: db}, ownerReferences: null, finalizers: [kubernetes.io/pvc-protection]}
spec: {storageClassName: "", resources: {requests: {storage: 1Gi}}}
status: {phase: Pending}`)
	}
	kept := r.get("persistentvolumeclaims/data-db-0")
	r.patch("statefulsets/db", "spec: {replicas: 1}")
	r.absent("pods/db-1")
	r.absent("persistentvolumeclaims/data-db-1")
	r.delete("statefulsets/db")
	r.absent("pods/db-0")
	r.want("persistentvolumeclaims/data-db-0", "metadata: {uid: %s, deletionTimestamp: null}", kept.GetUID())
}

func daemonSet(r *run) {
	// Others' pods do not tolerate these nodes.
	nodes := map[string]*hollow.Node{}
	join := func(name, labels string) {
		l := map[string]string{"parity": r.ns}
		for _, k := range strings.Fields(labels) {
			l[k] = "yes"
		}
		nodes[name] = r.node(hollow.Config{Name: name, Labels: l, Taints: r.keepOut()})
	}
	join("daemon-0", "agent")
	join("daemon-1", "agent")
	join("daemon-2", "")
	r.patch("nodes/daemon-1", "spec: {taints: [{key: parity, value: %s, effect: NoSchedule}, {key: special, effect: NoExecute}]}", r.ns)
	set := r.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      nodeSelector: {parity: %[1]s, agent: "yes"}
      tolerations: [{key: parity, value: %[1]s}]
      containers: [{name: main, image: none}]`, r.ns)
	status := "status: {desiredNumberScheduled: %[1]d, currentNumberScheduled: %[1]d, numberReady: %[1]d, numberAvailable: %[1]d, updatedNumberScheduled: %[1]d, numberMisscheduled: 0}"
	r.reaches("daemonsets/agent", status, 1)
	p := r.counted(1, "pods", "", `
metadata: {ownerReferences: %s, labels: {controller-revision-hash: "*", pod-template-generation: "1"}}
spec:
  nodeName: daemon-0
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchFields: [{key: metadata.name, operator: In, values: [daemon-0]}]}]}}}
`, ownedBy(set))[0]
	tolerated := fmt.Sprint(field(&p, "spec", "tolerations"))
	for _, taint := range []string{"not-ready", "unreachable", "disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"} {
		if !strings.Contains(tolerated, "node.kubernetes.io/"+taint) {
			r.Errorf("the pod does not tolerate %s: %s", taint, tolerated)
		}
	}
	// The taint goes, a node gets the label, a node comes, one is cordoned.
	r.patch("nodes/daemon-1", "spec: {taints: [{key: parity, value: %s, effect: NoSchedule}]}", r.ns)
	r.reaches("daemonsets/agent", status, 2)
	r.patch("nodes/daemon-2", "{metadata: {labels: {agent: 'yes'}}, spec: {unschedulable: true}}")
	r.reaches("daemonsets/agent", status, 3)
	join("daemon-3", "agent")
	r.reaches("daemonsets/agent", status, 4)
	// A label is taken away, a taint comes, a node goes.
	r.patch("nodes/daemon-2", "metadata: {labels: {agent: null}}")
	r.reaches("daemonsets/agent", status, 3)
	r.patch("nodes/daemon-1", "spec: {taints: [{key: parity, value: %s, effect: NoSchedule}, {key: special, effect: NoExecute}]}", r.ns)
	r.reaches("daemonsets/agent", status, 2)
	nodes["daemon-3"].Stop()
	r.delete("nodes/daemon-3")
	r.want("daemonsets/agent", status, 1)
	r.count(1, "pods", "", "{metadata: {deletionTimestamp: null}, spec: {nodeName: daemon-0}}")
}

func daemonSetRollout(r *run) {
	for i := range 3 {
		r.node(hollow.Config{Name: fmt.Sprintf("rollout-%d", i), Labels: map[string]string{"parity": r.ns}, Taints: r.keepOut()})
	}
	set := r.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  updateStrategy: {rollingUpdate: {maxUnavailable: 1}}
  revisionHistoryLimit: 1
  template:
    metadata: {labels: {app: agent}, annotations: {v: "1"}}
    spec:
      nodeSelector: {parity: %[1]s}
      tolerations: [{key: parity, value: %[1]s}]
      containers: [{name: main, image: none}]`, r.ns)
	status := "status: {observedGeneration: %d, desiredNumberScheduled: 3, numberAvailable: %d, updatedNumberScheduled: %d}"
	r.reaches("daemonsets/agent", status, 1, 3, 3)
	// Of one that does not become ready there is no more than one.
	r.patch("daemonsets/agent", `spec: {template: {metadata: {annotations: {v: "2", %s: "false"}}}}`, hollow.Ready)
	r.reaches("daemonsets/agent", "status: {observedGeneration: 2, updatedNumberScheduled: 1, numberAvailable: 2, numberUnavailable: 1}")
	r.counted(2, "pods", "pod-template-generation=1", "metadata: {deletionTimestamp: null}")
	r.patch("daemonsets/agent", `spec: {template: {metadata: {annotations: {v: "3", %s: null}}}}`, hollow.Ready)
	r.reaches("daemonsets/agent", status, 3, 3, 3)
	r.counted(3, "pods", "", "metadata: {annotations: {v: '3'}, deletionTimestamp: null}")
	r.counted(2, "controllerrevisions", "", "metadata: {ownerReferences: %s}", ownedBy(set))
	// OnDelete leaves the pods alone.
	r.patch("daemonsets/agent", `spec: {updateStrategy: {type: OnDelete, rollingUpdate: null}, template: {metadata: {annotations: {v: "4"}}}}`)
	r.reaches("daemonsets/agent", "status: {observedGeneration: 4, numberAvailable: 3, updatedNumberScheduled: null}")
	victim := r.list("pods", "")[0]
	r.delete("pods/" + victim.GetName())
	r.want("daemonsets/agent", status, 4, 3, 1)
	r.count(3, "pods", "", "metadata: {deletionTimestamp: null}")
	r.count(2, "pods", "pod-template-generation=3", "metadata: {annotations: {v: '3'}}")
}

func disruptionBudget(r *run) {
	r.apply(`
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
---`+deployment, 3, "paused: false", "1")
	r.reaches("poddisruptionbudgets/web", `
status:
  expectedPods: 3
  currentHealthy: 3
  desiredHealthy: 2
  disruptionsAllowed: 1
  observedGeneration: 1
  conditions: [{type: DisruptionAllowed, status: "True", reason: SufficientPods}]`)
	pods := r.list("pods", "")
	r.patch("pods/"+pods[0].GetName(), "metadata: {annotations: {%s: 'false'}}", hollow.Ready)
	r.reaches("poddisruptionbudgets/web", `
status: {currentHealthy: 2, disruptionsAllowed: 0, conditions: [{type: DisruptionAllowed, status: "False", reason: InsufficientPods}]}`)
	if err := r.evict(pods[1].GetName()); !apierrors.IsTooManyRequests(err) {
		r.Fatalf("eviction beyond the budget: %v", err)
	}
	r.patch("pods/"+pods[0].GetName(), "metadata: {annotations: {%s: null}}", hollow.Ready)
	r.eventually("eviction within the budget", func(context.Context) error { return r.evict(pods[1].GetName()) })
	r.gone("pods/" + pods[1].GetName())
	r.reaches("poddisruptionbudgets/web", "status: {currentHealthy: 3, disruptionsAllowed: 1, disruptedPods: null}")

	// A percentage is of what the controller wants.
	r.patch("poddisruptionbudgets/web", "spec: {minAvailable: null, maxUnavailable: 50%%}")
	r.patch("deployments/web", "spec: {replicas: 5}")
	r.want("poddisruptionbudgets/web", "status: {expectedPods: 5, currentHealthy: 5, desiredHealthy: 2, disruptionsAllowed: 3, observedGeneration: 2}")
	r.settled()
	r = r.another("bare")
	// Pods that no controller wants are not counted.
	r.apply(barePod, "bare", "app: bare", "", "")
	r.apply(`
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: bare}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: bare}}}`)
	r.event("PodDisruptionBudget", "bare", "UnmanagedPods", "unmanaged")
	r.want("poddisruptionbudgets/bare", `status: {expectedPods: 0, disruptionsAllowed: 0, conditions: [{type: DisruptionAllowed, status: "False", reason: InsufficientPods}]}`)
}

func autoscaler(r *run) {
	const scaler = `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: %s}
spec:
  minReplicas: %d
  maxReplicas: 4
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: %s}
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]`
	r.apply(deployment, 1, "paused: false", "1")
	r.rolledOut(1, 1)
	r.apply(scaler, "web", 3, "web")
	r.apply(scaler, "missing", 1, "missing")
	r.want("horizontalpodautoscalers/missing", `status: {conditions: [{type: AbleToScale, status: "False", reason: FailedGetScale}]}`)
	r.rolledOut(3, 1)
	r.reaches("horizontalpodautoscalers/web", `
status:
  currentReplicas: 3
  desiredReplicas: 3
  lastScaleTime: "*"
  conditions:
  - {type: AbleToScale, status: "True"}
  - {type: ScalingActive, status: "False", reason: FailedGetResourceMetric}`)
	r.patch("deployments/web", "spec: {replicas: 6}")
	r.rolledOut(4, 1)
	r.want("horizontalpodautoscalers/web", "status: {currentReplicas: 4, desiredReplicas: 4}")
	r.settled()
}

// autoscalerMetrics: an autoscaler follows what the pods use. The metrics API is custom resources here: to who reads
// it, it is the same.
func autoscalerMetrics(r *run) {
	r.apply(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: pods.metrics.k8s.io, annotations: {api-approved.kubernetes.io: "unapproved, for a test"}}
spec:
  group: metrics.k8s.io
  scope: Namespaced
  names: {plural: pods, singular: pod, kind: PodMetrics, listKind: PodMetricsList}
  versions: [{name: v1beta1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]`)
	r.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: main, image: none, resources: {requests: {cpu: 10m}}}]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  maxReplicas: 5
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
  behavior: {scaleDown: {stabilizationWindowSeconds: 0}}`)
	r.rolledOut(1, 1)
	// uses says how much processor time each pod takes. The time is ahead, as what a pod takes while it starts does not count.
	uses := func(cpu string) {
		for _, pod := range r.list("pods", "app=web") {
			r.apply(`
apiVersion: metrics.k8s.io/v1beta1
kind: PodMetrics
metadata: {name: %s, labels: {app: web}}
timestamp: %s
window: 1s
containers: [{name: main, usage: {cpu: %s}}]`, pod.GetName(), time.Now().Add(time.Hour).UTC().Format(time.RFC3339), cpu)
		}
	}
	uses("15m")
	r.rolledOut(3, 1)
	r.reaches("horizontalpodautoscalers/web", `
status:
  currentReplicas: 3
  desiredReplicas: 3
  conditions:
  - {type: AbleToScale, status: "True"}
  - {type: ScalingActive, status: "True", reason: ValidMetricFound}`)
	for _, used := range r.list("pods.metrics.k8s.io", "") {
		r.delete("pods.metrics.k8s.io/" + used.GetName())
	}
	uses("1m")
	r.rolledOut(1, 1)
	r.want("horizontalpodautoscalers/web", "status: {currentReplicas: 1, desiredReplicas: 1}")
}
