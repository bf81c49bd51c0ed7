package apiserver

import (
	"context"
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/kubeapiserver"

	"github.com/dormouse-k8s/dormouse/server/changes"
)

// Changes says when objects change, by the keys under which the API server keeps them. Resources are named as in
// "pods" and "leases.coordination.k8s.io". It is safe for concurrent use.
type Changes struct{ datastore *changes.Changes }

// Changes are those of the datastore; nil if the user has the API server use others than Config.Etcd.
func (s *Server) Changes() *Changes {
	etcd := s.options.Etcd
	if len(etcd.EtcdServersOverrides) > 0 || !slices.Equal(etcd.StorageConfig.Transport.ServerList, []string{s.etcd}) {
		return nil
	}
	return &Changes{changes.New(s.etcd, etcd.StorageConfig.Prefix)}
}

// Run follows the datastore until ctx is done. It calls ready once it sees every change.
func (c *Changes) Run(ctx context.Context, ready func()) error { return c.datastore.Run(ctx, ready) }

// UpTo is a version up to which no object of a resource has become newer than since: since itself where that
// cannot be told.
func (c *Changes) UpTo(resource string, since uint64) uint64 {
	place, certain := placeOf(resource)
	return c.datastore.UpTo(place, certain, since)
}

// Await calls changed once, when an object of a resource has become newer than since, with a version up to which
// none had. stop has it not do so. It is not ok where that cannot be told.
func (c *Changes) Await(resource string, since uint64, changed func(before uint64)) (stop func(), ok bool) {
	place, certain := placeOf(resource)
	return c.datastore.Await(place, certain, since, changed)
}

// placeOf is where the objects of a resource are. It is not certain for one that is none of upstream's: another
// server may serve it.
func placeOf(resource string) (place string, certain bool) {
	r := schema.ParseGroupResource(resource)
	switch r.Group {
	case apiextensions.GroupName, apiregistration.GroupName:
		return changes.Place(r.Group + "/" + r.Resource), true
	}
	if !legacyscheme.Scheme.IsGroupRegistered(r.Group) {
		return changes.Place(r.Group + "/" + r.Resource), false
	}
	if prefix, special := kubeapiserver.SpecialDefaultResourcePrefixes[r]; special {
		return changes.Place(prefix), true
	}
	return changes.Place(r.Resource), true
}
