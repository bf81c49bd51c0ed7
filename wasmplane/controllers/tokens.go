package controllers

import "time"

// serviceAccountToken is the one controller that upstream does not give an account
// of its own: it runs before there are any.
var serviceAccountToken = Declaration{
	Name:      "serviceaccount-token-controller",
	Identity:  controllerManager,
	Resources: []string{"serviceaccounts", "secrets"},
	// The tokens of a deleted account are deleted. Of others it does nothing; a
	// secret that names one looks it up.
	Wait: map[string]Events{"serviceaccounts": Any &^ Deleted},
	Having: map[string][]Field{"secrets": {
		{Name: "type", Path: []int{3}, Value: "kubernetes.io/service-account-token"},
	}},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var legacyServiceAccountTokenCleaner = Declaration{
	Name:      "legacy-serviceaccount-token-cleaner-controller",
	Identity:  serviceAccount + "legacy-service-account-token-cleaner",
	Resources: []string{"serviceaccounts", "secrets", "pods"},
	Grants:    []string{"serviceaccounts", "secrets", "pods"},
	// It looks at all tokens once a day, for those that nobody has used for a year.
	Wait:        map[string]Events{"serviceaccounts": Any, "secrets": Any, "pods": Any},
	TimerSlack:  time.Hour,
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

// bootstrapTokens are secrets with which nodes join.
var bootstrapTokens = []Field{{Name: "type", Path: []int{3}, Value: "bootstrap.kubernetes.io/token"}}

// bootstrapSigner signs a ConfigMap with the tokens. Upstream's Role for it covers
// just the namespaces of these, its informers all.
var bootstrapSigner = Declaration{
	Name:      "bootstrap-signer-controller",
	Identity:  serviceAccount + "bootstrap-signer",
	Resources: []string{"secrets", "configmaps"},
	Grants:    []string{"secrets", "configmaps"},
	Wait:      map[string]Events{"configmaps": Deleted},
	Having: map[string][]Field{
		"secrets":    bootstrapTokens,
		"configmaps": {{Name: "metadata.name", Path: []int{1, 1}, Value: "cluster-info"}},
	},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

// tokenCleaner deletes tokens by timer, when they expire.
var tokenCleaner = Declaration{
	Name:        "token-cleaner-controller",
	Identity:    serviceAccount + "token-cleaner",
	Resources:   []string{"secrets"},
	Grants:      []string{"secrets"},
	Wait:        map[string]Events{"secrets": Deleted},
	Having:      map[string][]Field{"secrets": bootstrapTokens},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
