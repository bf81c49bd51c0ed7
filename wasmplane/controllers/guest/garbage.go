//go:build wasip1

package main

import (
	"context"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
)

// metadataInformers are informers of metadata that tell objects apart.
type metadataInformers struct {
	metadatainformer.SharedInformerFactory
}

func (f metadataInformers) ForResource(r schema.GroupVersionResource) informers.GenericInformer {
	return distinctGeneric{f.SharedInformerFactory.ForResource(r)}
}

// graphInformers give metadata for every resource, where upstream's garbage
// collector gets the typed informers that other controllers fill anyway: a guest
// shares none.
type graphInformers struct{ metadataInformers }

func (f graphInformers) ForResource(r schema.GroupVersionResource) (informers.GenericInformer, error) {
	return f.metadataInformers.ForResource(r), nil
}

// newGraph makes the graph of owners and dependents.
func (e *environment) newGraph(ctx context.Context) *garbagecollector.GraphBuilder {
	ignored := map[schema.GroupResource]struct{}{}
	for _, r := range e.ComponentConfig.GarbageCollectorController.GCIgnoredResources {
		ignored[schema.GroupResource{Group: r.Group, Resource: r.Resource}] = struct{}{}
	}
	factory := metadatainformer.NewSharedInformerFactoryWithOptions(clients.metadata, 0, metadatainformer.WithTransform(trimToOwners))
	return garbagecollector.NewDependencyGraphBuilder(ctx, clients.metadata, e.RESTMapper, ignored, graphInformers{metadataInformers{factory}}, e.InformersStarted)
}

// trimToOwners drops from cached metadata what the graph does not need.
func trimToOwners(obj any) (any, error) {
	if o, err := meta.Accessor(obj); err == nil {
		o.SetManagedFields(nil)
		o.SetAnnotations(nil)
		o.SetLabels(nil)
	}
	return obj, nil
}

// distinctGeneric is a generic informer that tells objects apart.
type distinctGeneric struct{ informers.GenericInformer }

func (i distinctGeneric) Informer() cache.SharedIndexInformer {
	return distinctInformer{i.GenericInformer.Informer()}
}
