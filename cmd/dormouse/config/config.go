// Package config is Dormouse's configuration: one struct, filled once from flags, environment and files,
// each stronger than the next, and checked as it is filled. It writes nothing and reads no environment
// but through what it is given.
package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/dormouse-k8s/dormouse/internal/paths"
)

// Where the controllers run.
const (
	ModeWasm   = "wasm"
	ModeNative = "native"
)

// Config is the configuration of "dormouse server". Every field is a flag and a key of the same name in
// the configuration file, see Flags.
type Config struct {
	ConfigFile string
	DataDir    string
	Debug      bool

	BindAddress      net.IP
	HTTPSListenPort  int
	AdvertiseAddress net.IP // nil: the node's address
	TLSSAN           []string

	ClusterCIDR   netip.Prefix
	ServiceCIDR   netip.Prefix
	ClusterDNS    netip.Addr // invalid: the tenth address of ServiceCIDR
	ClusterDomain string

	WriteKubeconfig     string
	WriteKubeconfigMode os.FileMode
	Token               string

	NodeName     string // "": the host name
	NodeIP       net.IP // nil: the first global address of an interface
	DisableAgent bool

	DisableScheduler, DisableControllerManager bool

	PauseImage string
	ResolvConf string

	KubeAPIServerArg         []string
	KubeControllerManagerArg []string
	KubeSchedulerArg         []string
	KubeletArg               []string
	KubeProxyArg             []string

	ControllerMode    string
	NativeControllers []string
	WasmIdleTimeout   time.Duration
	WasmMemoryBudget  int64 // bytes
}

// Default is the configuration of somebody who says nothing.
func Default() *Config {
	return &Config{
		ConfigFile:          paths.ConfigFile,
		DataDir:             paths.DataDir,
		BindAddress:         net.IPv4zero,
		HTTPSListenPort:     6443,
		ClusterCIDR:         netip.MustParsePrefix("10.42.0.0/16"),
		ServiceCIDR:         netip.MustParsePrefix("10.43.0.0/16"),
		ClusterDomain:       "cluster.local",
		WriteKubeconfig:     paths.Kubeconfig,
		WriteKubeconfigMode: paths.ModePrivateFile,
		ControllerMode:      ModeWasm,
		WasmIdleTimeout:     2 * time.Second,
		WasmMemoryBudget:    64 << 20,
	}
}

// Flags are the flags that set c.
func (c *Config) Flags() *pflag.FlagSet {
	fs := pflag.NewFlagSet("server", pflag.ContinueOnError)
	fs.SortFlags = false
	text := func(p *string, name, usage string) {
		fs.Var(&value[string]{p, parseText, identity, "TEXT"}, name, usage)
	}
	path := func(p *string, name, usage string) {
		fs.Var(&value[string]{p, parsePath, identity, "PATH"}, name, usage)
	}
	ip := func(p *net.IP, name, usage string) {
		fs.Var(&value[net.IP]{p, parseIP, formatIP, "ADDRESS"}, name, usage)
	}
	prefix := func(p *netip.Prefix, name, usage string) {
		fs.Var(&value[netip.Prefix]{p, parsePrefix, netip.Prefix.String, "CIDR"}, name, usage)
	}
	on := func(p *bool, name, usage string) {
		fs.Var(&value[bool]{p, parseBool, formatBool, "bool"}, name, usage)
		fs.Lookup(name).NoOptDefVal = "true"
	}
	args := func(p *[]string, component string) {
		fs.Var(&list{p: p}, component+"-arg", "argument for "+component+", `NAME=VALUE`, repeatable")
	}

	path(&c.ConfigFile, "config", "configuration file; files in the directory of that name with .d are read after it")
	path(&c.DataDir, "data-dir", "where everything is kept")
	on(&c.Debug, "debug", "log what the components do")

	ip(&c.BindAddress, "bind-address", "address the API server listens on")
	fs.Var(&value[int]{&c.HTTPSListenPort, parsePort, formatInt, "PORT"}, "https-listen-port", "port the API server listens on")
	ip(&c.AdvertiseAddress, "advertise-address", "address at which pods reach the API server (default: the node's)")
	fs.Var(&list{p: &c.TLSSAN, split: true}, "tls-san", "further name or address in the API server's certificate, repeatable")

	prefix(&c.ClusterCIDR, "cluster-cidr", "addresses of pods")
	prefix(&c.ServiceCIDR, "service-cidr", "addresses of services")
	fs.Var(&value[netip.Addr]{&c.ClusterDNS, parseAddr, formatAddr, "ADDRESS"}, "cluster-dns", "service address of the cluster's DNS (default: the tenth of service-cidr)")
	fs.Var(&value[string]{&c.ClusterDomain, parseDomain, identity, "NAME"}, "cluster-domain", "domain of the cluster")

	path(&c.WriteKubeconfig, "write-kubeconfig", "where the administrator's kubeconfig is written")
	fs.Var(&value[os.FileMode]{&c.WriteKubeconfigMode, parseMode, formatMode, "MODE"}, "write-kubeconfig-mode", "its mode")
	text(&c.Token, "token", "secret with which nodes join (default: the stored one, or a new random one)")

	fs.Var(&value[string]{&c.NodeName, parseNodeName, identity, "NAME"}, "node-name", "name of the node (default: the host name)")
	ip(&c.NodeIP, "node-ip", "address of the node (default: the first of an interface)")
	on(&c.DisableAgent, "disable-agent", "run the control plane alone, without a node")
	on(&c.DisableScheduler, "disable-scheduler", "run no scheduler")
	on(&c.DisableControllerManager, "disable-controller-manager", "run no controllers")
	text(&c.PauseImage, "pause-image", "image of a pod's sandbox (default: the one that comes with Dormouse)")
	path(&c.ResolvConf, "resolv-conf", "resolv.conf for pods (default: the host's, if it leads out of the machine)")

	args(&c.KubeAPIServerArg, "kube-apiserver")
	args(&c.KubeControllerManagerArg, "kube-controller-manager")
	args(&c.KubeSchedulerArg, "kube-scheduler")
	args(&c.KubeletArg, "kubelet")
	args(&c.KubeProxyArg, "kube-proxy")

	fs.Var(&value[string]{&c.ControllerMode, parseControllerMode, identity, ModeWasm + "|" + ModeNative}, "controller-mode", "where the controllers run: asleep in Wasm until needed, or natively")
	fs.Var(&list{p: &c.NativeControllers, split: true}, "native-controllers", "controllers, and kube-scheduler, that run natively all the same, by their upstream names")
	fs.Var(&value[time.Duration]{&c.WasmIdleTimeout, parseDuration, time.Duration.String, "DURATION"}, "wasm-idle-timeout", "how long an idle controller stays in memory")
	fs.Var(&value[int64]{&c.WasmMemoryBudget, parseSize, formatSize, "SIZE"}, "wasm-memory-budget", "how much memory controllers may occupy together")
	return fs
}

// finish fills what depends on other values.
func (c *Config) finish() error {
	if !c.ClusterDNS.IsValid() {
		a := c.ServiceCIDR.Masked().Addr()
		for range 10 {
			a = a.Next()
		}
		c.ClusterDNS = a
	}
	if c.ClusterDomain = strings.TrimSuffix(c.ClusterDomain, "."); c.ClusterDomain == "" {
		return fmt.Errorf("cluster-domain: the name is empty")
	}
	return nil
}
