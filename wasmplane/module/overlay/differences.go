package overlay

import (
	"path"
	"slices"
)

// Patch replaces one piece of text in one file of upstream.
type Patch struct {
	Module string // module path, or std
	File   string // path of the file in the module
	Old    string // must occur exactly once
	New    string
	Reason string
}

// Patches are all the patches, in no particular order. They are applied before
// anything else.
var Patches = append(patches, unregistered(unused, unusedReviews)...)

var patches = []Patch{
	{
		Module: "k8s.io/client-go",
		File:   "util/workqueue/delaying_queue.go",
		Old:    "const maxWait = 10 * time.Second",
		New:    "const maxWait = 100 * 365 * 24 * time.Hour",
		Reason: "A heartbeat against lost timers. It would wake every sleeping guest each 10 seconds, " +
			"and no timer gets lost: the plane keeps the guest's clock and its next timer.",
	},
	{
		Module: kubernetes,
		File:   "cmd/kube-controller-manager/app/core.go",
		Old:    "resourceQuotaController.Sync(ctx, discoveryFunc, 30*time.Second)",
		New:    "SyncKinds(ctx, func(ctx context.Context, period time.Duration) { resourceQuotaController.Sync(ctx, discoveryFunc, period) })",
		Reason: "It asks each 30 seconds which kinds there are. In a guest it asks when the definition of one changes.",
	},
	{
		Module: kubernetes,
		File:   "cmd/kube-controller-manager/app/core.go",
		Old:    "c.Sync(ctx, c.discoveryClient, syncPeriod)",
		New:    "SyncKinds(ctx, func(ctx context.Context, period time.Duration) { c.Sync(ctx, c.discoveryClient, period) })",
		Reason: "The same for the garbage collector.",
	},
	{
		Module: kubernetes,
		File:   "cmd/kube-controller-manager/app/plugins.go",
		Old:    "return flexvolume.GetDynamicPluginProber(ctx, config.FlexVolumePluginDir, exec.New() /*exec.Interface*/)",
		New:    "return nil",
		Reason: "FlexVolume drivers are programs in a directory of the host, which a guest cannot reach. " +
			"Upstream goes on without them where there is no prober.",
	},
	{
		Module: kubernetes,
		File:   "pkg/controller/daemon/daemon_controller.go",
		Old:    "BackoffGCInterval = 1 * time.Minute",
		New:    "BackoffGCInterval = 24 * time.Hour",
		Reason: "It forgets back-offs of deleted pods, to save memory. Once a minute it would wake the guest.",
	},
	{
		Module: kubernetes,
		File:   "pkg/scheduler/scheduler.go",
		Old:    "	debugger.ListenForSignal(ctx)\n",
		New:    "	_ = debugger\n",
		Reason: "A guest gets no signals, and the Go runtime waits for them in a busy loop on this platform.",
	},
	{
		Module: "k8s.io/apiserver",
		File:   "pkg/server/dynamiccertificates/dynamic_serving_content.go",
		Old: `	go wait.Until(func() {
		if err := c.watchCertKeyFile(ctx.Done()); err != nil {
			klog.ErrorS(err, "Failed to watch cert and key file, will retry later")
		}
	}, time.Minute, ctx.Done())
`,
		New: "",
		Reason: "It watches the files of the signing keys, and looks at them each minute where it cannot. " +
			"The files of a guest are those it was started with.",
	},
	{
		Module: kubernetes,
		File:   "pkg/apis/apps/install/install.go",
		Old: `	"k8s.io/kubernetes/pkg/apis/apps/v1beta1"
	"k8s.io/kubernetes/pkg/apis/apps/v1beta2"
`,
		New:    "",
		Reason: "See Omissions: of the group only version 1 is needed, for the defaults of StatefulSets.",
	},
	{
		Module: kubernetes,
		File:   "pkg/apis/apps/install/install.go",
		Old: `	utilruntime.Must(v1beta1.AddToScheme(scheme))
	utilruntime.Must(v1beta2.AddToScheme(scheme))
`,
		New:    "",
		Reason: "The same.",
	},
	{
		Module: kubernetes,
		File:   "pkg/apis/apps/install/install.go",
		Old:    "scheme.SetVersionPriority(v1.SchemeGroupVersion, v1beta2.SchemeGroupVersion, v1beta1.SchemeGroupVersion)",
		New:    "scheme.SetVersionPriority(v1.SchemeGroupVersion)",
		Reason: "The same.",
	},

	{
		Module: "k8s.io/apiextensions-apiserver",
		File:   "pkg/apis/apiextensions/v1beta1/register.go",
		Old:    "NewSchemeBuilder(addKnownTypes, addDefaultingFuncs)",
		New:    "NewSchemeBuilder()",
		Reason: "See unregistered.",
	},
	{
		Module: "k8s.io/apiextensions-apiserver",
		File:   "pkg/apis/apiextensions/v1beta1/register.go",
		Old:    "	localSchemeBuilder.Register(addDefaultingFuncs)\n",
		New:    "",
		Reason: "The same.",
	},
	{
		Module: "k8s.io/apiextensions-apiserver",
		File:   "pkg/apis/apiextensions/v1beta1/zz_generated.conversion.go",
		Old:    "	localSchemeBuilder.Register(RegisterConversions)\n",
		New:    "",
		Reason: "The same.",
	},

	// What follows is about memory that Go's runtime writes to: each page of it becomes
	// a page of the guest's own, and a part of its snapshot.
	{
		Module: std,
		File:   "runtime/runtime1.go",
		Old:    "{name: \"clobberfree\", value: &debug.clobberfree},",
		New:    "{name: \"clobberfree\", value: &debug.clobberfree, def: 1},",
		Reason: "An aid of debugging that overwrites dead objects. With the next patch they become zeros, which take " +
			"no space in a snapshot.",
	},
	{
		Module: std,
		File:   "runtime/mgcsweep.go",
		Old: `	for i := uintptr(0); i < size; i += 4 {
		*(*uint32)(add(x, i)) = 0xdeadbeef
	}
`,
		New:    "	memclrNoHeapPointers(x, size)\n",
		Reason: "See above.",
	},
	{
		Module: std,
		File:   "runtime/mgcwork.go",
		Old:    "			mheap_.freeManual(span, spanAllocWorkBuf)\n",
		New:    "			memclrNoHeapPointers(unsafe.Pointer(span.base()), workbufAlloc)\n			mheap_.freeManual(span, spanAllocWorkBuf)\n",
		Reason: "A collection leaves the addresses of what it marked in a quarter of a megabyte of buffers. Zeros take no space.",
	},
	{
		Module: std,
		File:   "runtime/mspanset.go",
		Old:    "spanSetBlockEntries = 512 ",
		New:    "spanSetBlockEntries = 13 ",
		Reason: "Each of 544 lists of spans has a block of 4.5 KiB, most with few entries. Each collection goes through " +
			"all lists, and would give a guest two pages of its own for each. With this and what follows a block has 128 bytes.",
	},
	{
		Module: std,
		File:   "runtime/mspanset.go",
		Old:    "	pad [tagAlign - unsafe.Sizeof(spanSetBlockHeader{})]byte\n",
		New:    "",
		Reason: "The entries take the place behind the header that keeps the next block aligned.",
	},
	{
		Module: std,
		File:   "runtime/mspanset.go",
		Old:    "spanSetInitSpineCap = 256 ",
		New:    "spanSetInitSpineCap = 16 ",
		Reason: "The same for their 2 KiB of pointers to blocks. They grow when they must.",
	},
	{
		Module: std,
		File:   "runtime/tagptr.go",
		Old:    "const tagAlignBits = 9",
		New:    "const tagAlignBits = 7",
		Reason: "Blocks are aligned to 128 bytes, not to 512: the counter that shares a word with their address has two bits less. It " +
			"tells threads what others have done, and a guest has one.",
	},
	{
		Module: std,
		File:   "runtime/netpoll.go",
		Old:    "pad [tagAlign - unsafe.Sizeof(pollDesc{})]byte",
		New:    "pad [4*tagAlign - unsafe.Sizeof(pollDesc{})]byte",
		Reason: "It has 280 bytes. A guest has none of them.",
	},
}

