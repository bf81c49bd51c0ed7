// Package manifests holds what is deployed into every cluster, one directory per component.
package manifests

import "embed"

// FS holds the manifests as <component>/<name>.yaml.
//
//go:embed */*.yaml
var FS embed.FS
