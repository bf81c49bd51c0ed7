// Command guest is the module of the control plane: upstream's controllers,
// unmodified, each started with the arguments that kube-controller-manager
// gives it. It is built with GOOS=wasip1 GOARCH=wasm -buildmode=c-shared by
// wasmplane/module/cmd/modulebuild; every instance of it becomes one controller.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"strconv"

	"k8s.io/apimachinery/pkg/api/meta"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/guest"
)

func main() {}

// environment is what kube-controller-manager would have prepared for the
// controller.
type environment struct {
	options   controllers.Options
	config    *rest.Config
	client    kubernetes.Interface
	informers informers.SharedInformerFactory
}

// constructor makes a controller and returns what runs it until its context is
// done. The informers that it asked for are started in between.
type constructor func(ctx context.Context, env *environment) (func(context.Context), error)

// register makes a controller known under its upstream name; client is the name
// that upstream's client builder uses for it.
func register(name, client string, construct constructor) {
	guest.Register(name, func(ctx context.Context, s abi.Start) error {
		utilrand.Seed(s.Seed)
		if err := logTo(s.Verbosity); err != nil {
			return err
		}
		ctx = klog.NewContext(ctx, klog.LoggerWithName(klog.Background(), name))
		env, err := newEnvironment(client, s.Options)
		if err != nil {
			return err
		}
		run, err := construct(ctx, env)
		if err != nil {
			return fmt.Errorf("creating it: %w", err)
		}
		env.informers.Start(ctx.Done())
		run(ctx)
		return ctx.Err()
	})
}

func newEnvironment(client string, options []byte) (*environment, error) {
	env := &environment{}
	if len(options) > 0 {
		if err := json.Unmarshal(options, &env.options); err != nil {
			return nil, fmt.Errorf("reading its options: %w", err)
		}
	}
	env.options = env.options.WithDefaults()
	env.config = &rest.Config{
		Host:      "http://dormouse",
		Transport: guest.Transport,
		// Fairness is the API server's business, and it is in the same process.
		QPS: -1,
		// The part before the slash owns fields; it is the same as natively.
		UserAgent: "kube-controller-manager/wasm/" + client,
		ContentConfig: rest.ContentConfig{
			ContentType:        "application/vnd.kubernetes.protobuf",
			AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
		},
	}
	var err error
	if env.client, err = kubernetes.NewForConfig(env.config); err != nil {
		return nil, err
	}
	// No resync: it only repeats what the cache holds, and would wake the guest.
	env.informers = informerFactory{informers.NewSharedInformerFactoryWithOptions(env.client, 0, informers.WithTransform(trim))}
	return env, nil
}

// trim drops from cached objects what no controller reads, as upstream does.
func trim(obj any) (any, error) {
	if o, err := meta.Accessor(obj); err == nil && o.GetManagedFields() != nil {
		o.SetManagedFields(nil)
	}
	return obj, nil
}

// logTo sends klog to standard error, which the host reads line by line.
func logTo(verbosity int) error {
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(flags)
	return flags.Set("v", strconv.Itoa(verbosity))
}
