package main

import (
	"context"
	"errors"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	namespacecontroller "k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/podgc"
	"k8s.io/kubernetes/pkg/controller/serviceaccount"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

func init() {
	register(controllers.NamespaceController, "namespace-controller", newNamespace)
	register(controllers.ServiceAccountController, "service-account-controller", newServiceAccount)
	register(controllers.RootCAPublisherController, "root-ca-cert-publisher", newRootCAPublisher)
	register(controllers.PodGarbageCollector, "pod-garbage-collector", newPodGC)
}

func newNamespace(ctx context.Context, env *environment) (func(context.Context), error) {
	m, err := metadata.NewForConfig(env.config)
	if err != nil {
		return nil, err
	}
	c := namespacecontroller.NewNamespaceController(
		ctx,
		env.client,
		m,
		env.client.Discovery().ServerPreferredNamespacedResources,
		env.informers.Core().V1().Namespaces(),
		0, // no resync, as for all informers; upstream's default is 5 minutes
		v1.FinalizerKubernetes,
	)
	return func(ctx context.Context) { c.Run(ctx, env.options.ConcurrentNamespaceSyncs) }, nil
}

func newServiceAccount(ctx context.Context, env *environment) (func(context.Context), error) {
	c, err := serviceaccount.NewServiceAccountsController(
		klog.FromContext(ctx),
		env.informers.Core().V1().ServiceAccounts(),
		env.informers.Core().V1().Namespaces(),
		env.client,
		serviceaccount.DefaultServiceAccountsControllerOptions(),
	)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newRootCAPublisher(_ context.Context, env *environment) (func(context.Context), error) {
	if env.options.RootCA == "" {
		return nil, errors.New("no root CA is given")
	}
	c, err := rootcacertpublisher.NewPublisher(
		env.informers.Core().V1().ConfigMaps(),
		env.informers.Core().V1().Namespaces(),
		env.client,
		[]byte(env.options.RootCA),
	)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newPodGC(ctx context.Context, env *environment) (func(context.Context), error) {
	c := podgc.NewPodGC(
		ctx,
		env.client,
		env.informers.Core().V1().Pods(),
		env.informers.Core().V1().Nodes(),
		env.options.TerminatedPodGCThreshold,
	)
	return c.Run, nil
}
