// Package eviction stands in for the package of the same name of the kubelet in
// guests. The pod garbage collector uses one function of it, and the original
// brings in the kubelet's half of Kubernetes: cAdvisor, CEL, volumes, and files
// that do not compile for WASI.
package eviction

import v1 "k8s.io/api/core/v1"

// Reason is the reason of an evicted pod's status.
const Reason = "Evicted"

// PodIsEvicted returns true if the reported pod status is due to an eviction.
func PodIsEvicted(podStatus v1.PodStatus) bool {
	return podStatus.Phase == v1.PodFailed && podStatus.Reason == Reason
}
