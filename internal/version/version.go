// Package version says which Dormouse this is.
package version

import (
	"strings"

	"k8s.io/component-base/version"
)

// Get returns the version that the build stamped into Kubernetes' own code, which has Dormouse's revision
// after the plus sign: v1.37.2+dormouse1.
func Get() string {
	if v := version.Get().GitVersion; !strings.Contains(v, "$Format") {
		return v
	}
	return "v1.37.2+dormouse.unstamped"
}

// Commit returns the commit it was built from, or "".
func Commit() string {
	if c := version.Get().GitCommit; !strings.HasPrefix(c, "$Format") {
		return c
	}
	return ""
}
