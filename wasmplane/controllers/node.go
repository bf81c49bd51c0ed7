package controllers

import "time"

// Upstream's names.
const (
	NodeIPAMController      = "node-ipam-controller"
	NodeLifecycleController = "node-lifecycle-controller"
	TaintEvictionController = "taint-eviction-controller"
)

// nodeController is the account that upstream's three controllers of nodes share.
const nodeController = serviceAccount + "node-controller"

// nodeTaint is a field of a node's taints, by its number in Taint, with a value.
func nodeTaint(name string, number int, value string) Field {
	return Field{Name: "spec.taints." + name, Path: []int{2, 5, number}, Value: value}
}

var nodeIPAM = Declaration{
	Name:      NodeIPAMController,
	Identity:  nodeController,
	Resources: []string{"nodes"},
	// A node gets its range when it comes and gives it back when it goes.
	Wait:        map[string]Events{"nodes": Modified},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var nodeLifecycle = Declaration{
	Name:      NodeLifecycleController,
	Identity:  nodeController,
	Resources: []string{"nodes", "leases.coordination.k8s.io", "pods", "daemonsets.apps"},
	Grants:    []string{"daemonsets.apps"},
	Wait:      map[string]Events{"leases.coordination.k8s.io": Any, "pods": Terminating | Deleted, "daemonsets.apps": Any},
	// Pods that come to a node interest it while that is not ready, and has its taint.
	Without: onlyWith("nodes", "pods"),
	Counting: map[string][]Field{"nodes": {
		nodeTaint("key", 1, "node.kubernetes.io/not-ready"),
		nodeTaint("key", 1, "node.kubernetes.io/unreachable"),
	}},
	// It looks at all nodes each 5 seconds, for those that have not renewed their
	// lease for 50 seconds. There is nothing to see while all leases are fresh.
	TimerSlack:  time.Hour,
	Heartbeat:   Heartbeat{Resource: "leases.coordination.k8s.io", Namespace: "kube-node-lease", Within: 40 * time.Second},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var taintEviction = Declaration{
	Name:      TaintEvictionController,
	Identity:  nodeController,
	Resources: []string{"pods", "nodes"},
	// It evicts pods, and forgets that it was to, by taints with this effect alone.
	Purpose:     map[string][]Field{"nodes": {nodeTaint("effect", 3, "NoExecute")}},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var ttl = Declaration{
	Name:      "ttl-controller",
	Identity:  serviceAccount + "ttl-controller",
	Resources: []string{"nodes"},
	// It writes an annotation that depends on how many nodes there are, in steps of
	// hundreds, and writes it again if it is gone. That there are fewer is written to
	// each node when it changes next.
	Wait:        map[string]Events{"nodes": Deleted},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
