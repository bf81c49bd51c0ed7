//go:build wasip1

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/restmapper"
	"k8s.io/component-base/featuregate"
	controllersmetrics "k8s.io/component-base/metrics/prometheus/controllers"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers/options"
)

// environment is what kube-controller-manager prepares for its controllers, for
// one of them.
type environment struct {
	app.ControllerContext
	metadata metadataInformers
}

// newEnvironment does what upstream's CreateControllerContext does.
func newEnvironment(ctx context.Context, s abi.Start) (*environment, error) {
	o, err := readOptions(s.Options)
	if err != nil {
		return nil, err
	}
	env := &environment{}
	if err := json.Unmarshal(o.ControllerManager, &env.ComponentConfig); err != nil {
		return nil, fmt.Errorf("reading its configuration: %w", err)
	}
	env.ClientBuilder = builder{}
	env.ResyncPeriod = func() time.Duration { return 0 } // it only repeats what the cache holds, and would wake the guest
	env.InformerFactory = informerFactory{informers.NewSharedInformerFactoryWithOptions(clients.set, 0, informers.WithTransform(trim))}
	env.metadata = metadataInformers{metadatainformer.NewSharedInformerFactoryWithOptions(clients.metadata, 0, metadatainformer.WithTransform(trim))}
	env.ObjectOrMetadataInformerFactory = informerfactory.NewInformerFactory(env.InformerFactory, env.metadata)
	env.RESTMapper = restmapper.NewDeferredDiscoveryRESTMapper(&recentDiscovery{CachedDiscoveryInterface: memory.NewMemCacheClient(clients.set.Discovery())})
	env.InformersStarted = make(chan struct{})
	env.ControllerManagerMetrics = controllersmetrics.NewControllerManagerMetrics("kube-controller-manager")
	switch s.Controller {
	case names.GarbageCollectorController, names.StorageVersionMigratorController:
		env.GraphBuilder = env.newGraph(ctx)
	}
	app.SyncKinds = env.syncKinds
	return env, nil
}

// start starts the informers for which the controller has asked.
func (e *environment) start(ctx context.Context) {
	e.InformerFactory.Start(ctx.Done())
	e.ObjectOrMetadataInformerFactory.Start(ctx.Done())
	close(e.InformersStarted)
}

// readOptions decodes the options and sets the feature gates. It leaves out those
// of components that are no guests.
func readOptions(b []byte) (*options.Options, error) {
	var o options.Options
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, fmt.Errorf("reading its options: %w", err)
	}
	gates := utilfeature.DefaultMutableFeatureGate
	known := gates.GetAll()
	set := map[string]bool{}
	for name, on := range o.FeatureGates {
		if _, ok := known[featuregate.Feature(name)]; ok {
			set[name] = on
		}
	}
	if err := gates.SetFromMap(set); err != nil {
		return nil, fmt.Errorf("setting the feature gates: %w", err)
	}
	return &o, nil
}

// trim drops from cached objects what no controller reads, as upstream does.
func trim(obj any) (any, error) {
	if o, err := meta.Accessor(obj); err == nil && o.GetManagedFields() != nil {
		o.SetManagedFields(nil)
	}
	return obj, nil
}

// discoveryAge is after how long upstream forgets what discovery said. It does so
// by a timer, which would wake the guest.
const discoveryAge = 30 * time.Second

// recentDiscovery is a cache that is out of date after discoveryAge, when somebody
// asks.
type recentDiscovery struct {
	discovery.CachedDiscoveryInterface
	read time.Time
}

func (d *recentDiscovery) Fresh() bool {
	return time.Since(d.read) < discoveryAge && d.CachedDiscoveryInterface.Fresh()
}

func (d *recentDiscovery) Invalidate() {
	d.read = time.Now()
	d.CachedDiscoveryInterface.Invalidate()
}
