package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"github.com/dormouse-k8s/dormouse/agent"
	"github.com/dormouse-k8s/dormouse/cmd/dormouse/config"
	"github.com/dormouse-k8s/dormouse/internal/payload"
	"github.com/dormouse-k8s/dormouse/server"
)

// payloadDir is the directory with the files that belong to the program.
type payloadDir string

func (d payloadDir) file(name string) string { return filepath.Join(string(d), name) }

// unpack finds the files that belong to the program, unpacking them below dataDir if need be.
func unpack(dataDir string) (payloadDir, error) {
	program, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding the program's own file: %w", err)
	}
	dir, err := payload.Locate(program, dataDir)
	return payloadDir(dir), err
}

// node is the agent of this process.
type node struct {
	cfg        agent.Config
	url        string
	kubeconfig string // the administrator's
}

// newNode checks whether this machine can be a node and returns it, or nil if it is not to be one.
func newNode(c *config.Config, url string) (*node, error) {
	if c.DisableAgent {
		return nil, nil
	}
	if c.NodeIP.IsLoopback() {
		return nil, fmt.Errorf("no interface has an address a node could use; give one with --node-ip, or --disable-agent")
	}
	cfg := agent.Config{
		DataDir:       c.DataDir,
		NodeName:      c.NodeName,
		NodeIP:        c.NodeIP,
		ClusterCIDR:   c.ClusterCIDR,
		ServiceCIDR:   c.ServiceCIDR,
		ClusterDNS:    c.ClusterDNS,
		ClusterDomain: c.ClusterDomain,
		PauseImage:    c.PauseImage,
		ResolvConf:    c.ResolvConf,
		KubeletArgs:   c.KubeletArg,
		KubeProxyArgs: c.KubeProxyArg,
		Debug:         c.Debug,
	}
	return &node{cfg, url, c.WriteKubeconfig}, agent.Check(cfg)
}

// run runs the agent, whose credentials the server in this process issues.
func (n *node) run(ctx context.Context, files payloadDir, ready func()) error {
	cred, err := server.IssueNodeCredentials(n.cfg.DataDir, n.cfg.NodeName, []net.IP{n.cfg.NodeIP}, n.url)
	if err != nil {
		return err
	}
	cfg := n.cfg
	// containerd finds the shims of pods that already run through the PATH, not through its configuration.
	if err := os.Setenv("PATH", agent.BinDir(cfg.DataDir)+":"+os.Getenv("PATH")); err != nil {
		return fmt.Errorf("putting the node's programs into the PATH: %w", err)
	}
	cfg.RuntimeBinary = files.file(payload.Runtime)
	cfg.ImageDirs = []string{string(files)} // the pause image
	cfg.KubeletKubeconfig, cfg.KubeProxyKubeconfig = cred.KubeletKubeconfig, cred.KubeProxyKubeconfig
	cfg.ClientCA, cfg.ServingCert, cfg.ServingKey = cred.ClientCA, cred.ServingCert, cred.ServingKey
	cfg.Ready = func() {
		if err := server.LabelControlPlane(ctx, n.kubeconfig, n.cfg.NodeName); err != nil {
			logrus.Warn(err)
		}
		ready()
	}
	return agent.Run(ctx, cfg)
}
