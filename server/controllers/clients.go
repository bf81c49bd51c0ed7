package controllers

import (
	"net/http"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/controller-manager/pkg/clientbuilder"

	"github.com/dormouse-k8s/dormouse/server/apiserver/inprocess"
)

// clients is a clientbuilder.ControllerClientBuilder whose clients reach the API server in process, each
// under the identity that belongs to its name. Nothing it builds can fail for want of a file or a token.
type clients struct {
	base      *rest.Config
	transport func(user.Info) http.RoundTripper
	identity  func(name string) user.Info
}

var _ clientbuilder.ControllerClientBuilder = clients{}

// as returns a builder with the identity that belongs to name.
func (b clients) as(name string) clientbuilder.SimpleControllerClientBuilder {
	c := rest.CopyConfig(b.base)
	c.Host, c.Transport = inprocess.Host, b.transport(b.identity(name))
	return clientbuilder.SimpleControllerClientBuilder{ClientConfig: c}
}

func (b clients) Config(name string) (*rest.Config, error) { return b.as(name).Config(name) }

func (b clients) ConfigOrDie(name string) *rest.Config { return b.as(name).ConfigOrDie(name) }

func (b clients) Client(name string) (kubernetes.Interface, error) { return b.as(name).Client(name) }

func (b clients) ClientOrDie(name string) kubernetes.Interface { return b.as(name).ClientOrDie(name) }

func (b clients) DiscoveryClient(name string) (discovery.DiscoveryInterface, error) {
	return b.as(name).DiscoveryClient(name)
}

func (b clients) DiscoveryClientOrDie(name string) discovery.DiscoveryInterface {
	return b.as(name).DiscoveryClientOrDie(name)
}
