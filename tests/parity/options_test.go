package parity

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
)

// secondScheduler is a configuration with a further profile.
const secondScheduler = `
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: parity-second
`

// options are cases of what a server does that was started with other arguments.
var options = []trial{
	{"scheduler-profile", "kube-scheduler", secondProfile},
	{"finished-pods", "pod-garbage-collector-controller", finishedPods},
	{"bootstrap-tokens", "bootstrap-signer-controller token-cleaner-controller", bootstrapTokens},
	{"disabled", "", disabled},
}

// TestOptions: arguments for upstream's programs reach the controllers, wherever they
// run.
func TestOptions(t *testing.T) {
	for _, mode := range []string{"native", "wasm"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			config := filepath.Join(t.TempDir(), "scheduler.yaml")
			if err := os.WriteFile(config, []byte(secondScheduler), 0o600); err != nil {
				t.Fatal(err)
			}
			w := start(t, mode,
				"--kube-controller-manager-arg=controllers=*,-ttl-controller,bootstrap-signer-controller,token-cleaner-controller,selinux-warning-controller",
				"--kube-controller-manager-arg=terminated-pod-gc-threshold=1",
				"--kube-scheduler-arg=config="+config,
				"--kube-apiserver-arg=feature-gates="+gates,
				"--kube-apiserver-arg=runtime-config="+gatedAPIs)
			stop := w.evictGuests(t)
			t.Run("cases", func(t *testing.T) {
				for _, c := range slices.Concat(options, gated) {
					t.Run(c.name, func(t *testing.T) {
						t.Parallel()
						w.try(t, c)
					})
				}
			})
			stop()
			w.verify(t)
		})
	}
}

func secondProfile(r *run) {
	r.apply(barePod, "second", "", "", "schedulerName: parity-second, ")
	r.want("pods/second", "{spec: {nodeName: '*'}, status: {phase: Running}}")
}

// finishedPods: of those that have ended as many are left as the threshold says.
func finishedPods(r *run) {
	for i := range 3 {
		name := fmt.Sprintf("ends-%d", i)
		r.apply(barePod, name, "", "", "nodeName: hollow-0, ")
		r.reaches("pods/"+name, "status: {phase: Running}")
		r.status("pods/"+name, "{phase: Succeeded}")
	}
	if r.wasm { // or it looks at them some minutes later
		if _, err := r.Tell(r.Context(), "pod-garbage-collector-controller", "wake"); err != nil {
			r.Fatal(err)
		}
	}
	r.count(1, "pods", "", "status: {phase: Succeeded}")
}

// bootstrapTokens: these two controllers are off unless they are asked for.
func bootstrapTokens(r *run) {
	const token = `
apiVersion: v1
kind: Secret
type: bootstrap.kubernetes.io/token
metadata: {name: bootstrap-token-%[1]s}
stringData: {token-id: %[1]s, token-secret: 0123456789abcdef, usage-bootstrap-signing: "true", expiration: "%[2]s"}`
	system, public := r.within("kube-system"), r.within("kube-public")
	system.apply(token, "abcdef", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	public.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: cluster-info}, data: {kubeconfig: parity}}")
	public.reaches("configmaps/cluster-info", "data: {kubeconfig: parity, jws-kubeconfig-abcdef: '*'}")
	system.apply(token, "fedcba", time.Now().Add(-time.Hour).UTC().Format(time.RFC3339))
	system.absent("secrets/bootstrap-token-fedcba")
	system.want("secrets/bootstrap-token-abcdef", "metadata: {deletionTimestamp: null}")
}

// disabled: a controller that is not wanted is not there.
func disabled(r *run) {
	r.eventually("controllers", func(ctx context.Context) error {
		all, err := r.Controllers(ctx)
		if err != nil {
			return err
		}
		there := func(name string) bool {
			return slices.ContainsFunc(all, func(c cluster.Controller) bool { return c.Name == name })
		}
		if there("ttl-controller") || !there("token-cleaner-controller") {
			return errors.New("they are not those that were asked for")
		}
		return nil
	})
}
