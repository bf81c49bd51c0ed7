package controllers

import "time"

// Upstream's names.
const (
	NamespaceController      = "namespace-controller"
	ServiceAccountController = "serviceaccount-controller"
	GarbageCollector         = "garbage-collector-controller"
	PodGarbageCollector      = "pod-garbage-collector-controller"
)

var namespace = Declaration{
	Name:      NamespaceController,
	Identity:  serviceAccount + "namespace-controller",
	Resources: []string{"namespaces"},
	// Only namespaces that are being deleted have work for it.
	Wait:        map[string]Events{"namespaces": Any &^ Terminating},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var serviceAccounts = Declaration{
	Name:      ServiceAccountController,
	Identity:  serviceAccount + "service-account-controller",
	Resources: []string{"serviceaccounts", "namespaces"},
	Grants:    []string{"serviceaccounts", "namespaces"},
	// Of accounts it handles only deletions; and nothing of namespaces that end.
	Wait:        map[string]Events{"serviceaccounts": Any &^ Deleted, "namespaces": Terminating | Deleted},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var garbageCollector = Declaration{
	Name:      GarbageCollector,
	Identity:  serviceAccount + "generic-garbage-collector",
	Resources: []string{"*"},
	// What it acts on is that objects come, are deleted, or go, and that they pass
	// from one owner to another. New kinds of resources are noticed through the objects
	// that define them.
	Wait: map[string]Events{
		"*": Modified,
		"customresourcedefinitions.apiextensions.k8s.io": 0,
		"apiservices.apiregistration.k8s.io":             0,
	},
	Changing: map[string][]Field{"*": {{Name: "metadata.ownerReferences", Path: []int{1, 13}}}},
	// Of these it only notes to whom they belong, unless the owner is gone.
	Late: map[string]Events{
		"*": Added | Modified,
		"customresourcedefinitions.apiextensions.k8s.io": 0,
		"apiservices.apiregistration.k8s.io":             0,
	},
	// No slack: what could not be deleted yet is tried again by timer.
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var podGarbageCollector = Declaration{
	Name:      PodGarbageCollector,
	Identity:  serviceAccount + "pod-garbage-collector",
	Resources: []string{"pods", "nodes"},
	// It looks at all pods each 20 seconds: for pods of deleted nodes, for terminating
	// ones that nobody ends, and for more finished ones than the threshold. While no
	// event waits it has seen them all. That a node is gone it believes after 40
	// seconds, and looks then at the third time.
	Wait:        map[string]Events{"pods": Any, "nodes": Added | Modified},
	Urgent:      map[string][]Field{"nodes": {nodeTaint("key", 1, "node.kubernetes.io/out-of-service")}},
	WaitLimit:   5 * time.Minute,
	TimerSlack:  time.Hour,
	SlackAfter:  90 * time.Second,
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var clusterRoleAggregation = Declaration{
	Name:        "clusterrole-aggregation-controller",
	Identity:    serviceAccount + "clusterrole-aggregation-controller",
	Resources:   []string{"clusterroles.rbac.authorization.k8s.io"},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var validatingAdmissionPolicyStatus = Declaration{
	Name:        "validatingadmissionpolicy-status-controller",
	Identity:    serviceAccount + "validatingadmissionpolicy-status-controller",
	Resources:   []string{"validatingadmissionpolicies.admissionregistration.k8s.io"},
	Wait:        map[string]Events{"validatingadmissionpolicies.admissionregistration.k8s.io": Deleted},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
