// Package controlplane stands in for upstream's package of this name.
package controlplane

// IdentityLeaseComponentLabelKey is the label of leases by which API servers say
// that they live.
const IdentityLeaseComponentLabelKey = "apiserver.kubernetes.io/identity"