// Trim leaves of a file of upstream only the declarations that guests need.
type Trim struct {
	Module string   // module path
	File   string   // path of the file in the module
	Keep   []string // names of functions, types and values; "Type.Method" for methods
	Drop   []string // other files of the same directory, of which nothing is needed
	Reason string
}

// Trims are all the trimmed files.
var Trims = []Trim{
	{
		Module: kubernetes,
		File:   "cmd/kube-controller-manager/app/controllermanager.go",
		Keep: []string{
			"ControllerContext", "ControllerContext.NewClientConfig", "ControllerContext.NewClient", "readCA",
		},
		Reason: "What is left out makes a process of the controllers: flags, leader election, a server.",
	},
	{
		Module: kubernetes,
		File:   "cmd/kube-controller-manager/app/plugins.go",
		Keep: []string{
			"ProbeAttachableVolumePlugins", "GetDynamicPluginProber", "ProbeExpandableVolumePlugins",
			"ProbeProvisionableRecyclableVolumePlugins", "ProbePersistentVolumePlugins", "probeControllerVolumePlugins",
			"AttemptToLoadRecycler",
		},
		Reason: "The import of FlexVolume, see the patch, does not compile for WASI.",
	},
	{
		Module: "k8s.io/apiserver",
		File:   "pkg/storageversion/updater.go",
		Keep:   []string{"SetCommonEncodingVersion", "findStatusCondition", "setStatusCondition"},
		Drop:   []string{"manager.go"},
		Reason: "The rest is the API server's side, and brings its whole library along.",
	},
	{
		Module: "k8s.io/apiserver",
		File:   "pkg/admission/plugin/policy/validating/plugin.go",
		Keep:   []string{"convertv1beta1Variables"},
		Drop: []string{
			"accessor.go", "dispatcher.go", "errors.go", "initializer.go", "message.go", "policy_decision.go", "validator.go",
		},
		Reason: "Of the admission plugin only the type checker is needed.",
	},
	{
		Module: "k8s.io/apiserver",
		File:   "pkg/admission/plugin/policy/validating/interface.go",
		Keep: []string{
			"ValidationCondition", "ValidationCondition.GetExpression", "ValidationCondition.ReturnTypes",
			"Variable", "Variable.GetExpression", "Variable.ReturnTypes", "Variable.GetName",
		},
		Reason: "The same.",
	},
	{
		Module: kubernetes,
		File:   "pkg/quota/v1/install/registry.go",
		Keep:   []string{"NewQuotaConfigurationForControllers", "ignoredResources", "DefaultIgnoredResources"},
		Reason: "The other constructor is for admission, and brings the API server's library along.",
	},
	{
		Module: kubernetes,
		File:   "pkg/scheduler/backend/queue/testing.go",
		Keep:   []string{},
		Reason: "It is for tests, and brings fakes of all clients along.",
	},
	{
		Module: "k8s.io/mount-utils",
		File:   "mount_helper_unix.go",
		Keep:   []string{"splitMountOptions", "isMountPointMatch"},
		Reason: "Errors of mounts are errors of Linux. The controllers mount nothing; mount_helper_wasip1.go stands in.",
	},
}

