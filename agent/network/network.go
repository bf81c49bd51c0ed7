// Package network gives pods their network: it tells containerd to put them on
// a bridge with addresses from the node's share of the cluster's pod range.
package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Bridge is the interface that pods are attached to.
const Bridge = "cni0"

// confName is the file containerd reads; the number is its place among others.
const confName = "10-dormouse.conflist"

// Config says where things are. Paths are absolute.
type Config struct {
	// ConfDir is the CNI configuration directory containerd watches.
	ConfDir string
	// LeaseDir keeps the addresses in use. It belongs on a file system that is
	// empty after a restart of the machine, as the pods are gone then too.
	LeaseDir string
}

// sysctls are what routing between pods, Services and the world needs.
var sysctls = map[string]string{
	"net/ipv4/ip_forward": "1",
	// Pods of one bridge that meet through a Service: without this the answer
	// takes the short way and its sender is not translated back.
	"net/bridge/bridge-nf-call-iptables": "1",
}

// EnableForwarding sets the kernel parameters the pods' network needs, unless
// they have the right value.
func EnableForwarding() error {
	for name, value := range sysctls {
		path := filepath.Join("/proc/sys", name)
		old, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read kernel parameter %s: %w", name, err)
		}
		if strings.TrimSpace(string(old)) == value {
			continue
		}
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("set kernel parameter %s to %s: %w", name, value, err)
		}
	}
	return nil
}

// Write writes the CNI configuration for the pod ranges of this node, at least
// one. It reports whether anything changed.
func (c Config) Write(podCIDRs []netip.Prefix) (changed bool, err error) {
	content, err := c.render(podCIDRs)
	if err != nil {
		return false, err
	}
	path := filepath.Join(c.ConfDir, confName)
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if bytes.Equal(old, content) {
		return false, nil
	}
	if err := os.MkdirAll(c.ConfDir, 0o755); err != nil {
		return false, err
	}
	// containerd reads the directory as soon as it changes: show it whole files.
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, content, 0o644); err != nil {
		return false, fmt.Errorf("write CNI configuration: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return false, fmt.Errorf("write CNI configuration: %w", err)
	}
	return true, nil
}

type conflist struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Plugins    []any  `json:"plugins"`
}

type bridgePlugin struct {
	Type          string   `json:"type"`
	Bridge        string   `json:"bridge"`
	IsGateway     bool     `json:"isGateway"`
	IPMasq        bool     `json:"ipMasq"`
	IPMasqBackend string   `json:"ipMasqBackend"`
	HairpinMode   bool     `json:"hairpinMode"`
	ForceAddress  bool     `json:"forceAddress"`
	IPAM          hostIPAM `json:"ipam"`
}

type hostIPAM struct {
	Type    string        `json:"type"`
	DataDir string        `json:"dataDir"`
	Ranges  [][]ipamRange `json:"ranges"`
	Routes  []ipamRoute   `json:"routes"`
}

type ipamRange struct {
	Subnet string `json:"subnet"`
}

type ipamRoute struct {
	Dst string `json:"dst"`
}

type portmapPlugin struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	SNAT         bool            `json:"snat"`
	Backend      string          `json:"backend"`
}

// render returns the CNI configuration.
func (c Config) render(podCIDRs []netip.Prefix) ([]byte, error) {
	if len(podCIDRs) == 0 {
		return nil, errors.New("write CNI configuration: the node has no pod range")
	}
	ipam := hostIPAM{Type: "host-local", DataDir: c.LeaseDir}
	for _, cidr := range podCIDRs {
		ipam.Ranges = append(ipam.Ranges, []ipamRange{{Subnet: cidr.String()}})
		everywhere := "0.0.0.0/0"
		if cidr.Addr().Is6() {
			everywhere = "::/0"
		}
		ipam.Routes = append(ipam.Routes, ipamRoute{Dst: everywhere})
	}
	b, err := json.MarshalIndent(conflist{
		CNIVersion: "1.0.0",
		Name:       "dormouse",
		Plugins: []any{
			bridgePlugin{Type: "bridge", Bridge: Bridge, IsGateway: true, IPMasq: true, IPMasqBackend: "nftables", HairpinMode: true, ForceAddress: true, IPAM: ipam},
			portmapPlugin{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}, SNAT: true, Backend: "nftables"},
		},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("render CNI configuration: %w", err)
	}
	return append(b, '\n'), nil
}
