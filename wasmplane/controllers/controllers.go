// Package controllers declares the controllers that run as guests of the plane: who
// they are to the API server, what need not wake them, and what they may use. The
// guest program, which knows how to start them, is in the directory guest.
package controllers

import "time"

// Events is a set of kinds of watch events.
type Events uint8

// The kinds of watch events.
const (
	Added       Events = 1 << iota
	Modified           // the object lives on
	Terminating        // modified, and the object has a deletion timestamp
	Deleted
	Any = Added | Modified | Terminating | Deleted
)

// Declaration says what the plane must know of a controller. It is plain data
// and must not be changed.
type Declaration struct {
	// Name is upstream's name of the controller.
	Name string
	// Identity is the user as whom it acts: the one that upstream's
	// kube-controller-manager gives it with --use-service-account-credentials.
	Identity string
	// Resources are what it watches, as "resource" or "resource.group".
	Resources []string
	// Grants are those of Resources which upstream reads through informers of
	// kube-controller-manager's own account. The role of Identity lacks the verbs
	// get, list and watch for them, so the cluster has to grant these.
	Grants []string

	// Wait names events that need not wake the controller, by resource as in
	// Resources; "*" stands for every resource that is not named. They are
	// delivered before anything else at the next wake, the latest state of each
	// object.
	Wait map[string]Events
	// Urgent names resources of which an object with one of these fields wakes the
	// controller although events of its kind may wait.
	Urgent map[string][]Field
	// Changing names resources, in the same way as Wait, of which a change of one of
	// these fields does not wait, although events of its kind may.
	Changing map[string][]Field
	// WaitLimit is for how long an event may wait; 0: for some hours.
	WaitLimit time.Duration
	// Late names events, in the same way, that wake the controller a moment later than
	// they come, together with what comes meanwhile: they begin nothing that anybody
	// waits for, and where others have to do at once it only stands in their way.
	Late map[string]Events
	// Owned names resources of which an object concerns the controller only if
	// nobody controls it or an owner of one of these kinds does. Events of others
	// wait as those of Wait do; so do those that Having and Without leave out.
	Owned map[string][]string
	// Having names resources of which an object concerns the controller only if it
	// has one of these fields.
	Having map[string][]Field
	// Purpose, if not empty, names resources in the same way: while the controller knows
	// no such object, the events of others wait, too, and its timers rest.
	Purpose map[string][]Field
	// Without names resources whose objects concern the controller only while it
	// knows an object of one of these other resources.
	Without map[string][]string
	// Counting names resources of which only objects with one of these fields count for
	// Without and TimersFor.
	Counting map[string][]Field
	// TimersFor are resources: timers of the sleeping controller fire only while it
	// knows an object of one of them. Empty: always.
	TimersFor []string
	// TimerSlack is how late a timer of the sleeping controller may fire. Timers
	// of a controller that is resident fire on time.
	TimerSlack time.Duration
	// SlackAfter is for how long after an event woke the controller its timers fire
	// on time all the same, at least some seconds: what an event has begun may end
	// with one of them.
	SlackAfter time.Duration
	// Heartbeat, if not zero, is what TimerSlack relies on.
	Heartbeat Heartbeat

	// MemoryLimit bounds the linear memory, in bytes.
	MemoryLimit int64
	// RunLimit bounds how long the controller may run without once going idle.
	RunLimit time.Duration
}

// MayWait are the events of a resource that need not wake the controller.
func (d *Declaration) MayWait(resource string) Events { return ofResource(d.Wait, resource) }

// MayBeLate are the events of a resource that may wake it a moment later.
func (d *Declaration) MayBeLate(resource string) Events { return ofResource(d.Late, resource) }

// MayNotChange are the fields of a resource of which no change waits.
func (d *Declaration) MayNotChange(resource string) []Field { return ofResource(d.Changing, resource) }

func ofResource[T any](of map[string]T, resource string) T {
	if v, named := of[resource]; named {
		return v
	}
	return of["*"]
}

// Field is a field of an API object, found in its protobuf encoding.
type Field struct {
	// Name is for people: "spec.volumes.ephemeral".
	Name string
	// Path are the field numbers from the object's root, as in the generated.proto of
	// its API group. A repeated field stands for each of its elements.
	Path []int
	// Value, if not empty, is what the field, a string, has to be.
	Value string
	// Absent turns it around: the field must not be there, or be empty.
	Absent bool
}

// Heartbeat makes the slack of timers conditional: it holds while every object
// of Resource in Namespace changes at least once in Within. As soon as one falls
// silent, timers fire on time.
type Heartbeat struct {
	Resource  string
	Namespace string // "" stands for all
	Within    time.Duration
}

const (
	serviceAccount    = "system:serviceaccount:kube-system:"
	controllerManager = "system:kube-controller-manager"

	// A controller that watches pods needs about 10 KiB for each of them.
	memoryLimit = 512 << 20
	// The longest that a healthy controller is busy is its first list. A slow
	// board with thousands of pods takes some seconds for it.
	runLimit = time.Minute
)

// onlyWith is Without for resources that concern a controller only while it knows
// an object of another one, usually that which it is for.
func onlyWith(one string, resources ...string) map[string][]string {
	m := map[string][]string{}
	for _, r := range resources {
		m[r] = []string{one}
	}
	return m
}

// All returns every declaration: the controllers in the order in which upstream
// lists their names, and the scheduler.
func All() []Declaration {
	return []Declaration{
		serviceAccountToken,
		endpoints,
		endpointSlice,
		endpointSliceMirroring,
		replicationController,
		podGarbageCollector,
		resourceQuota,
		namespace,
		serviceAccounts,
		garbageCollector,
		daemonSet,
		job,
		deployment,
		replicaSet,
		horizontalPodAutoscaler,
		disruption,
		statefulSet,
		cronJob,
		signingRequestSigning,
		signingRequestApproving,
		signingRequestCleaner,
		podCertificateRequestCleaner,
		ttl,
		bootstrapSigner,
		tokenCleaner,
		nodeIPAM,
		nodeLifecycle,
		taintEviction,
		deviceTaintEviction,
		persistentVolumeBinder,
		persistentVolumeAttachDetach,
		persistentVolumeExpander,
		clusterRoleAggregation,
		persistentVolumeClaimProtection,
		persistentVolumeProtection,
		podGroupProtection,
		ttlAfterFinished,
		rootCAPublisher,
		clusterTrustBundlePublisher,
		ephemeralVolumes,
		storageVersionGarbageCollector,
		resourceClaim,
		resourcePoolStatusRequest,
		legacyServiceAccountTokenCleaner,
		validatingAdmissionPolicyStatus,
		volumeAttributesClassProtection,
		serviceCIDR,
		storageVersionMigrator,
		seLinuxWarning,
		scheduler,
	}
}
