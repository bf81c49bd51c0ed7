package controllers

// EndpointsController and EndpointSliceController are upstream's names.
const (
	EndpointsController     = "endpoints-controller"
	EndpointSliceController = "endpointslice-controller"
)

// podsWithAddress are pods that can be an endpoint. One that has no address yet is
// left out of the endpoints of its services. (status.podIP, its first address, is
// there even if it is empty.)
var podsWithAddress = []Field{{Name: "status.podIPs", Path: []int{3, 12}}}

var endpoints = Declaration{
	Name:      EndpointsController,
	Identity:  serviceAccount + "endpoint-controller",
	Resources: []string{"services", "pods", "endpoints"},
	// Of endpoints it handles only deletions.
	Wait:   map[string]Events{"endpoints": Any &^ Deleted},
	Having: map[string][]Field{"pods": podsWithAddress},
	// Proxies go by endpoint slices.
	Late:        map[string]Events{"pods": Any},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var endpointSlice = Declaration{
	Name:      EndpointSliceController,
	Identity:  serviceAccount + "endpointslice-controller",
	Resources: []string{"services", "pods", "nodes", "endpointslices.discovery.k8s.io"},
	// Nodes matter for topology hints alone, and these go by zones.
	Wait:        map[string]Events{"nodes": Modified},
	Urgent:      map[string][]Field{"nodes": {{Name: "metadata.labels.key", Path: []int{1, 11, 1}, Value: "topology.kubernetes.io/zone"}}},
	Changing:    map[string][]Field{"nodes": {{Name: "metadata.labels", Path: []int{1, 11}}}},
	Having:      map[string][]Field{"pods": podsWithAddress},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

// endpointSliceMirroring is for services without a selector, and there is always
// one: kubernetes. Of the others, whose endpoints the endpoints controller makes, it
// mirrors nothing.
var endpointSliceMirroring = Declaration{
	Name:        "endpointslice-mirroring-controller",
	Identity:    serviceAccount + "endpointslicemirroring-controller",
	Resources:   []string{"endpoints", "endpointslices.discovery.k8s.io", "services"},
	Late:        map[string]Events{"*": Any},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var serviceCIDR = Declaration{
	Name:      "service-cidr-controller",
	Identity:  serviceAccount + "service-cidrs-controller",
	Resources: []string{"servicecidrs.networking.k8s.io", "ipaddresses.networking.k8s.io"},
	// An address that goes may be the last of a range that is being deleted. One
	// that comes is counted before a range is let go.
	Wait:        map[string]Events{"ipaddresses.networking.k8s.io": Any &^ Deleted},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
