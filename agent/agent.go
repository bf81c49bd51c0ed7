// Package agent is the node: containerd, the kubelet, kube-proxy and the pods'
// network in one process.
//
//	containerd ── images ── kubelet ─┬─ node (pod network, Ready)
//	                                 └─ kube-proxy
//
// What runs once per container (shim, runc, CNI plugins) is a second, small
// program, cmd/dormouse-rt. So the process may end and come back, and the pods
// do not notice.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/dormouse-k8s/dormouse/agent/containerd"
	"github.com/dormouse-k8s/dormouse/agent/host"
	"github.com/dormouse-k8s/dormouse/agent/images"
	"github.com/dormouse-k8s/dormouse/agent/kubelet"
	"github.com/dormouse-k8s/dormouse/agent/network"
	"github.com/dormouse-k8s/dormouse/agent/proxy"
	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/internal/service"
)

// Defaults of optional fields of Config.
const (
	DefaultPauseImage = "docker.io/dormouse/pause:1"
	DefaultResolvConf = "/etc/resolv.conf"
)

// Config describes a node. Everything is required unless it says otherwise;
// paths are absolute.
type Config struct {
	// DataDir is Dormouse's data directory; the node's files are in agent below it.
	DataDir string
	// RunDir is for sockets and what may be lost when the machine restarts.
	// Optional: paths.RunDir.
	RunDir string
	// RuntimeBinary is dormouse-rt.
	RuntimeBinary string
	// ImageDirs are further directories with image archives, beside agent/images
	// of the data directory. Optional.
	ImageDirs []string

	NodeName string
	NodeIP   net.IP

	ClusterCIDR   netip.Prefix
	ServiceCIDR   netip.Prefix
	ClusterDNS    netip.Addr
	ClusterDomain string

	// Credentials: kubeconfig files, certificates and keys, PEM.
	KubeletKubeconfig   string
	KubeProxyKubeconfig string
	ClientCA            string
	ServingCert         string
	ServingKey          string

	// PauseImage holds each pod's namespaces. Optional: DefaultPauseImage.
	PauseImage string
	// ResolvConf is what pods with the node's DNS policy get. Optional:
	// DefaultResolvConf if that exists, else pods have no name server.
	ResolvConf string

	// KubeletArgs and KubeProxyArgs are flags without dashes, "name=value".
	KubeletArgs   []string
	KubeProxyArgs []string

	// Debug lets containerd log at all levels.
	Debug bool
	// Ready is called once, when the node reports itself Ready. Optional.
	Ready func()
}

// withDefaults fills in the optional fields.
func (c Config) withDefaults() Config {
	c.RunDir = cmp.Or(c.RunDir, paths.RunDir)
	c.PauseImage = cmp.Or(c.PauseImage, DefaultPauseImage)
	if c.Ready == nil {
		c.Ready = func() {}
	}
	return c
}

func (c Config) dir(elem ...string) string { return paths.Data(c.DataDir).Agent(elem...) }

// BinDir returns where Run puts the links to the container runtime. It must come
// first in the PATH of a process that calls Run: containerd searches it there,
// and finds the pods of an earlier run only with it.
func BinDir(dataDir string) string { return paths.Data(dataDir).Agent("bin") }

