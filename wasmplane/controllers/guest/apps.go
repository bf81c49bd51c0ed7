package main

import (
	"context"

	"k8s.io/kubernetes/pkg/controller/deployment"
	"k8s.io/kubernetes/pkg/controller/replicaset"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

func init() {
	register(controllers.DeploymentController, "deployment-controller", newDeployment)
	register(controllers.ReplicaSetController, "replicaset-controller", newReplicaSet)
}

func newDeployment(ctx context.Context, env *environment) (func(context.Context), error) {
	c, err := deployment.NewDeploymentController(
		ctx,
		env.informers.Apps().V1().Deployments(),
		env.informers.Apps().V1().ReplicaSets(),
		env.informers.Core().V1().Pods(),
		env.client,
	)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, env.options.ConcurrentDeploymentSyncs) }, nil
}

func newReplicaSet(ctx context.Context, env *environment) (func(context.Context), error) {
	c := replicaset.NewReplicaSetController(
		ctx,
		env.informers.Apps().V1().ReplicaSets(),
		env.informers.Core().V1().Pods(),
		env.client,
		replicaset.BurstReplicas,
	)
	return func(ctx context.Context) { c.Run(ctx, env.options.ConcurrentReplicaSetSyncs) }, nil
}
