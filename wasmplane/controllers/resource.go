package controllers

var resourceQuota = Declaration{
	Name:      "resourcequota-controller",
	Identity:  serviceAccount + "resourcequota-controller",
	Resources: []string{"*"},
	// What admission has counted it counts again when objects go, and of some kinds
	// when they change. New kinds of resources are noticed through the objects that
	// define them.
	Wait: map[string]Events{
		"*":                      Any &^ Deleted,
		"pods":                   Added,
		"services":               Added,
		"persistentvolumeclaims": Added,
		"resourcequotas":         Terminating,
		"customresourcedefinitions.apiextensions.k8s.io": 0,
		"apiservices.apiregistration.k8s.io":             0,
	},
	Without: onlyWith("resourcequotas",
		"configmaps", "endpoints", "limitranges", "persistentvolumeclaims", "pods", "podtemplates",
		"replicationcontrollers", "secrets", "serviceaccounts", "services",
		"controllerrevisions.apps", "daemonsets.apps", "deployments.apps", "replicasets.apps", "statefulsets.apps",
		"cronjobs.batch", "jobs.batch",
		"endpointslices.discovery.k8s.io", "horizontalpodautoscalers.autoscaling", "leases.coordination.k8s.io",
		"ingresses.networking.k8s.io", "networkpolicies.networking.k8s.io", "poddisruptionbudgets.policy",
		"podcertificaterequests.certificates.k8s.io",
		"roles.rbac.authorization.k8s.io", "rolebindings.rbac.authorization.k8s.io",
		"resourceclaims.resource.k8s.io", "resourceclaimtemplates.resource.k8s.io",
		"csistoragecapacities.storage.k8s.io",
		"customresourcedefinitions.apiextensions.k8s.io", "apiservices.apiregistration.k8s.io"),
	// It counts everything again each 5 minutes, for what was counted and then not
	// created.
	TimersFor:   []string{"resourcequotas"},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

// claimingPods are pods that use devices. The claim for an extended resource is in
// their status only.
var claimingPods = []Field{
	{Name: "spec.resourceClaims", Path: []int{2, 39}},
	{Name: "status.extendedResourceClaimStatus", Path: []int{3, 18}},
}

var resourceClaim = Declaration{
	Name:      "resourceclaim-controller",
	Identity:  serviceAccount + "resource-claim-controller",
	Resources: []string{"pods", "resourceclaims.resource.k8s.io", "resourceclaimtemplates.resource.k8s.io"},
	Grants:    []string{"resourceclaimtemplates.resource.k8s.io"},
	// Deletions of templates it only logs.
	Wait:        map[string]Events{"resourceclaimtemplates.resource.k8s.io": Deleted},
	Having:      map[string][]Field{"pods": claimingPods},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var deviceTaintEviction = Declaration{
	Name:     "device-taint-eviction-controller",
	Identity: serviceAccount + "device-taint-eviction-controller",
	Resources: []string{"pods", "resourceclaims.resource.k8s.io", "resourceslices.resource.k8s.io",
		"devicetaintrules.resource.k8s.io", "deviceclasses.resource.k8s.io"},
	// Classes are watched, but nobody looks at them.
	Wait:   map[string]Events{"deviceclasses.resource.k8s.io": Any},
	Having: map[string][]Field{"pods": claimingPods},
	// Taints are in slices and rules. Without any there is nothing to evict.
	Without: map[string][]string{
		"pods":                           {"resourceslices.resource.k8s.io", "devicetaintrules.resource.k8s.io"},
		"resourceclaims.resource.k8s.io": {"resourceslices.resource.k8s.io", "devicetaintrules.resource.k8s.io"},
	},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

// resourcePoolStatusRequest ends at once, unless its feature gate,
// DRAResourcePoolStatus, is on.
var resourcePoolStatusRequest = Declaration{
	Name:        "resourcepoolstatusrequest-controller",
	Identity:    serviceAccount + "resourcepoolstatusrequest-controller",
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