// unregistered are patches that keep the types of versions out of every scheme: with
// each type come its encoding and its copies, a seventh of the module.
func unregistered(versions ...[]string) (patches []Patch) {
	for _, v := range slices.Concat(versions...) {
		patches = append(patches, Patch{
			Module: "k8s.io/api",
			File:   v + "/register.go",
			Old:    "NewSchemeBuilder(addKnownTypes)",
			New:    "NewSchemeBuilder()",
			Reason: "No guest uses these types.",
		})
	}
	return patches
}

// unused are versions of API groups of which no controller asks for an object by its
// Go type. Of their objects the garbage collector and others still see the metadata.
var unused = []string{
	"admissionregistration/v1alpha1",
	"admissionregistration/v1beta1",
	"apps/v1beta1",
	"apps/v1beta2",
	"batch/v1beta1",
	"coordination/v1alpha2",
	"coordination/v1beta1",
	"discovery/v1beta1",
	"events/v1beta1",
	"extensions/v1beta1",
	"flowcontrol/v1",
	"flowcontrol/v1beta1",
	"flowcontrol/v1beta2",
	"flowcontrol/v1beta3",
	"lifecycle/v1alpha1",
	"networking/v1beta1",
	"node/v1alpha1",
	"node/v1beta1",
	"policy/v1beta1",
	"rbac/v1alpha1",
	"rbac/v1beta1",
	"storage/v1alpha1",
	"storage/v1beta1",
	"storagemigration/v1beta1",
}

// unusedReviews are the same for groups whose objects cannot be watched.
var unusedReviews = []string{
	"authentication/v1alpha1",
	"authentication/v1beta1",
	"authorization/v1beta1",
}

