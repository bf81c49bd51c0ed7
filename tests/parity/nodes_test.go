package parity

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

// silences come first: it takes nearly a minute to be missed.
var silences = []trial{
	{"node-silent", "node-lifecycle-controller taint-eviction-controller pod-garbage-collector-controller", nodeSilent},
	{"node-deleted", "pod-garbage-collector-controller", nodeDeleted},
}

var nodes = []trial{
	{"node", "node-lifecycle-controller node-ipam-controller ttl-controller", nodeBasics},
	{"taint-eviction", "taint-eviction-controller", taintEviction},
	{"scheduling", "kube-scheduler", scheduling},
	{"scheduling-preemption", "kube-scheduler disruption-controller", preemption},
	{"scheduling-spread", "kube-scheduler", spread},
}

// tolerates lets a pod on the nodes of its case.
func (r *run) tolerates() string {
	return fmt.Sprintf("tolerations: [{key: parity, value: %s}], ", r.ns)
}

// nodeSilent: a node that is not heard of any more is marked, its pods are no
// longer ready, and go when they tolerate it no longer.
func nodeSilent(r *run) {
	silent := r.node(hollow.Config{Name: "silent", Taints: r.keepOut()})
	r.node(hollow.Config{Name: "heard", Taints: r.keepOut()})
	place := func(name, node, tolerations string) {
		r.apply(barePod, name, "", "", fmt.Sprintf("nodeName: %s, tolerations: [{key: parity, value: %s}, %s], ", node, r.ns, tolerations))
	}
	const unreachable = "{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: %d}"
	place("goes", "silent", fmt.Sprintf(unreachable, 0))
	place("goes-later", "silent", fmt.Sprintf(unreachable, 5))
	place("stays", "silent", "{operator: Exists}")
	place("elsewhere", "heard", fmt.Sprintf(unreachable, 0))
	for _, name := range []string{"goes", "goes-later", "stays", "elsewhere"} {
		r.reaches("pods/"+name, "status: {phase: Running, conditions: [{type: Ready, status: 'True'}]}")
	}
	silent.Stop()
	r.reaches("nodes/silent", "status: {conditions: [{type: Ready, status: Unknown, reason: NodeStatusUnknown}, {type: MemoryPressure, status: Unknown}, {type: DiskPressure, status: Unknown}]}")
	r.eventually("the taints", func(context.Context) error {
		node, err := r.CoreV1().Nodes().Get(r.Context(), "silent", metav1.GetOptions{})
		if err != nil {
			return err
		}
		effects := map[corev1.TaintEffect]bool{}
		for _, t := range node.Spec.Taints {
			if t.Key == corev1.TaintNodeUnreachable {
				effects[t.Effect] = true
			}
		}
		if !effects[corev1.TaintEffectNoExecute] || !effects[corev1.TaintEffectNoSchedule] {
			return fmt.Errorf("they are %v", node.Spec.Taints)
		}
		return nil
	})
	r.reaches("pods/stays", "{metadata: {deletionTimestamp: null}, status: {conditions: [{type: Ready, status: 'False'}]}}")
	r.event("Pod", "stays", "NodeNotReady", "")
	for _, name := range []string{"goes", "goes-later"} {
		r.reaches("pods/"+name, "{metadata: {deletionTimestamp: '*'}, status: {conditions: [{type: DisruptionTarget, status: 'True', reason: DeletionByTaintManager}]}}")
	}
	r.want("pods/elsewhere", "{metadata: {deletionTimestamp: null}, status: {conditions: [{type: Ready, status: 'True'}]}}")
	r.want("nodes/heard", "status: {conditions: [{type: Ready, status: 'True'}]}")
	// Nobody but the node says that a pod has ended, unless told that it is out of service.
	r.patch("nodes/silent", "spec: {taints: [{key: node.kubernetes.io/out-of-service, value: nodeshutdown, effect: NoExecute}, {key: node.kubernetes.io/unreachable, effect: NoExecute}]}")
	r.absent("pods/goes")
	r.absent("pods/goes-later")
	// The node is back.
	r.patch("nodes/silent", "spec: {taints: null}")
	r.node(hollow.Config{Name: "silent"})
	r.want("nodes/silent", "{spec: {taints: null}, status: {conditions: [{type: Ready, status: 'True'}]}}")
	r.want("pods/stays", "status: {conditions: [{type: Ready, status: 'True'}]}")
}

