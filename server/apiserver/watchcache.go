package apiserver

import "strings"

// uncached are the resources of which the API server keeps no watch cache, as upstream does with events. A cache
// costs a timer each second and some forty goroutines, and pays off where many watch or list the same. These change
// seldom and are watched by a few of the control plane's own parts, for whom a watch of the datastore is cheaper: one
// instead of two. A watch cache remains for what a cluster does all day: pods and what makes them, their nodes,
// services, configuration and volumes.
var uncached = []string{
	"apiservices.apiregistration.k8s.io",
	"certificatesigningrequests.certificates.k8s.io",
	"clusterrolebindings.rbac.authorization.k8s.io",
	"clusterroles.rbac.authorization.k8s.io",
	"clustertrustbundles.certificates.k8s.io",
	"controllerrevisions.apps",
	"cronjobs.batch",
	"csidrivers.storage.k8s.io",
	"csinodes.storage.k8s.io",
	"csistoragecapacities.storage.k8s.io",
	"customresourcedefinitions.apiextensions.k8s.io",
	"deviceclasses.resource.k8s.io",
	"devicetaintrules.resource.k8s.io",
	"flowschemas.flowcontrol.apiserver.k8s.io",
	"horizontalpodautoscalers.autoscaling",
	"ingressclasses.networking.k8s.io",
	"ingresses.networking.k8s.io",
	"ipaddresses.networking.k8s.io",
	"limitranges",
	"mutatingadmissionpolicies.admissionregistration.k8s.io",
	"mutatingadmissionpolicybindings.admissionregistration.k8s.io",
	"mutatingwebhookconfigurations.admissionregistration.k8s.io",
	"networkpolicies.networking.k8s.io",
	"podcertificaterequests.certificates.k8s.io",
	"poddisruptionbudgets.policy",
	"podtemplates",
	"priorityclasses.scheduling.k8s.io",
	"prioritylevelconfigurations.flowcontrol.apiserver.k8s.io",
	"replicationcontrollers",
	"resourceclaims.resource.k8s.io",
	"resourceclaimtemplates.resource.k8s.io",
	"resourcequotas",
	"resourceslices.resource.k8s.io",
	"rolebindings.rbac.authorization.k8s.io",
	"roles.rbac.authorization.k8s.io",
	"runtimeclasses.node.k8s.io",
	"servicecidrs.networking.k8s.io",
	"storageclasses.storage.k8s.io",
	"storageversionmigrations.storagemigration.k8s.io",
	"validatingadmissionpolicies.admissionregistration.k8s.io",
	"validatingadmissionpolicybindings.admissionregistration.k8s.io",
	"validatingwebhookconfigurations.admissionregistration.k8s.io",
	"volumeattachments.storage.k8s.io",
	"volumeattributesclasses.storage.k8s.io",
}

// watchCacheSizes is the value of --watch-cache-sizes, where 0 means none and any other size nothing.
func watchCacheSizes() string { return strings.Join(uncached, "#0,") + "#0" }
