// Package proxy runs kube-proxy inside this process.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/pflag"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
)

// Ports kube-proxy listens on, TCP, on loopback.
const (
	HealthzPort = 10256
	MetricsPort = 10249
)

// Config is what kube-proxy needs to know.
type Config struct {
	Kubeconfig  string
	NodeName    string
	ClusterCIDR netip.Prefix
	// GlobalConntrack lets it size the kernel's connection tracking table.
	GlobalConntrack bool
	// LowerOOMScore needs CAP_SYS_RESOURCE.
	LowerOOMScore bool
	// Args are flags from the user, without the leading dashes; they win.
	Args []string
}

// flags returns kube-proxy's command line.
func (c Config) flags() []string {
	flags := []string{
		"--proxy-mode=nftables",
		"--kubeconfig=" + c.Kubeconfig,
		"--hostname-override=" + c.NodeName,
		"--detect-local-mode=ClusterCIDR",
		"--cluster-cidr=" + c.ClusterCIDR.String(),
		fmt.Sprintf("--healthz-bind-address=127.0.0.1:%d", HealthzPort),
		fmt.Sprintf("--metrics-bind-address=127.0.0.1:%d", MetricsPort),
	}
	if !c.LowerOOMScore {
		flags = append(flags, "--oom-score-adj=0")
	}
	if !c.GlobalConntrack {
		// In a network namespace of its own kube-proxy may not write these, and
		// would give up.
		flags = append(flags, "--conntrack-max-per-core=0", "--conntrack-min=0",
			"--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s")
	}
	for _, a := range c.Args {
		flags = append(flags, "--"+a)
	}
	return flags
}

// Run runs kube-proxy and returns when ctx is done. kube-proxy itself ends with
// the process. Its rules stay: Services keep working while the process restarts.
// Run can be called once in a process.
func Run(ctx context.Context, cfg Config) error {
	opts, fs, err := parse(cfg.flags())
	if err != nil {
		return err
	}
	if err := opts.Complete(fs); err != nil {
		return fmt.Errorf("prepare kube-proxy: %w", err)
	}
	if err := opts.Validate(); err != nil {
		return fmt.Errorf("kube-proxy arguments: %w", err)
	}
	failed := make(chan error, 1)
	go func() { failed <- opts.Run(context.WithoutCancel(ctx)) }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		if err == nil {
			err = errors.New("it ended by itself")
		}
		return fmt.Errorf("kube-proxy: %w", err)
	}
}

// CheckArgs reports whether args are flags that kube-proxy knows.
func CheckArgs(args []string) error {
	_, _, err := parse(Config{Args: args}.flags())
	return err
}

func parse(flags []string) (*app.Options, *pflag.FlagSet, error) {
	opts := app.NewOptions()
	fs := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
	opts.AddFlags(fs)
	if err := fs.Parse(flags); err != nil {
		return nil, nil, fmt.Errorf("kube-proxy argument: %w", err)
	}
	if fs.NArg() > 0 {
		return nil, nil, fmt.Errorf("kube-proxy argument: %q is not of the form name=value", fs.Arg(0))
	}
	return opts, fs, nil
}
