package main

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

const (
	// firstSync is how long garbage collection waits for its caches at the
	// start, as upstream does.
	firstSync = 30 * time.Second
	// discoveryPeriod is how often the collector looks for new kinds of
	// resources without a sign of any: never, as it would have to wake for it.
	// Upstream asks each 30 seconds; here the definitions of kinds are watched.
	discoveryPeriod = 100 * 365 * 24 * time.Hour
	// discoveryDelay is how long the API server takes to show a kind after the
	// object that defines it has changed.
	discoveryDelay = 2 * time.Second
)

func init() {
	register(controllers.GarbageCollector, "generic-garbage-collector", newGarbageCollector)
}

// metadataInformers gives the collector metadata for every resource. Upstream
// gives it the typed informers which other controllers fill anyway; a guest
// shares none.
type metadataInformers struct {
	metadatainformer.SharedInformerFactory
}

func (f metadataInformers) ForResource(r schema.GroupVersionResource) (informers.GenericInformer, error) {
	return metadataInformer{f.SharedInformerFactory.ForResource(r)}, nil
}

type metadataInformer struct {
	informers.GenericInformer
}

func (i metadataInformer) Informer() cache.SharedIndexInformer {
	return distinctInformer{i.GenericInformer.Informer()}
}

func newGarbageCollector(ctx context.Context, env *environment) (func(context.Context), error) {
	m, err := metadata.NewForConfig(env.config)
	if err != nil {
		return nil, err
	}
	factory := metadataInformers{metadatainformer.NewSharedInformerFactoryWithOptions(m, 0, metadatainformer.WithTransform(trimToOwners))}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(env.client.Discovery()))
	started := make(chan struct{})
	graph := garbagecollector.NewDependencyGraphBuilder(ctx, m, mapper, garbagecollector.DefaultIgnoredResources(), factory, started)
	c, err := garbagecollector.NewComposedGarbageCollector(ctx, env.client, m, mapper, graph)
	if err != nil {
		return nil, err
	}
	changed, err := watchKinds(factory)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		factory.Start(ctx.Done())
		close(started)
		var wg sync.WaitGroup
		wg.Go(func() { c.Run(ctx, env.options.ConcurrentGCSyncs, firstSync) })
		wg.Go(func() { syncKinds(ctx, c, env.client.Discovery(), changed) })
		wg.Wait()
	}, nil
}

// trimToOwners drops from cached metadata what the collector does not read.
func trimToOwners(obj any) (any, error) {
	if o, err := meta.Accessor(obj); err == nil {
		o.SetManagedFields(nil)
		o.SetAnnotations(nil)
		o.SetLabels(nil)
	}
	return obj, nil
}

// watchKinds returns a channel that has an element when definitions of resources
// may have changed.
func watchKinds(factory metadataInformers) (<-chan struct{}, error) {
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(_ any, initial bool) {
			if !initial {
				notify()
			}
		},
		UpdateFunc: func(_, _ any) { notify() },
		DeleteFunc: func(any) { notify() },
	}
	for _, r := range []schema.GroupVersionResource{
		{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
		{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"},
	} {
		informer, err := factory.ForResource(r)
		if err != nil {
			return nil, err
		}
		if _, err := informer.Informer().AddEventHandler(handler); err != nil {
			return nil, err
		}
	}
	return changed, nil
}

// syncKinds keeps the collector's set of resources up to date until ctx is done.
// Sync reads discovery at once and then periodically; it is started anew after
// each change.
func syncKinds(ctx context.Context, c *garbagecollector.GarbageCollector, d discovery.DiscoveryInterface, changed <-chan struct{}) {
	for ctx.Err() == nil {
		round, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { c.Sync(round, d, discoveryPeriod) })
		select {
		case <-changed:
			select {
			case <-time.After(discoveryDelay):
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		stop()
		wg.Wait()
	}
}
