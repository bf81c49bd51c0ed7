//go:build wasip1

package main

import (
	"context"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/discovery"
	listers "k8s.io/client-go/listers/storagemigration/v1"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"

	storagemigration "k8s.io/api/storagemigration/v1"
)

// The storage version migrator reads the objects that it writes anew from the
// garbage collector's graph. As a guest it has a graph of its own, which holds just
// what is being migrated: whoever asks discovery for it is told of nothing else.

// followMigrations keeps the graph at what is being migrated until ctx is done.
func (e *environment) followMigrations(ctx context.Context) {
	if err := e.syncMigrations(ctx); err != nil {
		utilruntime.HandleError(err)
	}
}

func (e *environment) syncMigrations(ctx context.Context) error {
	gc, err := garbagecollector.NewComposedGarbageCollector(ctx, clients.set, clients.metadata, e.RESTMapper, e.GraphBuilder)
	if err != nil {
		return err
	}
	migrations := e.InformerFactory.Storagemigration().V1().StorageVersionMigrations()
	changed := make(chan struct{}, 1)
	if _, err := migrations.Informer().AddEventHandler(notifies(changed)); err != nil {
		return err
	}
	e.InformerFactory.Start(ctx.Done())
	e.InformerFactory.WaitForCacheSync(ctx.Done())
	go e.GraphBuilder.Run(ctx)
	repeat(ctx, changed, 0, func(ctx context.Context, period time.Duration) {
		gc.Sync(ctx, migrated{clients.set.Discovery(), migrations.Lister()}, period)
	})
	return ctx.Err()
}

// migrated is discovery that knows only of what is being migrated, and of the
// migrations themselves: where it knew of nothing the last graph would stay.
type migrated struct {
	discovery.DiscoveryInterface
	migrations listers.StorageVersionMigrationLister
}

func (m migrated) ServerPreferredResources() ([]*metav1.APIResourceList, error) {
	all, err := m.DiscoveryInterface.ServerPreferredResources()
	migrations, listErr := m.migrations.List(labels.Everything())
	if listErr != nil {
		return nil, listErr
	}
	wanted := map[schema.GroupResource]bool{
		storagemigration.SchemeGroupVersion.WithResource("storageversionmigrations").GroupResource(): true,
	}
	for _, s := range migrations {
		// What is listed once the resource version is known is as new as that. The
		// migrator waits for it, and the bookmarks that would say so later do not
		// reach a guest.
		if !ended(s) && s.Status.ResourceVersion != "" {
			wanted[schema.GroupResource{Group: s.Spec.Resource.Group, Resource: s.Spec.Resource.Resource}] = true
		}
	}
	for _, list := range all {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			continue
		}
		list.APIResources = slices.DeleteFunc(slices.Clone(list.APIResources), func(r metav1.APIResource) bool {
			return !wanted[schema.GroupResource{Group: gv.Group, Resource: r.Name}]
		})
	}
	return all, err
}

func ended(s *storagemigration.StorageVersionMigration) bool {
	return meta.IsStatusConditionTrue(s.Status.Conditions, string(storagemigration.MigrationSucceeded)) ||
		meta.IsStatusConditionTrue(s.Status.Conditions, string(storagemigration.MigrationFailed))
}
