package parity

import (
	"context"
	"fmt"
	"strings"

	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

var storage = []trial{
	{"volume-binding", "persistentvolume-binder-controller", volumeBinding},
	{"volume-first-consumer", "persistentvolume-binder-controller kube-scheduler", firstConsumer},
	{"volume-provisioning", "persistentvolume-binder-controller persistentvolume-expander-controller", provisioning},
	{"volume-reclaim", "persistentvolume-binder-controller persistentvolume-protection-controller", reclaim},
	{"volume-protection", "persistentvolumeclaim-protection-controller persistentvolume-protection-controller", protection},
	{"volume-attachment", "persistentvolume-attach-detach-controller", attachment},
	{"volume-attributes", "volumeattributesclass-protection-controller", attributes},
	{"ephemeral-volumes", "ephemeral-volume-controller garbage-collector-controller", ephemeralVolumes},
	{"resource-claims", "resourceclaim-controller kube-scheduler garbage-collector-controller", resourceClaims},
	{"device-taints", "device-taint-eviction-controller resourceclaim-controller", deviceTaints},
}

const storageClass = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: %s
volumeBindingMode: %s
allowVolumeExpansion: true`

// volume is a PersistentVolume that holds nothing.
const volume = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: %s, labels: {case: %s}}
spec: {storageClassName: %s, capacity: {storage: %s}, accessModes: [ReadWriteOnce], %s}`

const onHost = "hostPath: {path: /parity}"

const claim = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec: {storageClassName: %s, accessModes: [ReadWriteOnce], resources: {requests: {storage: %s}} %s}`

// using is the specification of a pod that uses a claim.
func using(claim string) string {
	return fmt.Sprintf("volumes: [{name: data, persistentVolumeClaim: {claimName: %s}}], ", claim)
}

func volumeBinding(r *run) {
	const class = "parity-binding"
	r.apply(claim, "early", class, "1Gi", "")
	r.reaches("persistentvolumeclaims/early", "status: {phase: Pending}")
	r.apply(volume, "parity-large", r.ns, class, "5Gi", onHost)
	large := r.reaches("persistentvolumes/parity-large", `
metadata: {annotations: {pv.kubernetes.io/bound-by-controller: "yes"}, finalizers: [kubernetes.io/pv-protection]}
spec: {persistentVolumeReclaimPolicy: Retain, claimRef: {kind: PersistentVolumeClaim, namespace: %s, name: early, uid: "*"}}
status: {phase: Bound}`, r.ns)
	early := r.want("persistentvolumeclaims/early", `
metadata: {annotations: {pv.kubernetes.io/bind-completed: "yes", pv.kubernetes.io/bound-by-controller: "yes"}, finalizers: [kubernetes.io/pvc-protection]}
spec: {volumeName: parity-large}
status: {phase: Bound, capacity: {storage: 5Gi}, accessModes: [ReadWriteOnce]}`)
	if got := field(large, "spec", "claimRef", "uid"); got != string(early.GetUID()) {
		r.Errorf("the volume is bound to %v, not %s", got, early.GetUID())
	}
	// Of those that fit the smallest, of those with the label, or the named one.
	for name, size := range map[string]string{"parity-2": "2Gi", "parity-3": "3Gi", "parity-4": "4Gi"} {
		r.apply(volume, name, r.ns, class, size, onHost)
		r.reaches("persistentvolumes/"+name, "status: {phase: Available}")
	}
	r.patch("persistentvolumes/parity-4", "metadata: {labels: {fast: 'yes'}}")
	r.apply(claim, "small", class, "1Gi", "")
	r.want("persistentvolumeclaims/small", "{spec: {volumeName: parity-2}, status: {phase: Bound, capacity: {storage: 2Gi}}}")
	r.apply(claim, "fast", class, "1Gi", ", selector: {matchLabels: {fast: 'yes'}}")
	r.want("persistentvolumeclaims/fast", "{spec: {volumeName: parity-4}, status: {phase: Bound}}")
	r.apply(claim, "named", class, "1Gi", ", volumeName: parity-3")
	r.reaches("persistentvolumeclaims/named", "{spec: {volumeName: parity-3}, status: {phase: Bound}}")
	r.apply(claim, "too-large", class, "9Gi", "")
	r.want("persistentvolumeclaims/too-large", "{spec: {volumeName: null}, status: {phase: Pending}}")
	// A claim without its volume.
	r.delete("persistentvolumes/parity-3")
	r.release("persistentvolumes/parity-3")
	r.want("persistentvolumeclaims/named", "status: {phase: Lost}")
	r.event("PersistentVolumeClaim", "named", "ClaimLost", "")
	// A volume that is kept for a claim waits for it.
	r.apply(volume, "parity-kept", r.ns, class, "6Gi", onHost+fmt.Sprintf(", claimRef: {namespace: %s, name: expected}", r.ns))
	r.reaches("persistentvolumes/parity-kept", "status: {phase: Available}")
	r.apply(claim, "expected", class, "1Gi", "")
	r.want("persistentvolumeclaims/expected", "{spec: {volumeName: parity-kept}, status: {phase: Bound}}")
}

func firstConsumer(r *run) {
	const class = "parity-local"
	r.apply(storageClass, class, "kubernetes.io/no-provisioner", "WaitForFirstConsumer")
	for i := range 2 {
		r.apply(volume, fmt.Sprintf("parity-local-%d", i), r.ns, class, "1Gi", fmt.Sprintf(
			"local: {path: /parity}, nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [hollow-%d]}]}]}}", i))
	}
	r.apply(claim, "data", class, "1Gi", "")
	r.event("PersistentVolumeClaim", "data", "WaitForFirstConsumer", "")
	r.reaches("persistentvolumeclaims/data", "{spec: {volumeName: null}, status: {phase: Pending}}")
	r.apply(barePod, "user", "", "", using("data")+"nodeSelector: {kubernetes.io/hostname: hollow-1}, ")
	r.want("pods/user", "{spec: {nodeName: hollow-1}, status: {phase: Running}}")
	r.want("persistentvolumeclaims/data", `
metadata: {annotations: {volume.kubernetes.io/selected-node: null, pv.kubernetes.io/bind-completed: "yes"}}
spec: {volumeName: parity-local-1}
status: {phase: Bound}`)
	r.want("persistentvolumes/parity-local-0", "status: {phase: Available}")
	// No volume is left on this one's node.
	r.apply(claim, "more", class, "1Gi", "")
	r.apply(barePod, "second", "", "", using("more")+"nodeSelector: {kubernetes.io/hostname: hollow-1}, ")
	r.reaches("pods/second", "status: {conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable}]}")
	r.want("persistentvolumeclaims/more", "status: {phase: Pending}")
}

// The test provisions, as a driver beside the cluster does.
func provisioning(r *run) {
	const class, driver = "parity-provisioned", "parity.example/driver"
	r.apply(storageClass, class, driver, "Immediate")
	r.apply(claim, "data", class, "1Gi", "")
	data := r.reaches("persistentvolumeclaims/data", `
metadata: {annotations: {volume.kubernetes.io/storage-provisioner: %[1]s, volume.beta.kubernetes.io/storage-provisioner: %[1]s}}
status: {phase: Pending}`, driver)
	r.event("PersistentVolumeClaim", "data", "ExternalProvisioning", driver)
	r.apply(volume, "parity-provisioned", r.ns, class, "1Gi", fmt.Sprintf(
		"csi: {driver: driver.parity.example, volumeHandle: one}, persistentVolumeReclaimPolicy: Delete, claimRef: {namespace: %s, name: data, uid: %s}", r.ns, data.GetUID()))
	r.reaches("persistentvolumeclaims/data", "{spec: {volumeName: parity-provisioned}, status: {phase: Bound}}")
	// Nor does it expand.
	r.patch("persistentvolumeclaims/data", "spec: {resources: {requests: {storage: 2Gi}}}")
	r.event("PersistentVolumeClaim", "data", "ExternalExpanding", "")
	r.want("persistentvolumeclaims/data", "{spec: {resources: {requests: {storage: 2Gi}}}, status: {capacity: {storage: 1Gi}}}")

	// A claim that names no class gets the default one, once there is one.
	r.apply("{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: later}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}")
	r.reaches("persistentvolumeclaims/later", "{spec: {storageClassName: null}, status: {phase: Pending}}")
	r.patch("storageclasses/"+class, "metadata: {annotations: {storageclass.kubernetes.io/is-default-class: 'true'}}")
	r.want("persistentvolumeclaims/later", "spec: {storageClassName: %s}", class)
	r.patch("storageclasses/"+class, "metadata: {annotations: {storageclass.kubernetes.io/is-default-class: null}}")
}

func reclaim(r *run) {
	const class = "parity-reclaim"
	for name, policy := range map[string]string{"retain": "Retain", "delete": "Delete"} {
		r.apply(volume, "parity-"+name, r.ns, class, "1Gi", onHost+", persistentVolumeReclaimPolicy: "+policy)
		r.apply(claim, name, class, "1Gi", ", volumeName: parity-"+name)
		r.reaches("persistentvolumeclaims/"+name, "status: {phase: Bound}")
		r.delete("persistentvolumeclaims/" + name)
		r.absent("persistentvolumeclaims/" + name)
	}
	r.reaches("persistentvolumes/parity-retain", "{spec: {claimRef: {name: retain}}, status: {phase: Released}}")
	// Outside of /tmp host paths are not deleted.
	r.want("persistentvolumes/parity-delete", "status: {phase: Failed, message: 'host_path deleter only supports /tmp/.+ but received provided /parity'}")
	r.within("default").event("PersistentVolume", "parity-delete", "VolumeFailedDelete", "")
	// Released by the administrator it can be claimed again.
	r.patch("persistentvolumes/parity-retain", "spec: {claimRef: null}")
	r.want("persistentvolumes/parity-retain", "status: {phase: Available}")
}

func protection(r *run) {
	const class = "parity-protection"
	r.apply(volume, "parity-protected", r.ns, class, "1Gi", onHost)
	r.apply(claim, "data", class, "1Gi", "")
	r.reaches("persistentvolumeclaims/data", "{metadata: {finalizers: [kubernetes.io/pvc-protection]}, status: {phase: Bound}}")
	r.apply(barePod, "user", "", "", using("data"))
	r.reaches("pods/user", "status: {phase: Running}")
	r.delete("persistentvolumes/parity-protected")
	r.reaches("persistentvolumes/parity-protected", "{metadata: {deletionTimestamp: '*', finalizers: [kubernetes.io/pv-protection]}, status: {phase: Bound}}")
	r.delete("persistentvolumeclaims/data")
	r.reaches("persistentvolumeclaims/data", "{metadata: {deletionTimestamp: '*', finalizers: [kubernetes.io/pvc-protection]}, status: {phase: Bound}}")
	// Another pod may not begin to use it.
	r.apply(barePod, "late", "", "", using("data"))
	r.reaches("pods/late", "status: {conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable}]}")
	r.delete("pods/late")
	r.gone("pods/late")
	r.delete("pods/user")
	r.absent("persistentvolumeclaims/data")
	r.absent("persistentvolumes/parity-protected")
}

// The test attaches, as a driver's attacher does.
func attachment(r *run) {
	const driver = "attach.parity.example"
	r.apply("{apiVersion: storage.k8s.io/v1, kind: CSIDriver, metadata: {name: %s}, spec: {attachRequired: true}}", driver)
	r.apply(volume, "parity-attached", r.ns, "parity-attach", "1Gi", fmt.Sprintf("csi: {driver: %s, volumeHandle: one}", driver))
	r.apply(claim, "data", "parity-attach", "1Gi", "")
	r.node(hollow.Config{Name: "attaching", Taints: r.keepOut()})
	r.patch("nodes/attaching", "metadata: {annotations: {volumes.kubernetes.io/controller-managed-attach-detach: 'true'}}")
	r.apply("{apiVersion: storage.k8s.io/v1, kind: CSINode, metadata: {name: attaching}, spec: {drivers: [{name: %s, nodeID: attaching}]}}", driver)
	r.reaches("persistentvolumeclaims/data", "status: {phase: Bound}")
	r.apply(barePod, "user", "", "", using("data")+"nodeSelector: {kubernetes.io/hostname: attaching}, "+r.tolerates())
	r.reaches("pods/user", "spec: {nodeName: attaching}")
	of := func() []object {
		var all []object
		for _, a := range r.list("volumeattachments", "") {
			if field(&a, "spec", "attacher") == driver {
				all = append(all, a)
			}
		}
		return all
	}
	r.eventually("the attachment", func(context.Context) error {
		all := of()
		if len(all) != 1 {
			return fmt.Errorf("there are %d", len(all))
		}
		return match("", r.value("spec: {nodeName: attaching, source: {persistentVolumeName: parity-attached}}"), all[0].Object)
	})
	r.status("volumeattachments/"+of()[0].GetName(), "{attached: true}")
	r.reaches("nodes/attaching", "status: {volumesAttached: [{name: kubernetes.io/csi/%s^one}]}", driver)
	r.event("Pod", "user", "SuccessfulAttachVolume", "parity-attached")
	r.delete("pods/user")
	r.absent("pods/user")
	r.eventually("no attachment", func(context.Context) error {
		if all := of(); len(all) > 0 {
			return fmt.Errorf("%s", show(&all[0]))
		}
		return nil
	})
	r.want("nodes/attaching", "status: {volumesAttached: null}")
}

func attributes(r *run) {
	r.apply("{apiVersion: storage.k8s.io/v1, kind: VolumeAttributesClass, metadata: {name: parity}, driverName: driver.parity.example, parameters: {speed: high}}")
	r.reaches("volumeattributesclasses/parity", "metadata: {finalizers: [kubernetes.io/vac-protection]}")
	r.apply(claim, "data", "none", "1Gi", ", volumeAttributesClassName: parity")
	r.delete("volumeattributesclasses/parity")
	r.reaches("volumeattributesclasses/parity", "metadata: {deletionTimestamp: '*', finalizers: [kubernetes.io/vac-protection]}")
	r.delete("persistentvolumeclaims/data")
	r.absent("volumeattributesclasses/parity")
}

func ephemeralVolumes(r *run) {
	const scratch = "volumes: [{name: scratch, ephemeral: {volumeClaimTemplate: {metadata: {labels: {of: scratch}}, spec: {storageClassName: parity-ephemeral, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}}}], "
	p := r.apply(barePod, "user", "", "", scratch)
	r.reaches("persistentvolumeclaims/user-scratch", "metadata: {labels: {of: scratch}, ownerReferences: %s}", ownedBy(p))
	r.apply(volume, "parity-ephemeral", r.ns, "parity-ephemeral", "1Gi", onHost)
	r.reaches("persistentvolumeclaims/user-scratch", "status: {phase: Bound}")
	r.reaches("pods/user", "status: {phase: Running}")
	r.delete("pods/user")
	r.absent("pods/user")
	r.absent("persistentvolumeclaims/user-scratch")
	// A claim of that name that is another's is not used.
	mine := r.apply(claim, "second-scratch", "parity-ephemeral", "1Gi", "")
	r.apply(barePod, "second", "", "", scratch)
	r.event("Pod", "second", "FailedScheduling", "was not created for pod")
	r.want("persistentvolumeclaims/second-scratch", "metadata: {uid: %s, ownerReferences: null}", mine.GetUID())
	r.want("pods/second", "status: {phase: Pending}")
}

// devices publishes two devices of a node, and a class of them.
func (r *run) devices(node string) (driver string) {
	driver = strings.ReplaceAll(r.ns, "-", ".") + ".parity.example"
	r.node(hollow.Config{Name: node, Taints: r.keepOut()})
	r.apply(`
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: %[1]s}
spec: {selectors: [{cel: {expression: "device.driver == '%[1]s'"}}]}
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: %[2]s}
spec: {driver: %[1]s, nodeName: %[2]s, pool: {name: %[2]s, generation: 1, resourceSliceCount: 1}, devices: [{name: zero}, {name: one}]}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: device}
spec: {metadata: {labels: {of: device}}, spec: {devices: {requests: [{name: it, exactly: {deviceClassName: %[1]s}}]}}}`, driver, node)
	return driver
}

// deviceUser is a pod that has a device of its own.
func (r *run) deviceUser(name string) *object {
	r.Helper()
	return r.apply(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  tolerations: [{key: parity, value: %s}]
  resourceClaims: [{name: device, resourceClaimTemplateName: device}]
  containers: [{name: main, image: none, resources: {claims: [{name: device}]}}]`, name, r.ns)
}

