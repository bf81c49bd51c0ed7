package controllers

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/controller-manager/pkg/clientbuilder"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/nodeipam/ipam"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers/options"
)

// TestDeclarationsMatchUpstreamsConstructors runs the constructors of
// kube-controller-manager natively: each asks for a client of the declared account,
// and for informers of the declared resources.
func TestDeclarationsMatchUpstreamsConstructors(t *testing.T) {
	descriptors := app.NewControllerDescriptors()
	for _, d := range controllers.All() {
		descriptor := descriptors[d.Name]
		if descriptor == nil || descriptor.RequiresSpecialHandling() {
			continue // the scheduler; and the one that upstream constructs differently
		}
		t.Run(d.Name, func(t *testing.T) { construct(t, d, descriptor) })
	}
}

func construct(t *testing.T, d controllers.Declaration, descriptor *app.ControllerDescriptor) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	api := &nothing{ctx: ctx, watched: map[string]bool{}}
	env, names := newContext(t, ctx, api)
	c, err := descriptor.BuildController(ctx, env)
	if err != nil {
		t.Fatal(err)
	}
	if c == nil {
		if len(d.Resources) > 0 {
			t.Errorf("there is nothing for it to do, but it is said to watch %v", d.Resources)
		}
		return
	}
	var accounts []string
	for name := range names {
		accounts = append(accounts, "system:serviceaccount:kube-system:"+name)
	}
	if !slices.Equal(accounts, []string{d.Identity}) {
		t.Errorf("acts as %v, declared is %s", accounts, d.Identity)
	}
	if slices.Contains(d.Resources, "*") {
		return
	}
	env.InformerFactory.Start(ctx.Done())
	env.InformerFactory.WaitForCacheSync(ctx.Done())
	if len(api.resources()) == 0 {
		// It has an informer of its own, which it starts itself.
		running.Go(func() { c.Run(ctx) })
		for start := time.Now(); len(api.resources()) == 0 && time.Since(start) < time.Minute; {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if got, want := api.resources(), slices.Sorted(slices.Values(d.Resources)); !slices.Equal(got, want) {
		t.Errorf("watches %v, declared are %v", got, want)
	}
}

// TestSchedulerWatchesWhatIsDeclared does the same for the scheduler with its default
// profile.
func TestSchedulerWatchesWhatIsDeclared(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	api := &nothing{ctx: ctx, watched: map[string]bool{}}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://nothing", Transport: api, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	factory := scheduler.NewInformerFactory(client, 0, nil)
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	defer broadcaster.Shutdown()
	if _, err := scheduler.New(ctx, client, factory, nil, profile.NewRecorderFactory(broadcaster)); err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	all := controllers.All()
	d := all[len(all)-1]
	if got, want := api.resources(), slices.Sorted(slices.Values(d.Resources)); d.Name != options.Scheduler || !slices.Equal(got, want) {
		t.Errorf("watches %v, %s is declared to watch %v", got, d.Name, want)
	}
}

// newContext returns what kube-controller-manager gives its constructors, and the
// set of names for which they ask for clients.
func newContext(t *testing.T, ctx context.Context, api http.RoundTripper) (app.ControllerContext, map[string]bool) {
	clients := &namedClients{
		SimpleControllerClientBuilder: clientbuilder.SimpleControllerClientBuilder{ClientConfig: &rest.Config{Host: "http://nothing", Transport: api, QPS: -1}},
		names:                         map[string]bool{},
	}
	var env app.ControllerContext
	var err error
	if env.ComponentConfig, err = kcmoptions.NewDefaultComponentConfig(); err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := authority(t)
	env.ComponentConfig.CSRSigningController.ClusterSigningCertFile = certFile
	env.ComponentConfig.CSRSigningController.ClusterSigningKeyFile = keyFile
	env.ComponentConfig.SAController.RootCAFile = certFile
	env.ComponentConfig.KubeCloudShared.AllocateNodeCIDRs = true
	env.ComponentConfig.KubeCloudShared.ClusterCIDR = "10.42.0.0/16"
	env.ComponentConfig.KubeCloudShared.CIDRAllocatorType = string(ipam.RangeAllocatorType)
	env.ComponentConfig.PersistentVolumeBinderController.VolumeConfiguration.FlexVolumePluginDir = t.TempDir()
	env.ClientBuilder = clients

	client, err := kubernetes.NewForConfig(clients.ClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	m, err := metadata.NewForConfig(clients.ClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	env.InformerFactory = informers.NewSharedInformerFactory(client, 0)
	env.ObjectOrMetadataInformerFactory = informerfactory.NewInformerFactory(env.InformerFactory, metadatainformer.NewSharedInformerFactory(m, 0))
	env.RESTMapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))
	env.InformersStarted = make(chan struct{})
	env.ResyncPeriod = func() time.Duration { return 0 }
	env.GraphBuilder = garbagecollector.NewDependencyGraphBuilder(ctx, m, env.RESTMapper,
		garbagecollector.DefaultIgnoredResources(), env.ObjectOrMetadataInformerFactory, env.InformersStarted)
	return env, clients.names
}

// authority returns the files of a certificate authority.
func authority(t *testing.T) (certFile, keyFile string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := cert.NewSelfSignedCACert(cert.Config{CommonName: "authority"}, key)
	if err != nil {
		t.Fatal(err)
	}
	encodedCA, err := cert.EncodeCertificates(ca)
	if err != nil {
		t.Fatal(err)
	}
	encodedKey, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	for file, content := range map[string][]byte{certFile: encodedCA, keyFile: encodedKey} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// namedClients is a client builder that notes for whom it builds.
type namedClients struct {
	clientbuilder.SimpleControllerClientBuilder
	names map[string]bool
}

func (b *namedClients) Config(name string) (*rest.Config, error) {
	b.names[name] = true
	return b.SimpleControllerClientBuilder.Config(name)
}

func (b *namedClients) ConfigOrDie(name string) *rest.Config {
	b.names[name] = true
	return b.SimpleControllerClientBuilder.ConfigOrDie(name)
}

func (b *namedClients) Client(name string) (kubernetes.Interface, error) {
	b.names[name] = true
	return b.SimpleControllerClientBuilder.Client(name)
}

func (b *namedClients) ClientOrDie(name string) kubernetes.Interface {
	b.names[name] = true
	return b.SimpleControllerClientBuilder.ClientOrDie(name)
}

func (b *namedClients) DiscoveryClient(name string) (discovery.DiscoveryInterface, error) {
	b.names[name] = true
	return b.SimpleControllerClientBuilder.DiscoveryClient(name)
}

func (b *namedClients) DiscoveryClientOrDie(name string) discovery.DiscoveryInterface {
	b.names[name] = true
	return b.SimpleControllerClientBuilder.DiscoveryClientOrDie(name)
}

// nothing is an API server without objects, which refuses to make any.
type nothing struct {
	ctx     context.Context
	mu      sync.Mutex
	watched map[string]bool
}

// resources are those that were watched, sorted.
func (a *nothing) resources() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Sorted(maps.Keys(a.watched))
}

// RoundTrip implements http.RoundTripper.
func (a *nothing) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet {
		return response(http.StatusForbidden, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403})
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	var resource, version string
	switch {
	case parts[0] == "api" && len(parts) == 3:
		resource, version = parts[2], parts[1]
	case parts[0] == "apis" && len(parts) == 4:
		resource, version = parts[3]+"."+parts[1], parts[1]+"/"+parts[2]
	default:
		return response(http.StatusOK, discoveryOf(r.URL.Path))
	}
	a.mu.Lock()
	a.watched[resource] = true // informers list first, or let the watch do it
	a.mu.Unlock()
	kind := kinds[resource]
	if r.URL.Query().Get("watch") == "" {
		return response(http.StatusOK, object{"kind": kind + "List", "apiVersion": version, "metadata": object{"resourceVersion": "1"}, "items": []object{}})
	}
	resp, err := response(http.StatusOK, object{"type": "BOOKMARK", "object": object{"kind": kind, "apiVersion": version, "metadata": object{
		"resourceVersion": "1", "annotations": object{"k8s.io/initial-events-end": "true"},
	}}})
	if err == nil {
		resp.Body = &openBody{Reader: resp.Body, done: r.Context().Done(), ended: a.ctx.Done()}
	}
	return resp, err
}