// Omissions are all the files from which packages are left out.
var Omissions = append(unusedInformers(),
	Omission{
		Module:   "k8s.io/client-go",
		File:     "kubernetes/clientset.go",
		Packages: packagesOf("k8s.io/client-go/kubernetes/typed/", slices.Concat(unused, unusedReviews)),
		Reason: "What an interface names, the linker keeps: all methods of all types that methods of the client have to do with. " +
			"This, and not to register them, makes a tenth of the module.",
	},
	Omission{
		Module:   "k8s.io/client-go",
		File:     "informers/generic.go",
		Packages: packagesOf("k8s.io/api/", unused),
		Reason:   "It makes informers by the name of a resource.",
	},
	Omission{
		Module:   "k8s.io/apiextensions-apiserver",
		File:     "pkg/client/clientset/clientset/clientset.go",
		Packages: []string{"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1beta1"},
		Reason:   "The same as for the other clients.",
	},
	Omission{
		Module: kubernetes,
		File:   "cmd/kube-controller-manager/app/import_known_versions.go",
		Packages: []string{
			"k8s.io/kubernetes/pkg/apis/authentication/install", "k8s.io/kubernetes/pkg/apis/authorization/install",
			"k8s.io/kubernetes/pkg/apis/autoscaling/install", "k8s.io/kubernetes/pkg/apis/batch/install",
			"k8s.io/kubernetes/pkg/apis/certificates/install", "k8s.io/kubernetes/pkg/apis/coordination/install",
			"k8s.io/kubernetes/pkg/apis/events/install", "k8s.io/kubernetes/pkg/apis/extensions/install",
			"k8s.io/kubernetes/pkg/apis/lifecycle/install", "k8s.io/kubernetes/pkg/apis/policy/install",
			"k8s.io/kubernetes/pkg/apis/rbac/install", "k8s.io/kubernetes/pkg/apis/resource/install",
			"k8s.io/kubernetes/pkg/apis/scheduling/install", "k8s.io/kubernetes/pkg/apis/storage/install",
		},
		Reason: "It registers the types that the API server works with, for a purpose that is gone. What is left has the " +
			"defaults of StatefulSets and of the pods that recycle volumes.",
	},
)

// unusedInformers leaves the versions out of the informers of each group.
func unusedInformers() (omissions []Omission) {
	for _, v := range unused {
		file := path.Join("informers", path.Dir(v), "interface.go")
		k := slices.IndexFunc(omissions, func(o Omission) bool { return o.File == file })
		if k < 0 {
			k = len(omissions)
			omissions = append(omissions, Omission{Module: "k8s.io/client-go", File: file, Reason: "They need the clients."})
		}
		omissions[k].Packages = append(omissions[k].Packages, "k8s.io/client-go/informers/"+v)
	}
	return omissions
}

// packagesOf are the packages of versions below one directory.
func packagesOf(dir string, versions []string) (packages []string) {
	for _, v := range versions {
		packages = append(packages, dir+v)
	}
	return packages
}

// Addition is a file of ours in a package of upstream. It lies under the same path
// below this directory.
type Addition struct {
	Module string // module path
	File   string // path of the file in the module
	Reason string
}

// Additions are all the added files.
var Additions = []Addition{
	{
		Module: kubernetes,
		File:   "cmd/kube-controller-manager/app/guest_wasip1.go",
		Reason: "Makes known to the guest program what the package keeps to itself.",
	},
	{
		Module: "k8s.io/mount-utils",
		File:   "mount_helper_wasip1.go",
		Reason: "Takes the place of what was trimmed.",
	},
	{
		Module: kubernetes,
		File:   "pkg/securitycontext/util_wasip1.go",
		Reason: "It asks how many processors the machine has, to hide their files from containers.",
	},
	{
		Module: kubernetes,
		File:   "pkg/util/filesystem/util_wasip1.go",
		Reason: "There is one for Unix and one for Windows. The controllers touch no files.",
	},
}

// Package replaces a whole package of upstream by the files of the directory
// of the same path below this one.
type Package struct {
	Module string // module path
	Dir    string // path of the package in the module
	Reason string
}

// Packages are all the replaced packages.
var Packages = []Package{
	{
		Module: kubernetes,
		Dir:    "pkg/kubelet/eviction",
		Reason: "The pod garbage collector takes one function of three lines from it; the rest adds 550 packages, " +
			"some of which do not compile for WASI.",
	},
	{
		Module: kubernetes,
		Dir:    "pkg/controlplane",
		Reason: "The storage version garbage collector takes the name of a label from it. The rest is the API server.",
	},
	{
		Module: kubernetes,
		Dir:    "pkg/controlplane/apiserver",
		Reason: "The same.",
	},
	{
		Module: kubernetes,
		Dir:    "pkg/generated/openapi",
		Reason: "It holds the definitions of all types. The status of admission policies looks there first " +
			"and then asks the API server, which has the same ones.",
	},
}

const kubernetes = "k8s.io/kubernetes"

// std stands for Go's standard library, which is no module.
const std = "std"

// Forbidden are packages that must not become part of a guest, with the reason.
var Forbidden = map[string]string{
	"k8s.io/component-base/metrics/prometheus/workqueue": "it makes every work queue update its metrics twice a second, asleep or not",
	"golang.org/x/net/trace":                             "it uses html/template, with which the linker cannot leave out any method: a third more code",
}