func resourceClaims(r *run) {
	driver := r.devices("equipped")
	for _, name := range []string{"first", "second"} {
		user := r.deviceUser(name)
		p := r.reaches("pods/"+name, "{spec: {nodeName: equipped}, status: {phase: Running, resourceClaimStatuses: [{name: device, resourceClaimName: '*'}]}}")
		statuses, _ := field(p, "status", "resourceClaimStatuses").([]any)
		status, _ := statuses[0].(map[string]any)
		r.reaches(fmt.Sprintf("resourceclaims/%v", status["resourceClaimName"]), `
metadata: {generateName: %[1]s-device-, labels: {of: device}, ownerReferences: [{apiVersion: v1, kind: Pod, name: %[1]s, uid: %[2]s, controller: true}], annotations: {resource.kubernetes.io/pod-claim-name: device}, finalizers: [resource.kubernetes.io/delete-protection]}
status:
  allocation: {devices: {results: [{driver: %[3]s, pool: equipped, device: "*", request: it}]}}
  reservedFor: [{resource: pods, name: %[1]s, uid: %[2]s}]`, name, user.GetUID(), driver)
	}
	// Both are taken; who comes third waits for one that is given back.
	r.deviceUser("third")
	r.counted(3, "resourceclaims", "of=device", "{}")
	r.reaches("pods/third", "status: {conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable}]}")
	r.patch("pods/first", "metadata: {annotations: {%s: '0'}}", hollow.Exit)
	r.want("pods/third", "{spec: {nodeName: equipped}, status: {phase: Running}}")
	r.delete("pods/first")
	r.absent("pods/first")
	r.count(2, "resourceclaims", "of=device", "{metadata: {deletionTimestamp: null}, status: {allocation: '*', reservedFor: ['*']}}")
}

func deviceTaints(r *run) {
	driver := r.devices("worn")
	r.deviceUser("user")
	r.reaches("pods/user", "{spec: {nodeName: worn}, status: {phase: Running}}")
	r.apply(`
apiVersion: resource.k8s.io/v1
kind: DeviceTaintRule
metadata: {name: parity}
spec: {deviceSelector: {driver: %s, pool: worn}, taint: {key: broken, value: "yes", effect: NoExecute}}`, driver)
	r.absent("pods/user")
	r.counted(0, "resourceclaims", "of=device", "{}")
	r.want("devicetaintrules/parity", "status: {conditions: [{type: EvictionInProgress, status: 'False'}]}")
	r.deviceUser("late")
	r.reaches("pods/late", "status: {conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable}]}")
}