// Run runs a node until ctx is done, and returns nil then. The pods go on
// running after that and are taken over by the next Run. An error means that a
// part of the node could not start or has failed. Run can be called once in a
// process, and the process has to end after it: containerd, the kubelet and
// kube-proxy go on until then. Call Check before, and see BinDir.
func Run(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	facts, err := host.Detect()
	if err != nil {
		return err
	}
	for _, dir := range []string{cfg.dir("pod-manifests"), cfg.dir("volume-plugins"), cfg.dir("etc")} {
		if err := os.MkdirAll(dir, paths.ModePrivateDir); err != nil {
			return fmt.Errorf("create the node's directories: %w", err)
		}
	}
	binDir := BinDir(cfg.DataDir)
	if err := linkPrograms(binDir, cfg.RuntimeBinary, containerd.Programs); err != nil {
		return err
	}
	if err := cfg.findResolvConf(); err != nil {
		return err
	}
	if err := network.EnableForwarding(); err != nil {
		return err
	}
	containerdRoot := cfg.dir("containerd")
	snapshotter, err := containerd.DetectSnapshotter(containerdRoot)
	if err != nil {
		return fmt.Errorf("prepare containerd's directory: %w", err)
	}

	ctd := containerd.Config{
		Root:                containerdRoot,
		StateDir:            filepath.Join(cfg.RunDir, "containerd"),
		File:                cfg.dir("etc", "containerd", "config.toml"),
		BinDir:              binDir,
		CNIConfig:           cfg.dir("etc", "cni", "net.d"),
		PauseImage:          cfg.PauseImage,
		Snapshotter:         snapshotter,
		RestrictOOMScoreAdj: !facts.SysResource,
		Debug:               cfg.Debug,
	}
	img := images.Config{
		Dirs:        append([]string{cfg.dir("images")}, cfg.ImageDirs...),
		Ledger:      filepath.Join(containerdRoot, "imported-images.json"),
		Socket:      ctd.Socket(),
		Snapshotter: snapshotter,
	}
	kbl := kubelet.Config{
		File:             cfg.dir("etc", "kubelet.yaml"),
		Kubeconfig:       cfg.KubeletKubeconfig,
		NodeName:         cfg.NodeName,
		NodeIP:           cfg.NodeIP,
		ClientCA:         cfg.ClientCA,
		ServingCert:      cfg.ServingCert,
		ServingKey:       cfg.ServingKey,
		ContainerdSocket: ctd.Socket(),
		ManifestDir:      cfg.dir("pod-manifests"),
		VolumePluginDir:  cfg.dir("volume-plugins"),
		CertDir:          cfg.dir("pki"),
		ResolvConf:       cfg.ResolvConf,
		ClusterDNS:       cfg.ClusterDNS,
		ClusterDomain:    cfg.ClusterDomain,
		LowerOOMScore:    facts.SysResource,
		Args:             cfg.KubeletArgs,
	}
	if !facts.SysResource {
		kbl.MaxOpenFiles = int64(min(facts.OpenFiles, 1_000_000))
	}
	prx := proxy.Config{
		Kubeconfig:      cfg.KubeProxyKubeconfig,
		NodeName:        cfg.NodeName,
		ClusterCIDR:     cfg.ClusterCIDR,
		GlobalConntrack: facts.GlobalConntrack,
		LowerOOMScore:   facts.SysResource,
		Args:            cfg.KubeProxyArgs,
	}
	self := node{
		name:       cfg.NodeName,
		kubeconfig: cfg.KubeletKubeconfig,
		network:    network.Config{ConfDir: ctd.CNIConfig, LeaseDir: filepath.Join(cfg.RunDir, "cni")},
	}

	return service.Run(ctx, []service.Service{
		{Name: "containerd", Run: func(ctx context.Context, ready func()) error {
			return containerd.Run(ctx, ctd, ready)
		}},
		{Name: "images", Needs: []string{"containerd"}, Run: func(ctx context.Context, ready func()) error {
			return images.Run(ctx, img, ready)
		}},
		{Name: "kubelet", Needs: []string{"images"}, Run: func(ctx context.Context, ready func()) error {
			ready() // whether it works is what the service "node" waits for
			return kubelet.Run(ctx, kbl)
		}},
		{Name: "kube-proxy", Needs: []string{"kubelet"}, Run: func(ctx context.Context, ready func()) error {
			ready()
			return proxy.Run(ctx, prx)
		}},
		{Name: "node", Needs: []string{"kubelet"}, Run: func(ctx context.Context, ready func()) error {
			return self.run(ctx, func() {
				ready()
				cfg.Ready()
			})
		}},
	})
}

// linkPrograms puts symbolic links to the runtime binary into dir, one per
// name. The links stay where they are when the binary moves with a new
// version, so shims and containers' bundles may remember them.
func linkPrograms(dir, binary string, names []string) error {
	if st, err := os.Stat(binary); err != nil {
		return fmt.Errorf("find the container runtime: %w", err)
	} else if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("the container runtime %s is not an executable file", binary)
	}
	if err := os.MkdirAll(dir, paths.ModePublicDir); err != nil {
		return fmt.Errorf("create the directory of the container runtime: %w", err)
	}
	for _, name := range names {
		link := filepath.Join(dir, name)
		if old, err := os.Readlink(link); err == nil && old == binary {
			continue
		}
		tmp := link + ".tmp"
		if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(binary, tmp); err != nil {
			return fmt.Errorf("link the container runtime: %w", err)
		}
		if err := os.Rename(tmp, link); err != nil {
			return fmt.Errorf("link the container runtime: %w", err)
		}
	}
	return nil
}

// findResolvConf settles ResolvConf. A machine without any gets an empty one:
// no name server is better than one that nobody has chosen.
func (c *Config) findResolvConf() error {
	if c.ResolvConf != "" {
		return nil
	}
	if _, err := os.Stat(DefaultResolvConf); err == nil {
		c.ResolvConf = DefaultResolvConf
		return nil
	}
	c.ResolvConf = c.dir("etc", "resolv.conf")
	content := "# Written by dormouse: this machine has no " + DefaultResolvConf + ".\n"
	return os.WriteFile(c.ResolvConf, []byte(content), paths.ModePublicFile)
}
