package pki

import (
	"crypto/x509"
	"net"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/dormouse-k8s/dormouse/internal/paths"
)

// Names of files under server/tls, without .crt and .key.
const (
	ServerCA        = "server-ca"
	ClientCA        = "client-ca"
	RequestHeaderCA = "request-header-ca"

	APIServer = "serving-kube-apiserver" // what clients of the API server see
	Admin     = "client-admin"           // system:masters, in the administrator's kubeconfig
	Kubelet   = "client-kube-apiserver"  // the API server towards kubelets
	AuthProxy = "client-auth-proxy"      // the API server towards aggregated API servers

	// ServiceKey signs service account tokens. It is a key alone.
	ServiceKey = "service.key"
)

// Cluster is a cluster's certificates, in <data-dir>/server/tls.
type Cluster struct {
	// Server vouches for who serves, Client for who asks, RequestHeader for who asks for others.
	Server, Client, RequestHeader *Authority

	data paths.Data
}

// ClusterNames are the names and addresses the API server answers to besides those every API server has.
type ClusterNames struct {
	ServiceCIDR netip.Prefix
	Domain      string
	SANs        []string // names or addresses
}

// LoadCluster loads the cluster's authorities under data, creating those that do not exist.
func LoadCluster(data paths.Data, now time.Time) (*Cluster, error) {
	dir := data.TLS()
	if err := paths.MakeDir(dir, paths.ModePrivateDir); err != nil {
		return nil, err
	}
	c := &Cluster{data: data}
	for name, a := range map[string]**Authority{ServerCA: &c.Server, ClientCA: &c.Client, RequestHeaderCA: &c.RequestHeader} {
		var err error
		if *a, err = LoadAuthority(dir, name, now); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// EnsureServer sees to it that what the API server needs is there and valid.
func (c *Cluster) EnsureServer(names ClusterNames) error {
	if err := EnsureKey(c.data.TLS(ServiceKey)); err != nil {
		return err
	}
	for _, x := range []struct {
		authority *Authority
		name      string
		leaf      Leaf
	}{
		{c.Server, APIServer, names.leaf()},
		{c.Client, Admin, client("system:admin", user.SystemPrivilegedGroup)},
		{c.Client, Kubelet, client("system:kube-apiserver", user.SystemPrivilegedGroup)},
		{c.RequestHeader, AuthProxy, client("system:auth-proxy")},
	} {
		if err := x.authority.Ensure(c.data.TLS(x.name+".crt"), c.data.TLS(x.name+".key"), x.leaf); err != nil {
			return err
		}
	}
	return nil
}

// EnsureNode sees to it that the node's certificates lie in <data-dir>/agent: serving-kubelet,
// client-kubelet and client-kube-proxy, with .crt and .key.
func (c *Cluster) EnsureNode(node string, ips []net.IP) error {
	if err := paths.MakeDir(c.data.Agent(), paths.ModePublicDir); err != nil {
		return err
	}
	serving := Leaf{CommonName: "system:node:" + node, Organization: []string{user.NodesGroup}, Usage: x509.ExtKeyUsageServerAuth}
	serving.DNSNames, serving.IPs = split(append([]string{node, "localhost", "127.0.0.1"}, ipStrings(ips)...))
	for _, x := range []struct {
		authority *Authority
		name      string
		leaf      Leaf
	}{
		{c.Server, "serving-kubelet", serving},
		{c.Client, "client-kubelet", client("system:node:"+node, user.NodesGroup)},
		{c.Client, "client-kube-proxy", client("system:kube-proxy")},
	} {
		if err := x.authority.Ensure(c.data.Agent(x.name+".crt"), c.data.Agent(x.name+".key"), x.leaf); err != nil {
			return err
		}
	}
	return nil
}

func client(name string, groups ...string) Leaf {
	return Leaf{CommonName: name, Organization: groups, Usage: x509.ExtKeyUsageClientAuth}
}

func (n ClusterNames) leaf() Leaf {
	l := Leaf{CommonName: "kube-apiserver", Usage: x509.ExtKeyUsageServerAuth}
	l.DNSNames, l.IPs = split(append([]string{
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + n.Domain,
		"127.0.0.1", "::1", n.ServiceCIDR.Masked().Addr().Next().String(),
	}, n.SANs...))
	return l
}

// split sorts names into DNS names and addresses, each once and in a stable order, so that the same
// configuration never looks like a changed one.
func split(names []string) (dns []string, ips []net.IP) {
	var addrs []string
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			addrs = append(addrs, ip.String())
		} else if n != "" {
			dns = append(dns, n)
		}
	}
	slices.Sort(dns)
	slices.Sort(addrs)
	for _, a := range slices.Compact(addrs) {
		ips = append(ips, net.ParseIP(a))
	}
	return slices.Compact(dns), ips
}

func ipStrings(ips []net.IP) []string {
	s := make([]string, len(ips))
	for i, ip := range ips {
		s[i] = ip.String()
	}
	return s
}
