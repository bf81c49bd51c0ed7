package controllers

// DeploymentController and ReplicaSetController are upstream's names.
const (
	DeploymentController = "deployment-controller"
	ReplicaSetController = "replicaset-controller"
)

var deployment = Declaration{
	Name:      DeploymentController,
	Identity:  serviceAccount + "deployment-controller",
	Resources: []string{"deployments.apps", "replicasets.apps", "pods"},
	// It handles only deletions of pods (strategy Recreate); their state reaches
	// it through the status of ReplicaSets.
	Wait:        map[string]Events{"pods": Any &^ Deleted},
	Owned:       map[string][]string{"replicasets.apps": {"Deployment"}, "pods": {"ReplicaSet"}},
	Without:     onlyWith("deployments.apps", "replicasets.apps", "pods"),
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var replicaSet = Declaration{
	Name:        ReplicaSetController,
	Identity:    serviceAccount + "replicaset-controller",
	Resources:   []string{"replicasets.apps", "pods"},
	Owned:       map[string][]string{"pods": {"ReplicaSet"}},
	Without:     onlyWith("replicasets.apps", "pods"),
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var replicationController = Declaration{
	Name:        "replicationcontroller-controller",
	Identity:    serviceAccount + "replication-controller",
	Resources:   []string{"replicationcontrollers", "pods"},
	Owned:       map[string][]string{"pods": {"ReplicationController"}},
	Without:     onlyWith("replicationcontrollers", "pods"),
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var statefulSet = Declaration{
	Name:      "statefulset-controller",
	Identity:  serviceAccount + "statefulset-controller",
	Resources: []string{"statefulsets.apps", "pods", "persistentvolumeclaims", "controllerrevisions.apps"},
	// Claims and revisions it looks up when a set or a pod calls for it.
	Wait:        map[string]Events{"persistentvolumeclaims": Any, "controllerrevisions.apps": Any},
	Owned:       map[string][]string{"pods": {"StatefulSet"}},
	Without:     onlyWith("statefulsets.apps", "pods"),
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var daemonSet = Declaration{
	Name:      "daemonset-controller",
	Identity:  serviceAccount + "daemon-set-controller",
	Resources: []string{"daemonsets.apps", "controllerrevisions.apps", "pods", "nodes"},
	// It does not handle deletions of nodes: their pods go, too.
	Wait:    map[string]Events{"nodes": Deleted},
	Owned:   map[string][]string{"pods": {"DaemonSet"}, "controllerrevisions.apps": {"DaemonSet"}},
	Without: onlyWith("daemonsets.apps", "controllerrevisions.apps", "pods", "nodes"),
	// The one timer that is always there forgets old back-offs. The others are of
	// sets: minReadySeconds, pods that failed.
	TimersFor:   []string{"daemonsets.apps"},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var disruption = Declaration{
	Name:     "disruption-controller",
	Identity: serviceAccount + "disruption-controller",
	Resources: []string{"pods", "poddisruptionbudgets.policy", "replicationcontrollers", "replicasets.apps",
		"deployments.apps", "statefulsets.apps"},
	Grants: []string{"pods"},
	// What controls a pod it looks up when the pod or a budget changes.
	Wait: map[string]Events{
		"replicationcontrollers": Any,
		"replicasets.apps":       Any,
		"deployments.apps":       Any,
		"statefulsets.apps":      Any,
	},
	// The condition DisruptionTarget of a pod that was not deleted after all is reset
	// without a budget, too, 2 minutes after it was set. That may be late.
	Without:     onlyWith("poddisruptionbudgets.policy", "pods"),
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