// nodeDeleted: pods of a node that does not exist go.
func nodeDeleted(r *run) {
	lost := r.node(hollow.Config{Name: "lost", Taints: r.keepOut()})
	r.apply(barePod, "lost", "", "", "nodeName: lost, tolerations: [{operator: Exists}], ")
	r.apply(barePod, "kept", "", "", "nodeName: hollow-0, ")
	r.reaches("pods/lost", "status: {phase: Running}")
	r.patch("pods/lost", "metadata: {finalizers: [%s]}", heldBy)
	lost.Stop()
	r.delete("nodes/lost")
	r.reaches("pods/lost", "{metadata: {deletionTimestamp: '*'}, status: {phase: Failed, conditions: [{type: DisruptionTarget, status: 'True', reason: DeletionByPodGC}]}}")
	r.release("pods/lost")
	r.absent("pods/lost")
	r.want("pods/kept", "{metadata: {deletionTimestamp: null}, status: {phase: Running}}")
}

func nodeBasics(r *run) {
	r.node(hollow.Config{Name: "plain", Taints: r.keepOut(), Labels: map[string]string{"parity": r.ns}})
	node := r.reaches("nodes/plain", `
metadata: {annotations: {node.alpha.kubernetes.io/ttl: "0"}}
spec: {podCIDR: "*", podCIDRs: ["*"]}
status: {conditions: [{type: Ready, status: "True"}]}`)
	r.eventually("taint of a node that has not been ready", func(context.Context) error {
		taints, _ := field(r.get("nodes/plain"), "spec", "taints").([]any)
		return match("taints", r.value("[{key: parity}]"), taints)
	})
	// Every node has another range, within the cluster's.
	seen := map[string]string{}
	for _, n := range r.list("nodes", "") {
		cidr, _ := field(&n, "spec", "podCIDR").(string)
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil || prefix.Bits() != 24 || !netip.MustParsePrefix("10.42.0.0/16").Contains(prefix.Addr()) {
			continue // it has none yet
		}
		if other := seen[cidr]; other != "" {
			r.Errorf("%s and %s have the same range, %s", other, n.GetName(), cidr)
		}
		seen[cidr] = n.GetName()
	}
	if seen[fmt.Sprint(field(node, "spec", "podCIDR"))] != "plain" {
		r.Errorf("the range is no /24 of the cluster's: %v", field(node, "spec", "podCIDR"))
	}
	// What a node says of itself keeps pods away.
	for condition, taint := range map[corev1.NodeConditionType]string{"MemoryPressure": "memory-pressure", "DiskPressure": "disk-pressure", "PIDPressure": "pid-pressure", "NetworkUnavailable": "network-unavailable"} {
		r.condition("plain", condition, corev1.ConditionTrue)
		r.tainted("plain", "node.kubernetes.io/"+taint, true)
		r.condition("plain", condition, corev1.ConditionFalse)
		r.tainted("plain", "node.kubernetes.io/"+taint, false)
	}
	r.patch("nodes/plain", "spec: {unschedulable: true}")
	r.tainted("plain", corev1.TaintNodeUnschedulable, true)
	r.patch("nodes/plain", "spec: {unschedulable: null}")
	r.tainted("plain", corev1.TaintNodeUnschedulable, false)
	// Beta labels follow the new ones.
	r.patch("nodes/plain", "metadata: {labels: {kubernetes.io/os: linux, kubernetes.io/arch: amd64}}")
	r.want("nodes/plain", "metadata: {labels: {beta.kubernetes.io/os: linux, beta.kubernetes.io/arch: amd64}}")
}

// condition sets a condition of a node.
func (r *run) condition(name string, kind corev1.NodeConditionType, status corev1.ConditionStatus) {
	r.Helper()
	r.eventually("condition", func(ctx context.Context) error {
		node, err := r.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		now := metav1.Now()
		set := corev1.NodeCondition{Type: kind, Status: status, Reason: "Parity", LastHeartbeatTime: now, LastTransitionTime: now}
		node.Status.Conditions = append(slices.DeleteFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == kind }), set)
		_, err = r.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
		return err
	})
}

// tainted waits until a node has a taint or has not.
func (r *run) tainted(name, key string, is bool) {
	r.Helper()
	r.eventually("taint "+key, func(ctx context.Context) error {
		node, err := r.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err == nil && slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key }) != is {
			err = fmt.Errorf("taints of %s: %v", name, node.Spec.Taints)
		}
		return err
	})
}

