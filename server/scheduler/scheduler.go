// Package scheduler configures kube-scheduler and runs it as a library over the in-process transport.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/config"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	configscheme "k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	configv1 "k8s.io/kubernetes/pkg/scheduler/apis/config/v1"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/dormouse-k8s/dormouse/server/apiserver/inprocess"
	"github.com/dormouse-k8s/dormouse/server/options"
)

// Name is upstream's name of the component.
const Name = "kube-scheduler"

// Scheduler is a scheduler that does not run yet.
type Scheduler struct{ options *scheduleroptions.Options }

// New parses args, a user's arguments for kube-scheduler. Nothing is read or started.
func New(args []string) (*Scheduler, error) {
	o := scheduleroptions.NewOptions()
	return &Scheduler{o}, options.Parse("kube-scheduler-arg", o.Flags.FlagSets, map[string]string{
		// Clients are built in Run; upstream wants an address all the same.
		"master":       inprocess.Host,
		"kube-api-qps": "-1", // the API server's own fairness decides
		"leader-elect": "false",
		"secure-port":  "0",
		"profiling":    "false",
	}, args)
}

// Run schedules pods until ctx is done. transport reaches the API server, which is ready. It calls ready
// once it has seen what there is.
func (s *Scheduler) Run(ctx context.Context, transport func(user.Info) http.RoundTripper, ready func()) error {
	ctx = klog.NewContext(ctx, klog.Background())
	c, err := s.configure(ctx, transport(inprocess.User(user.KubeScheduler)))
	if err != nil {
		return err
	}
	recorders := profile.RecorderFactory(func(name string) events.EventRecorderLogger { return c.EventBroadcaster.NewRecorder(name) })
	cc := c.ComponentConfig
	sched, err := scheduler.New(ctx, c.Client, c.InformerFactory, c.DynInformerFactory, recorders,
		scheduler.WithComponentConfigVersion(cc.TypeMeta.APIVersion),
		scheduler.WithKubeConfig(c.KubeConfig),
		scheduler.WithProfiles(cc.Profiles...),
		scheduler.WithPercentageOfNodesToScore(cc.PercentageOfNodesToScore),
		scheduler.WithPodMaxBackoffSeconds(cc.PodMaxBackoffSeconds),
		scheduler.WithPodInitialBackoffSeconds(cc.PodInitialBackoffSeconds),
		scheduler.WithPodMaxInUnschedulablePodsDuration(c.PodMaxInUnschedulablePodsDuration),
		scheduler.WithExtenders(cc.Extenders...),
		scheduler.WithParallelism(cc.Parallelism),
	)
	if err != nil {
		return fmt.Errorf("building the scheduler: %w", err)
	}
	c.EventBroadcaster.StartRecordingToSink(ctx.Done())
	defer c.EventBroadcaster.Shutdown()

	c.InformerFactory.Start(ctx.Done())
	c.DynInformerFactory.Start(ctx.Done())
	defer c.InformerFactory.Shutdown()
	defer c.DynInformerFactory.Shutdown()
	c.InformerFactory.WaitForCacheSync(ctx.Done())
	c.DynInformerFactory.WaitForCacheSync(ctx.Done())
	if err := sched.WaitForHandlersSync(ctx); err != nil {
		return fmt.Errorf("waiting for the first state: %w", err)
	}
	ready()
	sched.Run(ctx)
	if ctx.Err() == nil {
		return errors.New("ended by itself")
	}
	return nil
}

// Configuration is what a scheduler elsewhere has to be told.
type Configuration struct {
	// Config is a KubeSchedulerConfiguration of upstream's API, in JSON.
	Config []byte
	// Unschedulable is after how long a pod that cannot be scheduled is tried again although nothing
	// has changed.
	Unschedulable time.Duration
	// Extended says that programs elsewhere are asked before a pod is bound.
	Extended bool
}

// Configuration reads the configuration file, if the arguments name one.
func (s *Scheduler) Configuration(ctx context.Context) (*Configuration, error) {
	c, err := s.complete(ctx)
	if err != nil {
		return nil, err
	}
	info, ok := runtime.SerializerInfoForMediaType(configscheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeJSON)
	if !ok {
		return nil, errors.New("encoding the scheduler's configuration: upstream knows no JSON")
	}
	b, err := runtime.Encode(configscheme.Codecs.EncoderForVersion(info.Serializer, configv1.SchemeGroupVersion), &c.ComponentConfig)
	if err != nil {
		return nil, fmt.Errorf("encoding the scheduler's configuration: %w", err)
	}
	return &Configuration{Config: b, Unschedulable: c.PodMaxInUnschedulablePodsDuration, Extended: len(c.ComponentConfig.Extenders) > 0}, nil
}

// complete validates the options and applies them.
func (s *Scheduler) complete(ctx context.Context) (*config.Config, error) {
	var err error
	if s.options.ComponentConfig, err = latest.Default(); err != nil {
		return nil, fmt.Errorf("loading the default configuration: %w", err)
	}
	if errs := s.options.Validate(); len(errs) > 0 {
		return nil, fmt.Errorf("kube-scheduler-arg: %w", utilerrors.NewAggregate(errs))
	}
	c := &config.Config{}
	if err := s.options.ApplyTo(klog.FromContext(ctx), c); err != nil {
		return nil, fmt.Errorf("kube-scheduler-arg: %w", err)
	}
	return c, nil
}

// configure is upstream's Options.Config with clients over transport.
func (s *Scheduler) configure(ctx context.Context, transport http.RoundTripper) (*config.Config, error) {
	c, err := s.complete(ctx)
	if err != nil {
		return nil, err
	}
	c.KubeConfig.Host, c.KubeConfig.Transport = inprocess.Host, transport
	if c.Client, err = kubernetes.NewForConfig(rest.AddUserAgent(c.KubeConfig, "scheduler")); err != nil {
		return nil, fmt.Errorf("building a client: %w", err)
	}
	dynamicClient, err := dynamic.NewForConfig(c.KubeConfig)
	if err != nil {
		return nil, fmt.Errorf("building a dynamic client: %w", err)
	}
	informers, err := cache.NewInformerName(Name)
	if err != nil {
		return nil, fmt.Errorf("naming the informers: %w", err)
	}
	c.EventBroadcaster = events.NewEventBroadcasterAdapterWithContext(ctx, c.Client)
	c.InformerFactory = scheduler.NewInformerFactory(c.Client, 0, informers)
	c.DynInformerFactory = dynamicinformer.NewFilteredDynamicSharedInformerFactory(dynamicClient, 0, corev1.NamespaceAll, nil)
	return c, nil
}
