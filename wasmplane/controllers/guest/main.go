//go:build wasip1

// Command guest is the module of the control plane: upstream's controllers and
// its scheduler, unmodified, each started by the code of kube-controller-manager
// and kube-scheduler. It is built with GOOS=wasip1 GOARCH=wasm
// -buildmode=c-shared by wasmplane/module/cmd/modulebuild; every instance of it
// becomes one controller.
package main

import (
	"context"
	"fmt"
	"os"
	_ "time/tzdata" // for cron jobs; a guest has no files

	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	"k8s.io/kubernetes/pkg/controller"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers/options"
	"github.com/dormouse-k8s/dormouse/wasmplane/guest"
)

func main() {}

func init() {
	for name, d := range app.NewControllerDescriptors() {
		guest.Register(name, start("kube-controller-manager", func(ctx context.Context, s abi.Start) error {
			return runController(ctx, s, d)
		}))
	}
	guest.Register(options.Scheduler, start("kube-scheduler", runScheduler))
}

// start prepares what belongs to a process; program is its name.
func start(program string, run guest.RunFunc) guest.RunFunc {
	return func(ctx context.Context, s abi.Start) error {
		os.Args = []string{program}
		userAgent = program + "/wasm/" + s.Controller
		utilrand.Seed(s.Seed)
		return run(klog.NewContext(ctx, klog.Background()), s)
	}
}

// runController does what kube-controller-manager does for each of its controllers.
func runController(ctx context.Context, s abi.Start, d *app.ControllerDescriptor) error {
	env, err := newEnvironment(ctx, s)
	if err != nil {
		return err
	}
	if d.RequiresSpecialHandling() {
		d = app.ServiceAccountTokenController(env.ClientBuilder)
	}
	if d.Name() == names.TaintEvictionController {
		// It relies on an index that the node lifecycle controller adds to the informer
		// which they share in upstream's process.
		if err := controller.AddPodNodeNameIndexer(env.InformerFactory.Core().V1().Pods().Informer()); err != nil {
			return err
		}
	}
	c, err := d.BuildController(ctx, env.ControllerContext)
	if err != nil {
		return fmt.Errorf("creating it: %w", err)
	}
	if c != nil { // upstream's way to say that there is nothing for it to do
		env.start(ctx)
		if d.Name() == names.StorageVersionMigratorController {
			go env.followMigrations(ctx)
		}
		c.Run(ctx)
	}
	<-ctx.Done()
	return ctx.Err()
}
