package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// watchedFor is how long each resource is watched.
const watchedFor = 10 * time.Second

// listAll lists and watches every resource once, as controllers do at their start. What a server has more of after that,
// metrics of requests above all, it has after any client did that, wherever it runs.
func (s *server) listAll(ctx context.Context) error {
	lists, err := s.client.Discovery().ServerPreferredResources()
	if err != nil {
		return fmt.Errorf("asking %s for its resources: %w", s.name, err)
	}
	resources, err := discovery.GroupVersionResources(discovery.FilteredBy(discovery.SupportsAllVerbs{Verbs: []string{"list", "watch"}}, lists))
	if err != nil {
		return fmt.Errorf("reading the resources of %s: %w", s.name, err)
	}
	client, err := metadata.NewForConfigAndClient(metadata.ConfigFor(&rest.Config{Host: s.url, QPS: -1}), s.http)
	if err != nil {
		return fmt.Errorf("building a client of %s: %w", s.name, err)
	}
	var all sync.WaitGroup
	failed := make(chan error, len(resources))
	for resource := range resources {
		all.Go(func() {
			if err := listAndWatch(ctx, client.Resource(resource)); err != nil {
				failed <- fmt.Errorf("%s of %s: %w", resource.GroupResource(), s.name, err)
			}
		})
	}
	all.Wait()
	close(failed)
	var errs []error
	for err := range failed {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// listAndWatch does as an informer: a list from the watch cache, then a watch from there.
func listAndWatch(ctx context.Context, client metadata.ResourceInterface) error {
	list, err := client.List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return fmt.Errorf("listing: %w", err)
	}
	w, err := client.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion, AllowWatchBookmarks: true})
	if err != nil {
		return fmt.Errorf("watching: %w", err)
	}
	defer w.Stop()
	return pause(ctx, watchedFor)
}
