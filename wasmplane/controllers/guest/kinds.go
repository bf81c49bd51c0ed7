//go:build wasip1

package main

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/tools/cache"
)

const (
	// forever is the period of what is not to be repeated.
	forever = 100 * 365 * 24 * time.Hour
	// discoveryDelay is how long the API server takes to show a kind after the
	// object that defines it has changed.
	discoveryDelay = 2 * time.Second
)

// kinds are the resources whose objects define the kinds of others.
var kinds = []schema.GroupVersionResource{
	{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
	{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"},
}

// syncKinds is app.SyncKinds. Upstream asks each 30 seconds which kinds there are;
// here the objects that define them are watched.
func (e *environment) syncKinds(ctx context.Context, sync func(ctx context.Context, period time.Duration)) {
	changed := make(chan struct{}, 1)
	for _, r := range kinds {
		i := e.metadata.ForResource(r).Informer()
		if _, err := i.AddEventHandler(notifies(changed)); err != nil {
			utilruntime.HandleError(err)
			return
		}
	}
	e.metadata.Start(ctx.Done())
	repeat(ctx, changed, discoveryDelay, sync)
}

// notifies leaves a sign in a channel of capacity one when objects change.
func notifies(changed chan<- struct{}) cache.ResourceEventHandler {
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	return cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(_ any, initial bool) {
			if !initial {
				notify()
			}
		},
		UpdateFunc: func(_, _ any) { notify() },
		DeleteFunc: func(any) { notify() },
	}
}

// repeat runs f until ctx is done; it ends and starts it again some time after each
// sign in changed.
func repeat(ctx context.Context, changed <-chan struct{}, delay time.Duration, f func(ctx context.Context, period time.Duration)) {
	for ctx.Err() == nil {
		round, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { f(round, forever) })
		select {
		case <-changed:
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		stop()
		wg.Wait()
	}
}
