package apiserver

import (
	"slices"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/controlplane" // all of upstream's resources
)

// resources are those that upstream has, and some names that are none.
func resources() map[schema.GroupResource]bool {
	known := map[schema.GroupResource]bool{
		apiextensionsv1.Resource("customresourcedefinitions"): true,
		apiregistrationv1.Resource("apiservices"):             true,
	}
	for kind := range legacyscheme.Scheme.AllKnownTypes() {
		resource, _ := meta.UnsafeGuessKindToResource(kind)
		known[resource.GroupResource()] = true
	}
	return known
}

// The API server ignores names that it does not know.
func TestUncachedResourcesExist(t *testing.T) {
	known := resources()
	sizes, err := options.ParseWatchCacheSizes(strings.Split(watchCacheSizes(), ","))
	if err != nil {
		t.Fatal(err)
	}
	if len(sizes) != len(uncached) {
		t.Errorf("%d resources, want %d", len(sizes), len(uncached))
	}
	for resource, size := range sizes {
		if !known[resource] || size != 0 {
			t.Errorf("%s with a cache of %d: no such resource, or not 0", resource, size)
		}
	}
	if !slices.IsSorted(uncached) {
		t.Error("not in order")
	}
}
