package controllers

import "time"

// Options are what upstream's constructors need to know of the cluster. They
// reach the guest as JSON. A zero value means upstream's default.
type Options struct {
	// ClusterCIDR and ServiceCIDR are one prefix each, or an IPv4 and an IPv6
	// one with a comma between.
	ClusterCIDR string `json:"clusterCIDR,omitempty"`
	ServiceCIDR string `json:"serviceCIDR,omitempty"`
	// NodeCIDRMaskSize and NodeCIDRMaskSizeIPv6 are the sizes of the ranges that
	// nodes get, in bits.
	NodeCIDRMaskSize     int `json:"nodeCIDRMaskSize,omitempty"`
	NodeCIDRMaskSizeIPv6 int `json:"nodeCIDRMaskSizeIPv6,omitempty"`
	// RootCA is the API server's CA bundle, PEM.
	RootCA string `json:"rootCA,omitempty"`

	NodeMonitorPeriod         time.Duration `json:"nodeMonitorPeriod,omitempty"`
	NodeMonitorGracePeriod    time.Duration `json:"nodeMonitorGracePeriod,omitempty"`
	NodeStartupGracePeriod    time.Duration `json:"nodeStartupGracePeriod,omitempty"`
	NodeEvictionRate          float32       `json:"nodeEvictionRate,omitempty"`
	SecondaryNodeEvictionRate float32       `json:"secondaryNodeEvictionRate,omitempty"`
	LargeClusterSizeThreshold int32         `json:"largeClusterSizeThreshold,omitempty"`
	UnhealthyZoneThreshold    float32       `json:"unhealthyZoneThreshold,omitempty"`

	TerminatedPodGCThreshold int   `json:"terminatedPodGCThreshold,omitempty"`
	MaxEndpointsPerSlice     int32 `json:"maxEndpointsPerSlice,omitempty"`

	ConcurrentDeploymentSyncs      int `json:"concurrentDeploymentSyncs,omitempty"`
	ConcurrentReplicaSetSyncs      int `json:"concurrentReplicaSetSyncs,omitempty"`
	ConcurrentEndpointSyncs        int `json:"concurrentEndpointSyncs,omitempty"`
	ConcurrentServiceEndpointSyncs int `json:"concurrentServiceEndpointSyncs,omitempty"`
	ConcurrentNamespaceSyncs       int `json:"concurrentNamespaceSyncs,omitempty"`
	ConcurrentGCSyncs              int `json:"concurrentGCSyncs,omitempty"`
}

// WithDefaults returns o with upstream's defaults, those of
// kube-controller-manager's flags, in place of zero values.
func (o Options) WithDefaults() Options {
	set(&o.NodeCIDRMaskSize, 24)
	set(&o.NodeCIDRMaskSizeIPv6, 64)
	set(&o.NodeMonitorPeriod, 5*time.Second)
	set(&o.NodeMonitorGracePeriod, 50*time.Second)
	set(&o.NodeStartupGracePeriod, time.Minute)
	set(&o.NodeEvictionRate, 0.1)
	set(&o.SecondaryNodeEvictionRate, 0.01)
	set(&o.LargeClusterSizeThreshold, 50)
	set(&o.UnhealthyZoneThreshold, 0.55)
	set(&o.TerminatedPodGCThreshold, 12500)
	set(&o.MaxEndpointsPerSlice, 100)
	set(&o.ConcurrentDeploymentSyncs, 5)
	set(&o.ConcurrentReplicaSetSyncs, 5)
	set(&o.ConcurrentEndpointSyncs, 5)
	set(&o.ConcurrentServiceEndpointSyncs, 5)
	set(&o.ConcurrentNamespaceSyncs, 10)
	set(&o.ConcurrentGCSyncs, 20)
	return o
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