func taintEviction(r *run) {
	r.node(hollow.Config{Name: "tainted", Taints: r.keepOut()})
	place := func(name, more string) {
		r.apply(barePod, name, "", hollow.Linger+": 'true'", fmt.Sprintf("nodeName: tainted, tolerations: [{key: parity, value: %s}, %s], ", r.ns, more))
		r.reaches("pods/"+name, "status: {phase: Running}")
	}
	place("goes", "")
	place("goes-soon", "{key: trouble, effect: NoExecute, tolerationSeconds: 3}")
	place("waits", "{key: trouble, effect: NoExecute, tolerationSeconds: 3600}")
	place("stays", "{key: trouble, effect: NoExecute}")
	r.patch("nodes/tainted", "spec: {taints: [{key: parity, value: %s, effect: NoSchedule}, {key: trouble, effect: NoExecute}]}", r.ns)
	for _, name := range []string{"goes", "goes-soon"} {
		r.reaches("pods/"+name, "{metadata: {deletionTimestamp: '*'}, status: {conditions: [{type: DisruptionTarget, status: 'True', reason: DeletionByTaintManager}]}}")
		r.patch("pods/"+name, "metadata: {annotations: {%s: null}}", hollow.Linger)
		r.absent("pods/" + name)
	}
	r.event("Pod", "goes", "TaintManagerEviction", "")
	// Who comes to a tainted node goes as well, and who waits is let off when the taint goes.
	r.apply(barePod, "late", "", "", fmt.Sprintf("nodeName: tainted, tolerations: [{key: parity, value: %s}], ", r.ns))
	r.absent("pods/late")
	r.patch("nodes/tainted", "spec: {taints: [{key: parity, value: %s, effect: NoSchedule}]}", r.ns)
	r.event("Pod", "waits", "TaintManagerEviction", "Cancelling")
	r.want("pods/waits", "{metadata: {deletionTimestamp: null}, status: {phase: Running}}")
	r.want("pods/stays", "{metadata: {deletionTimestamp: null}, status: {phase: Running}}")
}

func scheduling(r *run) {
	r.apply(barePod, "anywhere", "", "", "")
	r.reaches("pods/anywhere", "{spec: {nodeName: '*'}, status: {conditions: [{type: PodScheduled, status: 'True'}]}}")
	r.apply(barePod, "nowhere", "", "", fmt.Sprintf("nodeSelector: {parity: %s}, %s", r.ns, r.tolerates()))
	r.reaches("pods/nowhere", "{spec: {nodeName: null}, status: {phase: Pending, conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable, message: '*'}]}}")
	r.event("Pod", "nowhere", "FailedScheduling", "nodes are available")
	r.apply(barePod, "gated", "", "", "schedulingGates: [{name: parity.example/gate}], ")
	r.reaches("pods/gated", "status: {conditions: [{type: PodScheduled, status: 'False', reason: SchedulingGated}]}")
	r.apply(barePod, "elsewhere", "", "", "schedulerName: another, ")
	// A node comes, a gate is opened, a label is set.
	r.node(hollow.Config{Name: "late", Labels: map[string]string{"parity": r.ns}, Taints: r.keepOut()})
	r.want("pods/nowhere", "{spec: {nodeName: late}, status: {phase: Running, conditions: [{type: PodScheduled, status: 'True'}]}}")
	r.patch("pods/gated", "spec: {schedulingGates: null}")
	r.want("pods/gated", "{spec: {nodeName: '*'}, status: {phase: Running}}")
	r.apply(barePod, "picky", "", "", "nodeSelector: {picked: 'yes'}, "+r.tolerates())
	r.reaches("pods/picky", "status: {conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable}]}")
	r.patch("nodes/late", "metadata: {labels: {picked: 'yes'}}")
	r.want("pods/picky", "spec: {nodeName: late}")
	r.want("pods/elsewhere", "{spec: {nodeName: null}, status: {phase: Pending, conditions: null}}")
}

