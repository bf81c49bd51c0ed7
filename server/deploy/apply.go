package deploy

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// fieldManager owns what manifests say of an object.
const fieldManager = "dormouse"

// A new kind is served a moment after its definition has been accepted.
const (
	kindPatience = 10 * time.Second
	kindPoll     = 50 * time.Millisecond
)

var (
	namespaceKind = schema.GroupKind{Kind: "Namespace"}
	crdKind       = schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}
)

// applier applies objects, over a time in which what the API server serves hardly changes: it asks once
// per group and version. It is not safe for concurrent use.
type applier struct {
	dynamic   dynamic.Interface
	discovery discovery.ServerResourcesInterfaceWithContext
	served    map[schema.GroupVersion][]metav1.APIResource
	// defined are kinds whose definition has been applied, and which should be served soon if not already.
	defined map[schema.GroupKind]bool
}

func newApplier(config *rest.Config) (*applier, error) {
	d, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("building a client: %w", err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("building a discovery client: %w", err)
	}
	a := &applier{dynamic: d, discovery: disco}
	a.forget()
	return a, nil
}

// forget makes the applier ask again for what is served.
func (a *applier) forget() {
	a.served = map[schema.GroupVersion][]metav1.APIResource{}
	a.defined = map[schema.GroupKind]bool{}
}

// apply applies all objects, as far as the API server takes them. It returns how many it has taken, and
// an error that names each of the others.
func (a *applier) apply(ctx context.Context, objects []*unstructured.Unstructured) (taken int, err error) {
	var errs []error
	for _, o := range objects {
		if err := a.applyObject(ctx, o); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", describe(o), err))
			continue
		}
		taken++
	}
	return taken, utilerrors.NewAggregate(errs)
}

// applyObject applies one object. A kind that has just been defined may need a moment to be served.
func (a *applier) applyObject(ctx context.Context, o *unstructured.Unstructured) error {
	gvk := o.GroupVersionKind()
	err := a.patch(ctx, o)
	if a.defined[gvk.GroupKind()] && notServed(err) {
		// When the time is up the last error says more than "timed out".
		_ = wait.PollUntilContextTimeout(ctx, kindPoll, kindPatience, false, func(ctx context.Context) (bool, error) {
			delete(a.served, gvk.GroupVersion())
			err = a.patch(ctx, o)
			return !notServed(err), nil
		})
		if notServed(err) {
			delete(a.defined, gvk.GroupKind()) // others of this kind need not wait as well
		}
	}
	if err == nil && gvk.GroupKind() == crdKind {
		group, _, _ := unstructured.NestedString(o.Object, "spec", "group")
		kind, _, _ := unstructured.NestedString(o.Object, "spec", "names", "kind")
		a.defined[schema.GroupKind{Group: group, Kind: kind}] = true
	}
	return err
}

// patch sends one object to where its kind is served.
func (a *applier) patch(ctx context.Context, o *unstructured.Unstructured) error {
	resource, err := a.resource(ctx, o.GroupVersionKind())
	if err != nil {
		return err
	}
	namespace := ""
	if resource.Namespaced {
		namespace = cmp.Or(o.GetNamespace(), metav1.NamespaceDefault)
	}
	client := a.dynamic.Resource(o.GroupVersionKind().GroupVersion().WithResource(resource.Name))
	_, err = client.Namespace(namespace).Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}

// resource returns the resource that holds objects of a kind.
func (a *applier) resource(ctx context.Context, gvk schema.GroupVersionKind) (metav1.APIResource, error) {
	gv := gvk.GroupVersion()
	if _, asked := a.served[gv]; !asked {
		list, err := a.discovery.ServerResourcesForGroupVersionWithContext(ctx, gv.String())
		if err != nil && !apierrors.IsNotFound(err) {
			return metav1.APIResource{}, fmt.Errorf("asking what %s holds: %w", gv, err)
		}
		a.served[gv] = nil
		if list != nil {
			a.served[gv] = list.APIResources
		}
	}
	for _, r := range a.served[gv] {
		if r.Kind == gvk.Kind && !strings.Contains(r.Name, "/") { // not a subresource
			return r, nil
		}
	}
	return metav1.APIResource{}, &meta.NoKindMatchError{GroupKind: gvk.GroupKind(), SearchedVersions: []string{gvk.Version}}
}

// notServed says whether err may mean that the kind is not served yet.
func notServed(err error) bool {
	return meta.IsNoMatchError(err) || apierrors.IsNotFound(err) || apierrors.IsServiceUnavailable(err)
}

// describe names an object as users do.
func describe(o *unstructured.Unstructured) string {
	name := o.GetName()
	if o.GetNamespace() != "" {
		name = o.GetNamespace() + "/" + name
	}
	return strings.TrimSpace(o.GetKind() + " " + name)
}
