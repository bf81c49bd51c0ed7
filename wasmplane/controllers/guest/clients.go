//go:build wasip1

package main

import (
	"encoding/json"
	"fmt"
	"net/http"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	kubectrlmgrconfig "k8s.io/kubernetes/pkg/controller/apis/config"

	"github.com/dormouse-k8s/dormouse/wasmplane/guest"
)

// clients are those of every guest. They are made while the base image is made, and
// so are shared: a set of clients for all groups takes some hundred kilobytes, which
// would be a good part of most snapshots.
var clients struct {
	config   *rest.Config
	set      *kubernetes.Clientset
	metadata metadata.Interface
}

func init() {
	clients.config = &rest.Config{
		Host:      "http://dormouse",
		Transport: named{},
		// Fairness is the API server's business, and it is in the same process.
		QPS: -1,
		ContentConfig: rest.ContentConfig{
			ContentType:        "application/vnd.kubernetes.protobuf",
			AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
		},
	}
	var err error
	if clients.set, err = kubernetes.NewForConfig(clients.config); err != nil {
		panic(fmt.Errorf("making the clients: %w", err))
	}
	if clients.metadata, err = metadata.NewForConfig(clients.config); err != nil {
		panic(fmt.Errorf("making the client for metadata: %w", err))
	}
	// What encoding/json keeps of a type is shared as well.
	var c kubectrlmgrconfig.KubeControllerManagerConfiguration
	b, err := json.Marshal(c)
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		panic(fmt.Errorf("reading an empty configuration: %w", err))
	}
}

// userAgent is set before the first request. The part before the slash owns fields;
// it is the same as natively.
var userAgent string

// named sends requests as the program that the guest has become.
type named struct{}

func (named) RoundTrip(req *http.Request) (*http.Response, error) {
	r := *req
	r.Header = req.Header.Clone()
	r.Header.Set("User-Agent", userAgent)
	return guest.Transport.RoundTrip(&r)
}

// builder is a client builder that gives everybody the same clients: who a guest is
// the host knows.
type builder struct{}

func (builder) Config(string) (*rest.Config, error) { return rest.CopyConfig(clients.config), nil }

func (b builder) ConfigOrDie(string) *rest.Config { return rest.CopyConfig(clients.config) }

func (builder) Client(string) (kubernetes.Interface, error) { return clients.set, nil }

func (builder) ClientOrDie(string) kubernetes.Interface { return clients.set }

func (builder) DiscoveryClient(string) (discovery.DiscoveryInterface, error) {
	return clients.set.Discovery(), nil
}

func (builder) DiscoveryClientOrDie(string) discovery.DiscoveryInterface {
	return clients.set.Discovery()
}
