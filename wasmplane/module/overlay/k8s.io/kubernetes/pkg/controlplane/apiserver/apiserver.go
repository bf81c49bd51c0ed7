// Package apiserver stands in for upstream's package of this name.
package apiserver

// KubeAPIServer is the label's value.
const KubeAPIServer = "kube-apiserver"
