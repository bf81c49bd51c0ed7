package main

import (
	"context"

	"k8s.io/kubernetes/pkg/controller/endpoint"
	"k8s.io/kubernetes/pkg/controller/endpointslice"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

func init() {
	register(controllers.EndpointsController, "endpoint-controller", newEndpoints)
	register(controllers.EndpointSliceController, "endpointslice-controller", newEndpointSlice)
}

func newEndpoints(ctx context.Context, env *environment) (func(context.Context), error) {
	c := endpoint.NewEndpointController(
		ctx,
		env.informers.Core().V1().Pods(),
		env.informers.Core().V1().Services(),
		env.informers.Core().V1().Endpoints(),
		env.client,
		0, // upstream's default: changes are not batched
	)
	return func(ctx context.Context) { c.Run(ctx, env.options.ConcurrentEndpointSyncs) }, nil
}

func newEndpointSlice(ctx context.Context, env *environment) (func(context.Context), error) {
	c := endpointslice.NewController(
		ctx,
		env.informers.Core().V1().Pods(),
		env.informers.Core().V1().Services(),
		env.informers.Core().V1().Nodes(),
		env.informers.Discovery().V1().EndpointSlices(),
		env.options.MaxEndpointsPerSlice,
		env.client,
		0, // upstream's default: changes are not batched
	)
	return func(ctx context.Context) { c.Run(ctx, env.options.ConcurrentServiceEndpointSyncs) }, nil
}
