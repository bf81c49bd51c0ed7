package controllers

import "time"

// RootCAPublisherController is upstream's name.
const RootCAPublisherController = "root-ca-certificate-publisher-controller"

const (
	// certificateController is the account that upstream's three controllers of
	// signing requests share.
	certificateController = serviceAccount + "certificate-controller"

	signingRequests = "certificatesigningrequests.certificates.k8s.io"
)

var signingRequestSigning = Declaration{
	Name:        "certificatesigningrequest-signing-controller",
	Identity:    certificateController,
	Resources:   []string{signingRequests},
	Wait:        map[string]Events{signingRequests: Deleted},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var signingRequestApproving = Declaration{
	Name:        "certificatesigningrequest-approving-controller",
	Identity:    certificateController,
	Resources:   []string{signingRequests},
	Wait:        map[string]Events{signingRequests: Deleted},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var signingRequestCleaner = Declaration{
	Name:      "certificatesigningrequest-cleaner-controller",
	Identity:  certificateController,
	Resources: []string{signingRequests},
	// It looks at all requests once an hour, for those that are an hour or a day old.
	Wait:        map[string]Events{signingRequests: Any},
	TimersFor:   []string{signingRequests},
	TimerSlack:  time.Hour,
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var podCertificateRequestCleaner = Declaration{
	Name:      "podcertificaterequest-cleaner-controller",
	Identity:  serviceAccount + "podcertificaterequestcleaner",
	Resources: []string{"podcertificaterequests.certificates.k8s.io"},
	// It looks at all requests each 5 minutes, for those older than 15.
	Wait:        map[string]Events{"podcertificaterequests.certificates.k8s.io": Any},
	TimersFor:   []string{"podcertificaterequests.certificates.k8s.io"},
	TimerSlack:  time.Hour,
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var rootCAPublisher = Declaration{
	Name:      RootCAPublisherController,
	Identity:  serviceAccount + "root-ca-cert-publisher",
	Resources: []string{"configmaps", "namespaces"},
	Grants:    []string{"configmaps", "namespaces"},
	// Of ConfigMaps it handles only updates and deletions of its own; and nothing of
	// namespaces that end.
	Wait: map[string]Events{"configmaps": Added, "namespaces": Terminating | Deleted},
	Having: map[string][]Field{"configmaps": {
		{Name: "metadata.name", Path: []int{1, 1}, Value: "kube-root-ca.crt"},
	}},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

// clusterTrustBundlePublisher watches only the bundles of its signer.
var clusterTrustBundlePublisher = Declaration{
	Name:        "kube-apiserver-serving-clustertrustbundle-publisher-controller",
	Identity:    serviceAccount + "kube-apiserver-serving-clustertrustbundle-publisher",
	Resources:   []string{"clustertrustbundles.certificates.k8s.io"},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