// discoveryOf answers requests for API discovery, with one version for each group.
func discoveryOf(path string) object {
	switch path {
	case "/api":
		return object{"kind": "APIVersions", "versions": []string{"v1"}}
	case "/apis":
		seen := map[string]bool{}
		for resource := range kinds {
			if _, group, found := strings.Cut(resource, "."); found {
				seen[group] = true
			}
		}
		groups := []object{}
		for group := range seen {
			v := object{"groupVersion": group + "/v1", "version": "v1"}
			groups = append(groups, object{"name": group, "versions": []object{v}, "preferredVersion": v})
		}
		return object{"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
	}
	version := strings.TrimPrefix(strings.TrimPrefix(path, "/apis/"), "/api/")
	resources := []object{}
	for resource, kind := range kinds {
		name, group, _ := strings.Cut(resource, ".")
		if strings.TrimPrefix(group+"/v1", "/") == version {
			resources = append(resources, object{"name": name, "kind": kind, "namespaced": true, "verbs": []string{"get", "list", "watch", "delete"}})
		}
	}
	return object{"kind": "APIResourceList", "groupVersion": version, "resources": resources}
}

func response(code int, v object) (*http.Response, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(b))}, nil
}

// openBody stays open after its content.
type openBody struct {
	io.Reader
	done, ended <-chan struct{}
}

func (b *openBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if n > 0 || err == nil {
		return n, nil
	}
	select {
	case <-b.done:
	case <-b.ended:
	}
	return 0, io.EOF
}

func (b *openBody) Close() error { return nil }
