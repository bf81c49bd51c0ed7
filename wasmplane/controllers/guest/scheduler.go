//go:build wasip1

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	configscheme "k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

// runScheduler does what kube-scheduler does once it has read its flags.
func runScheduler(ctx context.Context, s abi.Start) error {
	o, err := readOptions(s.Options)
	if err != nil {
		return err
	}
	if o.Scheduler == nil {
		return errors.New("no configuration for the scheduler")
	}
	decoded, gvk, err := configscheme.Codecs.UniversalDecoder().Decode(o.Scheduler.Config, nil, nil)
	if err != nil {
		return fmt.Errorf("reading its configuration: %w", err)
	}
	cc, ok := decoded.(*config.KubeSchedulerConfiguration)
	if !ok {
		return fmt.Errorf("reading its configuration: it is a %s", gvk)
	}
	dynamicClient, err := dynamic.NewForConfig(clients.config)
	if err != nil {
		return err
	}
	name, err := cache.NewInformerName("kube-scheduler")
	if err != nil {
		return err
	}
	broadcaster := events.NewEventBroadcasterAdapterWithContext(ctx, clients.set)
	typed := informerFactory{scheduler.NewInformerFactory(clients.set, 0, name)}
	others := dynamicinformer.NewFilteredDynamicSharedInformerFactory(dynamicClient, 0, corev1.NamespaceAll, nil)
	recorders := profile.RecorderFactory(func(name string) events.EventRecorderLogger { return broadcaster.NewRecorder(name) })
	sched, err := scheduler.New(ctx, clients.set, informers.SharedInformerFactory(typed), others, recorders,
		scheduler.WithComponentConfigVersion(gvk.GroupVersion().String()),
		scheduler.WithKubeConfig(clients.config),
		scheduler.WithProfiles(cc.Profiles...),
		scheduler.WithPercentageOfNodesToScore(cc.PercentageOfNodesToScore),
		scheduler.WithPodMaxBackoffSeconds(cc.PodMaxBackoffSeconds),
		scheduler.WithPodInitialBackoffSeconds(cc.PodInitialBackoffSeconds),
		scheduler.WithPodMaxInUnschedulablePodsDuration(time.Duration(o.Scheduler.UnschedulableSeconds)*time.Second),
		scheduler.WithParallelism(cc.Parallelism),
	)
	if err != nil {
		return fmt.Errorf("creating it: %w", err)
	}
	broadcaster.StartRecordingToSink(ctx.Done())
	typed.Start(ctx.Done())
	others.Start(ctx.Done())
	typed.WaitForCacheSync(ctx.Done())
	others.WaitForCacheSync(ctx.Done())
	if err := sched.WaitForHandlersSync(ctx); err != nil {
		return fmt.Errorf("waiting for the first state: %w", err)
	}
	sched.Run(ctx)
	return ctx.Err()
}