func preemption(r *run) {
	r.node(hollow.Config{Name: "narrow", Labels: map[string]string{"parity": r.ns}, Taints: r.keepOut(),
		Resources: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("2")}})
	r.apply(`
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: parity-high}
value: 1000
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: parity-never}
value: 2000
preemptionPolicy: Never`)
	there := fmt.Sprintf("nodeSelector: {parity: %s}, %s", r.ns, r.tolerates())
	r.apply(barePod, "low-0", "", "", there)
	r.apply(barePod, "low-1", "keep: this", "", there)
	r.apply("{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: keep}, spec: {minAvailable: 1, selector: {matchLabels: {keep: this}}}}")
	for _, name := range []string{"low-0", "low-1"} {
		r.reaches("pods/"+name, "status: {phase: Running}")
		r.patch("pods/"+name, "metadata: {annotations: {%s: 'true'}}", hollow.Linger)
	}
	r.reaches("poddisruptionbudgets/keep", "status: {currentHealthy: 1, disruptionsAllowed: 0}")
	r.apply(barePod, "polite", "", "", there+"priorityClassName: parity-never, ")
	r.reaches("pods/polite", "status: {conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable}]}")
	r.apply(barePod, "high", "", "", there+"priorityClassName: parity-high, ")
	// Who is in no budget has to go.
	r.reaches("pods/low-0", "{metadata: {deletionTimestamp: '*'}, status: {conditions: [{type: DisruptionTarget, status: 'True', reason: PreemptionByScheduler}]}}")
	r.reaches("pods/high", "{spec: {nodeName: null, priority: 1000}, status: {nominatedNodeName: narrow}}")
	r.event("Pod", "low-0", "Preempted", "")
	// The place is the polite one's, which is more important, but would not have asked for it.
	r.delete("pods/polite")
	r.patch("pods/low-0", "metadata: {annotations: {%s: null}}", hollow.Linger)
	r.absent("pods/low-0")
	r.want("pods/high", "{spec: {nodeName: narrow}, status: {phase: Running}}")
	r.want("pods/low-1", "{metadata: {deletionTimestamp: null}, status: {phase: Running}}")
}

func spread(r *run) {
	for _, zone := range []string{"a", "b"} {
		r.node(hollow.Config{Name: "zone-" + zone, Labels: map[string]string{"parity": r.ns, "zone": zone}, Taints: r.keepOut(),
			Resources: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}})
	}
	there := fmt.Sprintf("nodeSelector: {parity: %s}, %s", r.ns, r.tolerates())
	for i := range 4 {
		r.apply(barePod, fmt.Sprintf("spread-%d", i), "app: spread", "", there+"topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: spread}}}], ")
	}
	r.eventually("two in each zone", func(context.Context) error {
		count := map[any]int{}
		for _, p := range r.list("pods", "app=spread") {
			count[field(&p, "spec", "nodeName")]++
		}
		if count["zone-a"] != 2 || count["zone-b"] != 2 {
			return fmt.Errorf("there are %v", count)
		}
		return nil
	})
	for i := range 3 {
		r.apply(barePod, fmt.Sprintf("alone-%d", i), "app: alone", "", there+"affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: alone}}}]}}, ")
	}
	waiting := func(app string) (names []string) {
		for _, p := range r.list("pods", "app="+app) {
			if field(&p, "spec", "nodeName") == nil {
				names = append(names, p.GetName())
			}
		}
		return names
	}
	r.eventually("one has no place", func(context.Context) error {
		if names := waiting("alone"); len(names) != 1 {
			return fmt.Errorf("these have none: %v", names)
		}
		return nil
	})
	left := waiting("alone")[0]
	r.reaches("pods/"+left, "status: {conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable}]}")
	for _, p := range r.list("pods", "app=alone") {
		if p.GetName() != left {
			r.delete("pods/" + p.GetName())
			break
		}
	}
	r.want("pods/"+left, "{spec: {nodeName: '*'}, status: {phase: Running}}")
	// What has no room waits for it.
	const heavy = "{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {app: heavy}}, spec: {%s containers: [{name: main, image: none, resources: {requests: {cpu: 1500m}}}]}}"
	for i := range 3 {
		r.apply(heavy, fmt.Sprintf("heavy-%d", i), there)
	}
	r.eventually("one has no room", func(context.Context) error {
		if len(waiting("heavy")) != 1 {
			return errors.New("not yet")
		}
		return nil
	})
	left = waiting("heavy")[0]
	r.reaches("pods/"+left, "status: {conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable}]}")
	for _, p := range r.list("pods", "app=heavy") {
		if p.GetName() != left {
			r.delete("pods/" + p.GetName())
			break
		}
	}
	r.want("pods/"+left, "{spec: {nodeName: '*'}, status: {phase: Running}}")
}
