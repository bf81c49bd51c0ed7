package main

import (
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/apps"
	"k8s.io/client-go/informers/coordination"
	"k8s.io/client-go/informers/core"
	"k8s.io/client-go/informers/discovery"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/tools/cache"
)

// An informer whose watch breaks lists again, and reports an object that was
// deleted and made anew meanwhile as one that was updated. For a controller that
// keeps a state of its own by UID, as the garbage collector does, that is not the
// same. Upstream is spared by chance: a watch breaks when the API server
// restarts, and then its controllers lose their state. Guests keep theirs, so
// here such an update becomes the deletion and the creation that it was.

// informerFactory is client-go's with informers that tell objects apart. It
// covers the groups that controllers here use.
type informerFactory struct {
	informers.SharedInformerFactory
}

func (f informerFactory) InformerFor(obj runtime.Object, construct internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	return distinctInformer{f.SharedInformerFactory.InformerFor(obj, construct)}
}

func (f informerFactory) Apps() apps.Interface { return apps.New(f, metav1.NamespaceAll, nil) }
func (f informerFactory) Core() core.Interface { return core.New(f, metav1.NamespaceAll, nil) }

func (f informerFactory) Coordination() coordination.Interface {
	return coordination.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Discovery() discovery.Interface {
	return discovery.New(f, metav1.NamespaceAll, nil)
}

// distinctInformer gives its handlers no update from one object to another.
type distinctInformer struct {
	cache.SharedIndexInformer
}

func (i distinctInformer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandler(distinctHandler{h})
}

func (i distinctInformer) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler, period time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandlerWithResyncPeriod(distinctHandler{h}, period)
}

func (i distinctInformer) AddEventHandlerWithOptions(h cache.ResourceEventHandler, options cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandlerWithOptions(distinctHandler{h}, options)
}

type distinctHandler struct {
	cache.ResourceEventHandler
}

func (h distinctHandler) OnUpdate(before, after any) {
	b, err := meta.Accessor(before)
	a, afterErr := meta.Accessor(after)
	if err == nil && afterErr == nil && b.GetUID() != a.GetUID() {
		h.OnDelete(before)
		h.OnAdd(after, false)
		return
	}
	h.ResourceEventHandler.OnUpdate(before, after)
}
