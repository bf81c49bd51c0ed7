package controllers

import "time"

// Upstream's names.
const (
	NamespaceController       = "namespace-controller"
	ServiceAccountController  = "serviceaccount-controller"
	RootCAPublisherController = "root-ca-certificate-publisher-controller"
	GarbageCollector          = "garbage-collector-controller"
	PodGarbageCollector       = "pod-garbage-collector-controller"
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
	// Of accounts it handles only deletions.
	Wait:        map[string]Events{"serviceaccounts": Any &^ Deleted},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var rootCAPublisher = Declaration{
	Name:      RootCAPublisherController,
	Identity:  serviceAccount + "root-ca-cert-publisher",
	Resources: []string{"configmaps", "namespaces"},
	Grants:    []string{"configmaps", "namespaces"},
	// Of ConfigMaps it handles only updates and deletions of its own.
	Wait:        map[string]Events{"configmaps": Added},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var garbageCollector = Declaration{
	Name:      GarbageCollector,
	Identity:  serviceAccount + "generic-garbage-collector",
	Resources: []string{"*"},
	// What it acts on is that objects come, are deleted, or go. A changed owner
	// reference is looked at with the next of these. New kinds of resources are
	// noticed through the objects that define them.
	Wait: map[string]Events{
		"*": Modified,
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
	// It looks at all pods each 20 seconds: for pods of deleted nodes, and for
	// more finished ones than the threshold.
	Wait:        map[string]Events{"pods": Any, "nodes": Added | Modified},
	TimerSlack:  5 * time.Minute,
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
