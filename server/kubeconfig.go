package server

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/server/pki"
)

// kubeconfigName is the name of cluster, user and context in every kubeconfig, as with k3s.
const kubeconfigName = "default"

// writeKubeconfig writes a kubeconfig for the server at url with a client certificate and its key, both
// embedded.
func writeKubeconfig(file string, mode fs.FileMode, url string, ca []byte, certFile, keyFile string) error {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return fmt.Errorf("reading the certificate for %s: %w", file, err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return fmt.Errorf("reading the key for %s: %w", file, err)
	}
	c := clientcmdapi.NewConfig()
	c.Clusters[kubeconfigName] = &clientcmdapi.Cluster{Server: url, CertificateAuthorityData: ca}
	c.AuthInfos[kubeconfigName] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	c.Contexts[kubeconfigName] = &clientcmdapi.Context{Cluster: kubeconfigName, AuthInfo: kubeconfigName}
	c.CurrentContext = kubeconfigName
	b, err := clientcmd.Write(*c)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", file, err)
	}
	if err := os.MkdirAll(filepath.Dir(file), paths.ModePublicDir); err != nil {
		return fmt.Errorf("creating the directory of %s: %w", file, err)
	}
	return paths.Write(file, b, mode)
}

// NodeCredentials are the files with which a node's agent proves who it is, and recognises others.
type NodeCredentials struct {
	KubeletKubeconfig, KubeProxyKubeconfig string
	ClientCA, ServerCA                     string
	ServingCert, ServingKey                string
}

// IssueNodeCredentials sees to it that <data-dir>/agent holds valid credentials for the node, issued by
// the authorities of the server in the same data directory. url is where the node reaches the API server.
func IssueNodeCredentials(dataDir, node string, ips []net.IP, url string) (NodeCredentials, error) {
	data := paths.Data(dataDir)
	cluster, err := pki.LoadCluster(data, time.Now())
	if err != nil {
		return NodeCredentials{}, err
	}
	if err := cluster.EnsureNode(node, ips); err != nil {
		return NodeCredentials{}, err
	}
	c := NodeCredentials{
		KubeletKubeconfig:   data.Agent("kubelet.kubeconfig"),
		KubeProxyKubeconfig: data.Agent("kubeproxy.kubeconfig"),
		ClientCA:            data.Agent("client-ca.crt"),
		ServerCA:            data.Agent("server-ca.crt"),
		ServingCert:         data.Agent("serving-kubelet.crt"),
		ServingKey:          data.Agent("serving-kubelet.key"),
	}
	if err := paths.Write(c.ClientCA, cluster.Client.PEM, paths.ModePublicFile); err != nil {
		return NodeCredentials{}, err
	}
	if err := paths.Write(c.ServerCA, cluster.Server.PEM, paths.ModePublicFile); err != nil {
		return NodeCredentials{}, err
	}
	for file, name := range map[string]string{c.KubeletKubeconfig: "client-kubelet", c.KubeProxyKubeconfig: "client-kube-proxy"} {
		if err := writeKubeconfig(file, paths.ModePrivateFile, url, cluster.Server.PEM, data.Agent(name+".crt"), data.Agent(name+".key")); err != nil {
			return NodeCredentials{}, err
		}
	}
	return c, nil
}
