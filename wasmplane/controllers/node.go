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
	// Pods interest it once their node is not ready, and then the node wakes it.
	Wait: map[string]Events{"leases.coordination.k8s.io": Any, "pods": Any, "daemonsets.apps": Any},
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
	// Pods interest it once their node is tainted, and then the node wakes it.
	Wait:        map[string]Events{"pods": Any},
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
