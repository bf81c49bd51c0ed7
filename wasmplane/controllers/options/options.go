// Package options is what a server tells its guests of the cluster. It is apart
// from the declarations so that these can change without the guest program.
package options

import "encoding/json"

// Scheduler is the name of the guest that is no controller of
// kube-controller-manager.
const Scheduler = "kube-scheduler"

// Options reach the guest as JSON.
type Options struct {
	// ControllerManager is upstream's internal KubeControllerManagerConfiguration
	// with all defaults, as encoding/json writes it.
	ControllerManager json.RawMessage `json:"controllerManager,omitempty"`
	// Scheduler is for the scheduler alone.
	Scheduler *SchedulerOptions `json:"scheduler,omitempty"`
	// FeatureGates are those that are not at their default.
	FeatureGates map[string]bool `json:"featureGates,omitempty"`
}

// SchedulerOptions are those of kube-scheduler.
type SchedulerOptions struct {
	// Config is a KubeSchedulerConfiguration of upstream's API, in JSON.
	Config json.RawMessage `json:"config"`
	// UnschedulableSeconds is after how long a pod that cannot be scheduled is tried
	// again although nothing has changed.
	UnschedulableSeconds int64 `json:"unschedulableSeconds"`
}
