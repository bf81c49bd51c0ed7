// Package version says which Dormouse this is. The build sets it with
// -ldflags "-X github.com/dormouse-k8s/dormouse/internal/version.Version=v1.37.2+dormouse1".
package version

// Version is the Kubernetes version with the Dormouse revision after the plus sign.
var Version = "v1.37.2+dormouse.dev"

// Commit is the commit it was built from, or "".
var Commit = ""
