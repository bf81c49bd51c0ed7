// Package openapi stands in for upstream's package of this name.
package openapi

import "k8s.io/kube-openapi/pkg/common"

// GetOpenAPIDefinitions returns no definitions. Who resolves types asks the API
// server next.
func GetOpenAPIDefinitions(common.ReferenceCallback) map[string]common.OpenAPIDefinition {
	return nil
}
