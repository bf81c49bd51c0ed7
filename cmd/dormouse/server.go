package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/dormouse-k8s/dormouse/cmd/dormouse/config"
	"github.com/dormouse-k8s/dormouse/internal/service"
	"github.com/dormouse-k8s/dormouse/internal/version"
	"github.com/dormouse-k8s/dormouse/server"
)

func newServerCommand() *cobra.Command {
	c := config.Default()
	flags := c.Flags()
	cmd := &cobra.Command{Use: "server", Short: "Run a control plane and, unless told otherwise, a node", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			notes, err := c.Load(flags, os.LookupEnv)
			if err != nil {
				return err
			}
			return runServer(cmd.Context(), c, notes, cmd.ErrOrStderr())
		}}
	cmd.Flags().SortFlags = false
	cmd.Flags().AddFlagSet(flags)
	return cmd
}

// runServer runs until SIGTERM or SIGINT, or until something fails.
func runServer(ctx context.Context, c *config.Config, notes []string, stderr io.Writer) error {
	systemd, err := takeNotifySocket()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("a server has to run as root")
	}
	if err := fill(c); err != nil {
		return err
	}
	if err := checkWritable(c.DataDir); err != nil {
		return err
	}
	cfg := serverConfig(c)
	if err := server.Check(cfg); err != nil {
		return err
	}
	node, err := newNode(c, cfg.URL())
	if err != nil {
		return err
	}

	log := setUpLogging(stderr, c.Debug)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	memory := keepMemorySmall()
	guests, err := guests(ctx, c, cfg)
	if err != nil {
		return err
	}

	var files payloadDir
	if node != nil || len(guests) > 0 {
		if files, err = unpack(c.DataDir); err != nil {
			return err
		}
	}
	if len(guests) > 0 {
		p, err := newPlane(c, files, guests)
		if err != nil {
			return err
		}
		defer p.Close()
		cfg.Plane = p
	}

	logrus.Infof("starting dormouse %s%s", version.Get(), commit())
	for _, n := range notes {
		logrus.Info(n)
	}

	services := []service.Service{{Name: "server", Run: func(ctx context.Context, ready func()) error {
		cfg.Ready = ready
		return server.Run(ctx, cfg)
	}}}
	needs := []string{"server"}
	if node != nil {
		services = append(services, service.Service{Name: "agent", Needs: needs, Run: func(ctx context.Context, ready func()) error {
			return node.run(ctx, files, ready)
		}})
		needs = append(needs, "agent")
	}
	services = append(services, service.Service{Name: "ready", Needs: needs, Run: func(ctx context.Context, ready func()) error {
		log.started.Store(true)
		logrus.Info("dormouse is up and running")
		if err := systemd.send("READY=1"); err != nil {
			logrus.Warn(err)
		}
		ready()
		memory.run(ctx)
		return nil
	}})

	go func() {
		<-ctx.Done()
		logrus.Info("stopping")
		stop() // a second signal ends the process at once
		if err := systemd.send("STOPPING=1"); err != nil {
			logrus.Warn(err)
		}
	}()
	err = service.Run(ctx, services)
	logrus.Info("stopped")
	return err
}

// fill completes the configuration with what only the machine knows.
func fill(c *config.Config) error {
	var err error
	if c.DataDir, err = filepath.Abs(c.DataDir); err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	if c.WriteKubeconfig, err = filepath.Abs(c.WriteKubeconfig); err != nil {
		return fmt.Errorf("write-kubeconfig: %w", err)
	}
	if c.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("finding the host name, which --node-name would replace: %w", err)
		}
		c.NodeName = strings.ToLower(name)
	}
	if c.NodeIP == nil {
		c.NodeIP = firstAddress(c.ClusterCIDR.Addr().Is4())
	}
	if c.AdvertiseAddress == nil {
		c.AdvertiseAddress = c.NodeIP
	}
	return nil
}

// serverConfig is c as the server sees it, before fill perhaps with gaps.
func serverConfig(c *config.Config) server.Config {
	dir := c.DataDir
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	sans := append([]string{c.NodeName}, c.TLSSAN...)
	if c.NodeIP != nil {
		sans = append(sans, c.NodeIP.String())
	}
	return server.Config{
		DataDir:          dir,
		BindAddress:      c.BindAddress,
		HTTPSListenPort:  c.HTTPSListenPort,
		AdvertiseAddress: c.AdvertiseAddress,
		TLSSANs:          sans,
		ClusterCIDR:      c.ClusterCIDR,
		ServiceCIDR:      c.ServiceCIDR,
		ClusterDNS:       c.ClusterDNS,
		ClusterDomain:    c.ClusterDomain,
		Kubeconfig:       c.WriteKubeconfig,
		KubeconfigMode:   c.WriteKubeconfigMode,
		Token:            c.Token,

		DisableScheduler:         c.DisableScheduler,
		DisableControllerManager: c.DisableControllerManager,

		KubeAPIServerArgs:         c.KubeAPIServerArg,
		KubeSchedulerArgs:         c.KubeSchedulerArg,
		KubeControllerManagerArgs: c.KubeControllerManagerArg,
	}
}

// checkWritable says whether dir, or the directory in which it would be made, can be written to.
func checkWritable(dir string) error {
	at := dir
	for {
		st, err := os.Stat(at)
		if err == nil {
			if !st.IsDir() {
				return fmt.Errorf("data-dir %s: %s is not a directory", dir, at)
			}
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("data-dir %s: %w", dir, err)
		}
		at = filepath.Dir(at)
	}
	if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("data-dir %s: %s cannot be written to: %w", dir, at, err)
	}
	return nil
}

// firstAddress is the address from which this machine would reach others, or the first that is neither
// loopback nor link-local, or else the loopback address.
func firstAddress(v4 bool) net.IP {
	// Connecting a UDP socket asks the kernel for a route and sends nothing. The addresses are for
	// documentation and belong to nobody.
	target, loopback := "192.0.2.1:9", net.IPv4(127, 0, 0, 1)
	if !v4 {
		target, loopback = "[2001:db8::1]:9", net.IPv6loopback
	}
	if conn, err := net.Dial("udp", target); err == nil {
		defer conn.Close()
		if a, ok := conn.LocalAddr().(*net.UDPAddr); ok && a.IP.IsGlobalUnicast() {
			return a.IP
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return loopback
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && (n.IP.To4() != nil) == v4 {
			return n.IP
		}
	}
	return loopback
}
