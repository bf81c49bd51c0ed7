package controllers

import "time"

// volume is a field of the volumes of a pod, by its number in VolumeSource.
func volume(name string, number int) Field {
	return Field{Name: "spec.volumes." + name, Path: []int{2, 1, 2, number}}
}

// A pod uses a claim by its name, or has one made for it.
var (
	claimVolume     = volume("persistentVolumeClaim", 10)
	ephemeralVolume = volume("ephemeral", 29)
)

// phase is the phase of a claim or a volume.
func phase(value string) Field { return Field{Name: "status.phase", Path: []int{3, 1}, Value: value} }

// noPhase is for one that nobody has looked at yet.
var noPhase = Field{Name: "status.phase", Path: []int{3, 1}, Absent: true}

var persistentVolumeBinder = Declaration{
	Name:     "persistentvolume-binder-controller",
	Identity: serviceAccount + "persistent-volume-binder",
	Resources: []string{"persistentvolumes", "persistentvolumeclaims", "storageclasses.storage.k8s.io",
		"pods", "nodes"},
	// Pods and nodes it looks up when it recycles or provisions.
	Wait: map[string]Events{"pods": Any, "nodes": Any},
	// It looks at all volumes and claims each 15 seconds. A volume or a class that
	// comes after the claim is found only so, and volumes are reclaimed so.
	TimersFor: []string{"persistentvolumeclaims", "persistentvolumes"},
	Counting: map[string][]Field{
		"persistentvolumeclaims": {phase("Pending"), noPhase},
		"persistentvolumes":      {phase("Pending"), phase("Released"), phase("Failed"), noPhase},
	},
	TimerSlack:  time.Minute,
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var persistentVolumeAttachDetach = Declaration{
	Name:     "persistentvolume-attach-detach-controller",
	Identity: serviceAccount + "attachdetach-controller",
	Resources: []string{"pods", "nodes", "persistentvolumeclaims", "persistentvolumes",
		"csinodes.storage.k8s.io", "csidrivers.storage.k8s.io", "volumeattachments.storage.k8s.io"},
	// Volumes, drivers and attachments it looks up, right when a pod comes. They
	// change rarely, and have to be known by then.
	Wait: map[string]Events{
		"persistentvolumeclaims":           Deleted,
		"persistentvolumes":                Deleted,
		"csinodes.storage.k8s.io":          Deleted,
		"csidrivers.storage.k8s.io":        Deleted,
		"volumeattachments.storage.k8s.io": Added,
	},
	// The volumes that are attached, directly or through CSI.
	Having: map[string][]Field{"pods": {
		claimVolume,
		ephemeralVolume,
		volume("iscsi", 8),
		volume("fc", 17),
		volume("gcePersistentDisk", 3),
		volume("awsElasticBlockStore", 4),
		volume("cinder", 13),
		volume("azureFile", 18),
		volume("azureDisk", 22),
		volume("vsphereVolume", 20),
		volume("portworxVolume", 24),
	}},
	// It compares ten times a second what is attached with what should be. Nothing
	// changes there without an event, except that it tries again what failed, and
	// takes volumes from a dead node after 6 minutes.
	TimersFor:   []string{"persistentvolumes", "volumeattachments.storage.k8s.io"},
	TimerSlack:  5 * time.Minute,
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var persistentVolumeExpander = Declaration{
	Name:        "persistentvolume-expander-controller",
	Identity:    serviceAccount + "expand-controller",
	Resources:   []string{"persistentvolumeclaims"},
	Wait:        map[string]Events{"persistentvolumeclaims": Deleted},
	Having:      map[string][]Field{"persistentvolumeclaims": {phase("Bound")}},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var persistentVolumeClaimProtection = Declaration{
	Name:      "persistentvolumeclaim-protection-controller",
	Identity:  serviceAccount + "pvc-protection-controller",
	Resources: []string{"persistentvolumeclaims", "pods"},
	Wait:      map[string]Events{"persistentvolumeclaims": Deleted},
	// Every change of a pod that uses a claim: since when it is unused is in the
	// claim's status.
	Having:      map[string][]Field{"pods": {claimVolume, ephemeralVolume}},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var persistentVolumeProtection = Declaration{
	Name:        "persistentvolume-protection-controller",
	Identity:    serviceAccount + "pv-protection-controller",
	Resources:   []string{"persistentvolumes"},
	Wait:        map[string]Events{"persistentvolumes": Deleted},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var volumeAttributesClassProtection = Declaration{
	Name:      "volumeattributesclass-protection-controller",
	Identity:  serviceAccount + "volumeattributesclass-protection-controller",
	Resources: []string{"volumeattributesclasses.storage.k8s.io", "persistentvolumeclaims", "persistentvolumes"},
	// A class may go once nobody uses it any more. So claims and volumes that come
	// must not wait, although they are only looked up: then they are known by the time
	// that it goes.
	Wait:        map[string]Events{"volumeattributesclasses.storage.k8s.io": Deleted},
	Without:     onlyWith("volumeattributesclasses.storage.k8s.io", "persistentvolumeclaims", "persistentvolumes"),
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var ephemeralVolumes = Declaration{
	Name:      "ephemeral-volume-controller",
	Identity:  serviceAccount + "ephemeral-volume-controller",
	Resources: []string{"pods", "persistentvolumeclaims"},
	// It makes a claim when the pod comes, and again when the claim goes.
	Wait:        map[string]Events{"pods": Any &^ Added, "persistentvolumeclaims": Any &^ Deleted},
	Having:      map[string][]Field{"pods": {ephemeralVolume}},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var seLinuxWarning = Declaration{
	Name:      "selinux-warning-controller",
	Identity:  serviceAccount + "selinux-warning-controller",
	Resources: []string{"pods", "persistentvolumeclaims", "persistentvolumes", "csidrivers.storage.k8s.io"},
	Wait: map[string]Events{
		"persistentvolumeclaims": Deleted,
		"persistentvolumes":      Deleted,
	},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
