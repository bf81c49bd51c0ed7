//go:build wasip1

package main

import (
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/admissionregistration"
	"k8s.io/client-go/informers/apiserverinternal"
	"k8s.io/client-go/informers/apps"
	"k8s.io/client-go/informers/autoscaling"
	"k8s.io/client-go/informers/batch"
	"k8s.io/client-go/informers/certificates"
	"k8s.io/client-go/informers/coordination"
	"k8s.io/client-go/informers/core"
	"k8s.io/client-go/informers/discovery"
	"k8s.io/client-go/informers/events"
	"k8s.io/client-go/informers/extensions"
	"k8s.io/client-go/informers/flowcontrol"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/informers/lifecycle"
	"k8s.io/client-go/informers/networking"
	"k8s.io/client-go/informers/node"
	"k8s.io/client-go/informers/policy"
	"k8s.io/client-go/informers/rbac"
	"k8s.io/client-go/informers/resource"
	"k8s.io/client-go/informers/scheduling"
	"k8s.io/client-go/informers/storage"
	"k8s.io/client-go/informers/storagemigration"
	"k8s.io/client-go/tools/cache"
)

// An informer whose watch breaks lists again, and reports an object that was
// deleted and made anew meanwhile as one that was updated. For a controller that
// keeps a state of its own by UID, as the garbage collector does, that is not the
// same. Upstream is spared by chance: a watch breaks when the API server
// restarts, and then its controllers lose their state. Guests keep theirs, so
// here such an update becomes the deletion and the creation that it was.

// informerFactory is client-go's with informers that tell objects apart.
type informerFactory struct {
	informers.SharedInformerFactory
}

func (f informerFactory) InformerFor(obj runtime.Object, construct internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	return distinctInformer{f.SharedInformerFactory.InformerFor(obj, construct)}
}

func (f informerFactory) ForResource(r schema.GroupVersionResource) (informers.GenericInformer, error) {
	i, err := f.SharedInformerFactory.ForResource(r)
	if err != nil {
		return nil, err
	}
	return distinctGeneric{i}, nil
}

func (f informerFactory) Admissionregistration() admissionregistration.Interface {
	return admissionregistration.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Internal() apiserverinternal.Interface {
	return apiserverinternal.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Apps() apps.Interface {
	return apps.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Autoscaling() autoscaling.Interface {
	return autoscaling.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Batch() batch.Interface {
	return batch.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Certificates() certificates.Interface {
	return certificates.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Coordination() coordination.Interface {
	return coordination.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Core() core.Interface {
	return core.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Discovery() discovery.Interface {
	return discovery.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Events() events.Interface {
	return events.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Extensions() extensions.Interface {
	return extensions.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Flowcontrol() flowcontrol.Interface {
	return flowcontrol.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Networking() networking.Interface {
	return networking.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Lifecycle() lifecycle.Interface {
	return lifecycle.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Node() node.Interface {
	return node.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Policy() policy.Interface {
	return policy.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Rbac() rbac.Interface {
	return rbac.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Resource() resource.Interface {
	return resource.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Scheduling() scheduling.Interface {
	return scheduling.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Storage() storage.Interface {
	return storage.New(f, metav1.NamespaceAll, nil)
}

func (f informerFactory) Storagemigration() storagemigration.Interface {
	return storagemigration.New(f, metav1.NamespaceAll, nil)
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
