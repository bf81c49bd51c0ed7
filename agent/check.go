package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/dormouse-k8s/dormouse/agent/host"
	"github.com/dormouse-k8s/dormouse/agent/kubelet"
	"github.com/dormouse-k8s/dormouse/agent/proxy"
)

// ErrMachine is wrapped by what Check returns when the machine cannot be a node
// as it is.
var ErrMachine = errors.New("this machine cannot run a node")

// checkTimeout bounds the programs that Check runs.
const checkTimeout = 10 * time.Second

// Check reports what stands in the way of a node with this configuration, in
// one line that says what would help. It writes nothing; it may load kernel
// modules.
func Check(cfg Config) error {
	if err := kubelet.CheckArgs(cfg.KubeletArgs); err != nil {
		return err
	}
	if err := proxy.CheckArgs(cfg.KubeProxyArgs); err != nil {
		return err
	}
	for _, check := range []func() error{checkRoot, checkKernel, checkNft, checkPorts} {
		if err := check(); err != nil {
			return fmt.Errorf("%w: %w", ErrMachine, err)
		}
	}
	return nil
}

func checkRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("containers need root: run as root, or with --disable-agent")
	}
	return nil
}

func checkKernel() error {
	for _, ns := range []string{"ipc", "mnt", "net", "pid", "uts"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			return fmt.Errorf("the kernel has no %s namespaces: use one built with them", ns)
		}
	}
	if _, err := host.Detect(); err != nil {
		return err
	}
	return checkFeature("br_netfilter", "/proc/sys/net/bridge/bridge-nf-call-iptables", "CONFIG_BRIDGE_NETFILTER")
}

// checkFeature looks for a file that a kernel feature provides, after trying to
// load its module.
func checkFeature(module, path, option string) error {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
		defer cancel()
		_ = exec.CommandContext(ctx, "modprobe", module).Run() // what counts is whether the file is there then
		_, err = os.Stat(path)
	}
	if err != nil {
		return fmt.Errorf("the kernel lacks %s: load the module, or use a kernel built with %s", module, option)
	}
	return nil
}

// nftProbe has what kube-proxy and the CNI plugins use of nftables.
const nftProbe = `add table ip dormouse-probe
add map ip dormouse-probe ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add set ip dormouse-probe recent { type ipv4_addr ; flags dynamic,timeout ; timeout 1h ; }
add chain ip dormouse-probe endpoint
add rule ip dormouse-probe endpoint ip saddr 10.0.0.1 meta mark set mark or 0x4000
add rule ip dormouse-probe endpoint update @recent { ip saddr }
add rule ip dormouse-probe endpoint meta l4proto tcp dnat to 10.0.0.1:80
add chain ip dormouse-probe pre { type nat hook prerouting priority -100 ; }
add rule ip dormouse-probe pre ip daddr . meta l4proto . th dport vmap @ips
add rule ip dormouse-probe pre fib daddr type local numgen random mod 1 vmap { 0 : goto endpoint }
add chain ip dormouse-probe post { type nat hook postrouting priority 100 ; }
add rule ip dormouse-probe post masquerade fully-random
`

// checkNft runs a rule set past nft and the kernel without applying it.
func checkNft() error {
	path, err := exec.LookPath("nft")
	if err != nil {
		return errors.New("the program nft is missing: install the package nftables")
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--check", "--file", "-")
	cmd.Stdin = strings.NewReader(nftProbe)
	if out, err := cmd.CombinedOutput(); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("nftables does not work here (%v: %s): Services need nft 1.0.1 or later and a kernel with CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_FIB_IPV4 and CONFIG_NFT_NUMGEN", err, first)
	}
	return nil
}

func checkPorts() error {
	for _, p := range []struct {
		owner, host string
		port        int
	}{
		{"the kubelet", "", kubelet.Port},
		{"the kubelet", "127.0.0.1", kubelet.HealthzPort},
		{"kube-proxy", "127.0.0.1", proxy.HealthzPort},
		{"kube-proxy", "127.0.0.1", proxy.MetricsPort},
	} {
		l, err := net.Listen("tcp", net.JoinHostPort(p.host, strconv.Itoa(p.port)))
		if err != nil {
			return fmt.Errorf("port %d, which %s needs, is not free: stop what listens there: %w", p.port, p.owner, err)
		}
		l.Close()
	}
	return nil
}
