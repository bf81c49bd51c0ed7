package controllers

// EndpointsController and EndpointSliceController are upstream's names.
const (
	EndpointsController     = "endpoints-controller"
	EndpointSliceController = "endpointslice-controller"
)

var endpoints = Declaration{
	Name:        EndpointsController,
	Identity:    serviceAccount + "endpoint-controller",
	Resources:   []string{"services", "pods", "endpoints"},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var endpointSlice = Declaration{
	Name:      EndpointSliceController,
	Identity:  serviceAccount + "endpointslice-controller",
	Resources: []string{"services", "pods", "nodes", "endpointslices.discovery.k8s.io"},
	// Nodes matter for topology hints alone, which follow slowly by design.
	Wait:        map[string]Events{"nodes": Modified},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
