// Package kubelet runs the kubelet inside this process.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/logs"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletapi "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/apis/config/validation"
	"k8s.io/kubernetes/pkg/kubelet/kubeletconfig/configfiles"
	utilfs "k8s.io/kubernetes/pkg/util/filesystem"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

// Ports the kubelet listens on, TCP: the first on all addresses, the second on loopback.
const (
	Port        = 10250
	HealthzPort = 10248
)

// Config is what a kubelet needs to know. Paths are absolute.
type Config struct {
	File       string // where the generated configuration is written
	Kubeconfig string
	NodeName   string
	NodeIP     net.IP

	ClientCA, ServingCert, ServingKey string

	ContainerdSocket string
	ManifestDir      string // static pods
	VolumePluginDir  string
	CertDir          string
	ResolvConf       string
	ClusterDNS       netip.Addr
	ClusterDomain    string

	// LowerOOMScore lets the kubelet protect this process from the kernel's OOM
	// killer, which needs CAP_SYS_RESOURCE.
	LowerOOMScore bool
	// MaxOpenFiles is the limit the kubelet sets for this process. 0: upstream's
	// default, a million.
	MaxOpenFiles int64
	// Args are flags from the user, without the leading dashes; they win.
	Args []string
}

// oomScore is upstream's score for kubelets: almost never killed.
const oomScore = -999

// Run runs a kubelet and returns when ctx is done. The kubelet itself ends with
// the process, as upstream has it: it cannot be stopped by parts without
// reporting the node as broken meanwhile. Pods go on running after that. Run can
// be called once in a process.
func Run(ctx context.Context, cfg Config) error {
	content, err := cfg.render()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(cfg.File), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(cfg.File, content, 0o600); err != nil {
		return fmt.Errorf("write the kubelet's configuration: %w", err)
	}
	server, err := cfg.server(ctx)
	if err != nil {
		return err
	}
	deps, err := app.UnsecuredDependencies(ctx, server, utilfeature.DefaultFeatureGate)
	if err != nil {
		return fmt.Errorf("prepare the kubelet: %w", err)
	}
	// Not the kubelet command: that one installs a signal handler and sets up
	// logging, both of which belong to the process.
	failed := make(chan error, 1)
	go func() { failed <- app.Run(context.WithoutCancel(ctx), server, deps, utilfeature.DefaultFeatureGate) }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		if err == nil {
			err = errors.New("it ended by itself")
		}
		return fmt.Errorf("kubelet: %w", err)
	}
}

// CheckArgs reports whether args are flags that the kubelet knows.
func CheckArgs(args []string) error {
	kc, err := options.NewKubeletConfiguration()
	if err != nil {
		return err
	}
	return parse(args, options.NewKubeletFlags(), kc)
}

// parse applies flags to a kubelet's options.
func parse(args []string, flags *options.KubeletFlags, kc *kubeletapi.KubeletConfiguration) error {
	fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	flags.AddFlags(fs)
	options.AddKubeletConfigFlags(fs, kc)
	dashed := make([]string, len(args))
	for i, a := range args {
		dashed[i] = "--" + a
	}
	if err := fs.Parse(dashed); err != nil {
		return fmt.Errorf("kubelet argument: %w", err)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("kubelet argument: %q is not of the form name=value", fs.Arg(0))
	}
	return nil
}

// server returns the kubelet's options from the written file and the flags.
func (c Config) server(ctx context.Context) (*options.KubeletServer, error) {
	loader, err := configfiles.NewFsLoader(&utilfs.DefaultFs{}, c.File)
	if err != nil {
		return nil, fmt.Errorf("load the kubelet's configuration: %w", err)
	}
	kc, err := loader.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("load the kubelet's configuration: %w", err)
	}
	flags := options.NewKubeletFlags()
	flags.KubeConfig = c.Kubeconfig
	flags.HostnameOverride = c.NodeName
	flags.NodeIP = c.NodeIP.String()
	flags.CertDirectory = c.CertDir
	verbosity := kc.Logging.Verbosity
	if err := parse(c.Args, flags, kc); err != nil {
		return nil, err
	}
	if kc.Logging.Verbosity != verbosity {
		if _, err := logs.GlogSetter(strconv.Itoa(int(kc.Logging.Verbosity))); err != nil {
			return nil, err
		}
	}
	if err := options.ValidateKubeletFlags(flags); err != nil {
		return nil, fmt.Errorf("kubelet arguments: %w", err)
	}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(kc.FeatureGates); err != nil {
		return nil, fmt.Errorf("kubelet arguments: %w", err)
	}
	if err := validation.ValidateKubeletConfiguration(kc, utilfeature.DefaultFeatureGate); err != nil {
		return nil, fmt.Errorf("kubelet configuration %s: %w", c.File, err)
	}
	return &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *kc}, nil
}

// render returns the configuration file.
func (c Config) render() ([]byte, error) {
	endpoint := "unix://" + c.ContainerdSocket
	kc := kubeletconfig.KubeletConfiguration{
		TypeMeta: metav1.TypeMeta{APIVersion: kubeletconfig.SchemeGroupVersion.String(), Kind: "KubeletConfiguration"},
		Authentication: kubeletconfig.KubeletAuthentication{
			X509:      kubeletconfig.KubeletX509Authentication{ClientCAFile: c.ClientCA},
			Webhook:   kubeletconfig.KubeletWebhookAuthentication{Enabled: ptr.To(true), CacheTTL: metav1.Duration{Duration: 2 * time.Minute}},
			Anonymous: kubeletconfig.KubeletAnonymousAuthentication{Enabled: ptr.To(false)},
		},
		Authorization:            kubeletconfig.KubeletAuthorization{Mode: kubeletconfig.KubeletAuthorizationModeWebhook},
		Port:                     Port,
		HealthzPort:              ptr.To[int32](HealthzPort),
		HealthzBindAddress:       "127.0.0.1",
		TLSCertFile:              c.ServingCert,
		TLSPrivateKeyFile:        c.ServingKey,
		ContainerRuntimeEndpoint: endpoint,
		ImageServiceEndpoint:     endpoint,
		CgroupDriver:             "cgroupfs",
		FailCgroupV1:             ptr.To(false),
		FailSwapOn:               ptr.To(false),
		ClusterDNS:               []string{c.ClusterDNS.String()},
		ClusterDomain:            c.ClusterDomain,
		ResolverConfig:           ptr.To(c.ResolvConf),
		StaticPodPath:            c.ManifestDir,
		VolumePluginDir:          c.VolumePluginDir,
		SerializeImagePulls:      ptr.To(false),
		// kube-proxy and the CNI plugins use nftables; there may be no iptables.
		MakeIPTablesUtilChains: ptr.To(false),
		MaxOpenFiles:           c.MaxOpenFiles,
		OOMScoreAdj:            ptr.To[int32](0),
		// Small disks: what upstream keeps free (10 and 15 %) is a lot of an SD card.
		EvictionHard: map[string]string{
			"memory.available":  "50Mi",
			"nodefs.available":  "5%",
			"imagefs.available": "5%",
			"nodefs.inodesFree": "5%",
		},
	}
	if c.LowerOOMScore {
		kc.OOMScoreAdj = ptr.To[int32](oomScore)
	}
	b, err := yaml.Marshal(kc)
	if err != nil {
		return nil, fmt.Errorf("render the kubelet's configuration: %w", err)
	}
	return append([]byte("# Written by dormouse at each start; changes are lost. Use --kubelet-arg.\n"), b...), nil
}
