package parity

import (
	"fmt"

	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

// gates and gatedAPIs are what the controllers of gated need that upstream leaves off.
const (
	gates     = "GenericWorkload=true,DRAResourcePoolStatus=true,StorageVersionAPI=true"
	gatedAPIs = "scheduling.k8s.io/v1beta1=true,resource.k8s.io/v1alpha3=true,internal.apiserver.k8s.io/v1alpha1=true"
)

// gated are cases of controllers that are there with feature gates only, or when asked for.
var gated = []trial{
	{"pod-group", "podgroup-protection-controller", podGroup},
	{"pool-status", "resourcepoolstatusrequest-controller", poolStatus},
	{"storage-versions", "storageversion-garbage-collector-controller", storageVersions},
	{"selinux-labels", "selinux-warning-controller", seLinuxLabels},
}

// podGroup: a group of pods stays while one of them runs.
func podGroup(r *run) {
	const member = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec: {schedulingGroup: {podGroupName: group}, containers: [{name: main, image: none}]}`
	r.apply(`
apiVersion: scheduling.k8s.io/v1beta1
kind: PodGroup
metadata: {name: group}
spec: {schedulingPolicy: {basic: {}}}`)
	for _, name := range []string{"ends", "goes"} {
		r.apply(member, name)
		r.reaches("pods/"+name, "status: {phase: Running}")
	}
	r.delete("podgroups.scheduling.k8s.io/group")
	stays := func() {
		r.reaches("podgroups.scheduling.k8s.io/group", "metadata: {deletionTimestamp: '*', finalizers: [scheduling.k8s.io/podgroup-protection]}")
	}
	stays()
	r.patch("pods/ends", "metadata: {annotations: {%s: '0'}}", hollow.Exit)
	r.reaches("pods/ends", "status: {phase: Succeeded}")
	stays()
	r.delete("pods/goes")
	r.absent("podgroups.scheduling.k8s.io/group")
}

// poolStatus: who asks for the devices of a driver is told how many there are.
func poolStatus(r *run) {
	driver := r.ns + ".parity.example"
	r.apply(`
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: %[1]s}
spec: {driver: %[1]s, nodeName: hollow-0, pool: {name: pool, generation: 1, resourceSliceCount: 1}, devices: [{name: zero}, {name: one}]}
---
apiVersion: resource.k8s.io/v1alpha3
kind: ResourcePoolStatusRequest
metadata: {name: %[1]s}
spec: {driver: %[1]s}`, driver)
	r.want("resourcepoolstatusrequests/"+driver, "status: {poolCount: 1, pools: [{driver: %s, poolName: pool, totalDevices: 2, allocatedDevices: 0}]}", driver)
}

// storageVersions: what an API server wrote that is there no more is forgotten.
func storageVersions(r *run) {
	const by = "{apiServerID: %s, encodingVersion: v1, decodableVersions: [v1], servedVersions: [v1]}"
	name := r.ns + ".things"
	r.apply("{apiVersion: internal.apiserver.k8s.io/v1alpha1, kind: StorageVersion, metadata: {name: %s}, spec: {}}", name)
	r.status("storageversions/"+name, "{commonEncodingVersion: v1, storageVersions: [%s]}", fmt.Sprintf(by, "gone"))
	r.absent("storageversions/" + name)
}

// seLinuxLabels: two pods that cannot have a volume at the same time, because of their labels, are told.
func seLinuxLabels(r *run) {
	const (
		driver = "selinux.parity.example"
		user   = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: hollow-0
  securityContext: {seLinuxChangePolicy: MountOption, seLinuxOptions: {level: "%s"}}
  containers: [{name: main, image: none, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]`
	)
	r.apply("{apiVersion: storage.k8s.io/v1, kind: CSIDriver, metadata: {name: %s}, spec: {attachRequired: false, seLinuxMount: true}}", driver)
	r.apply(volume, "parity-labelled", r.ns, "parity-labelled", "1Gi", fmt.Sprintf("csi: {driver: %s, volumeHandle: one}", driver))
	r.apply(claim, "data", "parity-labelled", "1Gi", "")
	r.reaches("persistentvolumeclaims/data", "status: {phase: Bound}")
	r.apply(user, "one", "s0:c1,c2")
	r.apply(user, "other", "s0:c3,c4")
	for _, name := range []string{"one", "other"} {
		r.event("Pod", name, "SELinuxLabelConflict", "s0:c1,c2")
	}
}
