package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/component-base/cli"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/server/pki"
)

// Upstream's components as k3s runs them: the commands themselves, unchanged, with the certificates and flags that k3s
// gives them and upstream's own limits for clients, over TLS. k3s has them in the server's process, which its patches of
// Kubernetes make possible; here each is a process of its own, so that together they hold a few megabytes more.

// upstreamVerb is the first argument of this program when it is to be one of upstream's, which the second names.
const upstreamVerb = "upstream"

// runUpstream is the main program of one of upstream's components.
func runUpstream(args []string) int {
	command := controllermanager.NewControllerManagerCommand()
	if args[0] == user.KubeScheduler {
		command = scheduler.NewSchedulerCommand()
	}
	command.SetArgs(args[1:])
	return cli.Run(command)
}

// upstreamFlags are what k3s gives to each component, by the user that it is to the API server.
func upstreamFlags(data paths.Data) map[string][]string {
	common := []string{"--leader-elect=false", "--profiling=false", "--secure-port=0"}
	return map[string][]string{
		user.KubeScheduler: common,
		user.KubeControllerManager: append([]string{
			"--controllers=*,tokencleaner",
			"--use-service-account-credentials=true",
			"--allocate-node-cidrs=true",
			"--cluster-cidr=10.42.0.0/16",
			"--service-cluster-ip-range=10.43.0.0/16",
			"--configure-cloud-routes=false",
			"--root-ca-file=" + data.TLS(pki.ServerCA+".crt"),
			"--service-account-private-key-file=" + data.TLS(pki.ServiceKey),
			"--cluster-signing-cert-file=" + data.TLS(pki.ClientCA+".crt"),
			"--cluster-signing-key-file=" + data.TLS(pki.ClientCA+".key"),
		}, common...),
	}
}

// component is a running process of upstream's.
type component struct {
	name  string
	cmd   *exec.Cmd
	ended chan error
}

// startUpstream starts upstream's components beside a server.
func (s *server) startUpstream() error {
	data := paths.Data(s.file("data"))
	authority, err := pki.LoadAuthority(data.TLS(), pki.ClientCA, time.Now())
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	for name, flags := range upstreamFlags(data) {
		kubeconfig, err := s.writeCredentials(authority, name)
		if err != nil {
			return err
		}
		log, err := os.OpenFile(s.file(name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("opening the log of %s: %w", name, err)
		}
		defer log.Close()
		c := &component{name: name, ended: make(chan error, 1)}
		c.cmd = exec.Command(self, append([]string{upstreamVerb, name, "--kubeconfig=" + kubeconfig}, flags...)...)
		c.cmd.Stdout, c.cmd.Stderr = log, log
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := c.cmd.Start(); err != nil {
			return fmt.Errorf("starting %s: %w", name, err)
		}
		go func() { c.ended <- c.cmd.Wait() }()
		s.beside = append(s.beside, c)
	}
	return nil
}

// writeCredentials writes a certificate and a kubeconfig for a user, and returns the kubeconfig's name.
func (s *server) writeCredentials(authority *pki.Authority, name string) (string, error) {
	cert, key, kubeconfig := s.file(name+".crt"), s.file(name+".key"), s.file(name+".kubeconfig")
	if err := authority.Ensure(cert, key, pki.Leaf{CommonName: name, Usage: x509.ExtKeyUsageClientAuth}); err != nil {
		return "", err
	}
	config, err := clientcmd.LoadFromFile(s.file("kubeconfig"))
	if err != nil {
		return "", fmt.Errorf("reading the kubeconfig of %s: %w", s.name, err)
	}
	for k := range config.AuthInfos {
		config.AuthInfos[k] = &api.AuthInfo{ClientCertificate: cert, ClientKey: key}
	}
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		return "", fmt.Errorf("writing %s: %w", filepath.Base(kubeconfig), err)
	}
	return kubeconfig, nil
}

// stop ends the process. These have nothing to save.
func (c *component) stop() error {
	select {
	case err := <-c.ended:
		return fmt.Errorf("%s ended by itself: %w; its log says why", c.name, err)
	default:
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may be gone; then Wait says how
	select {
	case err := <-c.ended:
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Exited() && exit.ExitCode() != 1 { // 1 is how upstream's end when they are told to
			return fmt.Errorf("%s ended badly: %w", c.name, err)
		}
		return nil
	case <-time.After(stopPatience):
		_ = c.cmd.Process.Kill()
		return fmt.Errorf("%s did not end within %s: %w", c.name, stopPatience, <-c.ended)
	}
}
