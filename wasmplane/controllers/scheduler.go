package controllers

import (
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers/options"
)

var scheduler = Declaration{
	Name:     options.Scheduler,
	Identity: "system:kube-scheduler",
	Resources: []string{
		"pods", "nodes", "namespaces", "services", "replicationcontrollers", "replicasets.apps", "statefulsets.apps",
		"poddisruptionbudgets.policy",
		"persistentvolumes", "persistentvolumeclaims", "storageclasses.storage.k8s.io", "csinodes.storage.k8s.io",
		"csidrivers.storage.k8s.io", "csistoragecapacities.storage.k8s.io", "volumeattachments.storage.k8s.io",
		"resourceclaims.resource.k8s.io", "resourceslices.resource.k8s.io", "deviceclasses.resource.k8s.io",
		"devicetaintrules.resource.k8s.io",
	},
	// These it looks up when it places a pod; that they change makes no pod fit that
	// did not before.
	Wait: map[string]Events{
		"namespaces":                  Any,
		"services":                    Any,
		"replicationcontrollers":      Any,
		"replicasets.apps":            Any,
		"statefulsets.apps":           Any,
		"poddisruptionbudgets.policy": Any,
	},
	// As long as every pod has its node there is nothing to do.
	Purpose: map[string][]Field{"pods": {{Name: "spec.nodeName", Path: []int{2, 10}, Absent: true}}},
	// It looks each second for pods whose back-off is over, which ends in less time
	// than the slack needs to begin; and each 30 seconds for pods that have been
	// unschedulable for 5 minutes, in case that it missed why they are no longer.
	TimerSlack:  5 * time.Minute,
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

// podGroupProtection ends at once, unless its feature gate, GenericWorkload, is on.
var podGroupProtection = Declaration{
	Name:        "podgroup-protection-controller",
	Identity:    serviceAccount + "podgroup-protection-controller",
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
