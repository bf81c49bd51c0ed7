package apiserver

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/kubernetes/pkg/controlplane"
	"k8s.io/kubernetes/pkg/kubeapiserver"

	"github.com/dormouse-k8s/dormouse/server/changes"
)

// TestPlaces compares the places with those of upstream's storage. Who waits at a wrong one waits for ever.
func TestPlaces(t *testing.T) {
	s, err := New(Config{BindAddress: net.IPv4zero, AdvertiseAddress: net.IPv4zero, ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	config := kubeapiserver.NewStorageFactoryConfig()
	config.APIResourceConfig = controlplane.DefaultAPIResourceConfigSource()
	storage, err := config.Complete(s.options.Etcd).New()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for resource := range resources() {
		if strings.HasSuffix(resource.Group, "apiextensions.k8s.io") || resource.Group == "apiregistration.k8s.io" {
			continue // kept by servers of their own
		}
		n++
		place, certain := placeOf(resource.String())
		if want := changes.Place(storage.ResourcePrefix(resource)); place != want || !certain {
			t.Errorf("%s: %q (certain: %v), want %q", resource, place, certain, want)
		}
	}
	if n < 50 {
		t.Errorf("only %d resources", n)
	}
	for resource, want := range map[string]string{
		"customresourcedefinitions.apiextensions.k8s.io": "apiextensions.k8s.io/customresourcedefinitions",
		"apiservices.apiregistration.k8s.io":             "apiregistration.k8s.io/apiservices",
		"nodes":                                          "minions",
		"endpoints":                                      "services",
		"things.example.com":                             "example.com/things",
	} {
		place, certain := placeOf(resource)
		if place != want || certain == strings.HasSuffix(resource, "example.com") {
			t.Errorf("%s: %q (certain: %v), want %q", resource, place, certain, want)
		}
	}
}
