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
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var replicaSet = Declaration{
	Name:        ReplicaSetController,
	Identity:    serviceAccount + "replicaset-controller",
	Resources:   []string{"replicasets.apps", "pods"},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
