// Package apiserver runs kube-apiserver as a library: upstream's options, configuration and chain of
// servers, without its command line, with an in-process way in for the rest of the control plane.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/server/apiserver/inprocess"
	"github.com/dormouse-k8s/dormouse/server/options"
	"github.com/dormouse-k8s/dormouse/server/pki"
)

// Config is what an API server needs to know.
type Config struct {
	Data paths.Data
	// Port and BindAddress are where it serves.
	Port        int
	BindAddress net.IP
	// AdvertiseAddress is where pods reach it through the kubernetes Service. A loopback address
	// cannot be reached from a pod: that Service then has no endpoints.
	AdvertiseAddress net.IP
	ServiceCIDR      netip.Prefix
	ClusterDomain    string
	// Etcd is the datastore's endpoint.
	Etcd string
	// Args are a user's arguments for kube-apiserver.
	Args []string
}

// Server is an API server. Its methods may be called from any goroutine; Transport and Handle have
// their conditions.
type Server struct {
	etcd     string
	options  *apioptions.ServerRunOptions
	handlers map[string]http.Handler
	chain    http.Handler // set before ready
}

// New parses the flags of cfg. Nothing is read or started: the flags of all components have to be parsed
// before any feature gate is looked at.
func New(cfg Config) (*Server, error) {
	s := &Server{etcd: cfg.Etcd, options: apioptions.NewServerRunOptions(), handlers: map[string]http.Handler{}}
	flags := s.options.Flags()
	return s, options.Parse("kube-apiserver-arg", flags.FlagSets, defaults(cfg), cfg.Args)
}

func defaults(cfg Config) map[string]string {
	tls, issuer := cfg.Data.TLS, "https://kubernetes.default.svc."+cfg.ClusterDomain
	args := map[string]string{
		"bind-address":                       cfg.BindAddress.String(),
		"secure-port":                        strconv.Itoa(cfg.Port),
		"advertise-address":                  cfg.AdvertiseAddress.String(),
		"service-cluster-ip-range":           cfg.ServiceCIDR.String(),
		"etcd-servers":                       cfg.Etcd,
		"storage-backend":                    "etcd3",
		"allow-privileged":                   "true",
		"authorization-mode":                 "Node,RBAC",
		"enable-admission-plugins":           "NodeRestriction",
		"enable-bootstrap-token-auth":        "true",
		"enable-aggregator-routing":          "true",
		"profiling":                          "false",
		"client-ca-file":                     tls(pki.ClientCA + ".crt"),
		"tls-cert-file":                      tls(pki.APIServer + ".crt"),
		"tls-private-key-file":               tls(pki.APIServer + ".key"),
		"kubelet-certificate-authority":      tls(pki.ServerCA + ".crt"),
		"kubelet-client-certificate":         tls(pki.Kubelet + ".crt"),
		"kubelet-client-key":                 tls(pki.Kubelet + ".key"),
		"kubelet-preferred-address-types":    "InternalIP,ExternalIP,Hostname",
		"proxy-client-cert-file":             tls(pki.AuthProxy + ".crt"),
		"proxy-client-key-file":              tls(pki.AuthProxy + ".key"),
		"requestheader-client-ca-file":       tls(pki.RequestHeaderCA + ".crt"),
		"requestheader-allowed-names":        "system:auth-proxy",
		"requestheader-extra-headers-prefix": "X-Remote-Extra-",
		"requestheader-group-headers":        "X-Remote-Group",
		"requestheader-username-headers":     "X-Remote-User",
		"service-account-issuer":             issuer,
		"api-audiences":                      issuer,
		"service-account-key-file":           tls(pki.ServiceKey),
		"service-account-signing-key-file":   tls(pki.ServiceKey),
		"watch-cache-sizes":                  watchCacheSizes(),
		// One server needs no lease on the kubernetes Service's endpoints, renewed every ten seconds on
		// the disk; this reconciler writes when something is wrong.
		"endpoint-reconciler-type": "master-count",
		// Nor a lease, of the same kind, on its place among peers of other versions.
		"feature-gates": "UnknownVersionInteroperabilityProxy=false",
	}
	if cfg.AdvertiseAddress.IsLoopback() {
		args["endpoint-reconciler-type"] = "none"
	}
	return args
}

// identityLeaseRenewal is how often the API server renews the Lease that says it exists, which lasts an
// hour. Upstream's ten seconds are for clusters that watch several API servers, and a write each.
const identityLeaseRenewal = 15 * time.Minute

// Handle serves the paths that begin with prefix by h, behind authentication and authorization as a
// non-resource path: members of system:masters, and whom RBAC lets. It is called before Run.
func (s *Server) Handle(prefix string, h http.Handler) { s.handlers[prefix] = h }

// Transport reaches the API server in process under the identity u. It is called after ready.
func (s *Server) Transport(u user.Info) http.RoundTripper {
	return inprocess.NewTransport(s.chain, u)
}

// Run serves on listener until ctx is done and calls ready once /readyz says so. The registry of
// components has been set before.
func (s *Server) Run(ctx context.Context, listener net.Listener, ready func()) error {
	// The API server's clients of itself need no warnings about what it serves.
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	controlplaneapiserver.IdentityLeaseRenewIntervalPeriod = identityLeaseRenewal
	s.options.SecureServing.Listener = listener

	completed, err := s.options.Complete(ctx)
	if err != nil {
		return fmt.Errorf("completing the options: %w", err)
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return fmt.Errorf("validating the options: %w", utilerrors.NewAggregate(errs))
	}
	if completed.InformerName, err = cache.NewInformerName("kube-apiserver"); err != nil {
		return fmt.Errorf("naming the informers: %w", err)
	}
	config, err := app.NewConfig(completed)
	if err != nil {
		return fmt.Errorf("building the configuration: %w", err)
	}
	auth := &config.Aggregator.GenericConfig.Config.Authentication
	auth.Authenticator = inprocess.Authenticator(auth.Authenticator)
	completedConfig, err := config.Complete()
	if err != nil {
		return fmt.Errorf("completing the configuration: %w", err)
	}
	aggregator, err := app.CreateServerChain(completedConfig)
	if err != nil {
		return fmt.Errorf("building the servers: %w", err)
	}
	for prefix, h := range s.handlers {
		aggregator.GenericAPIServer.Handler.NonGoRestfulMux.HandlePrefix(prefix, h)
	}
	// How long a stop waits for requests under way; open watches never end by themselves.
	aggregator.GenericAPIServer.ShutdownTimeout = 2 * time.Second
	prepared, err := aggregator.PrepareRun()
	if err != nil {
		return fmt.Errorf("preparing to run: %w", err)
	}
	s.chain = aggregator.GenericAPIServer.Handler

	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done, started := make(chan error, 1), make(chan struct{})
	go func() { done <- prepared.Run(serving) }()
	go func() {
		if s.waitReady(serving) {
			close(started)
			ready()
		}
	}()
	go func() {
		defer stop()
		<-ctx.Done()
		select {
		case <-started:
		case <-time.After(startPatience):
		case <-serving.Done():
		}
	}()
	if err := <-done; err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errors.New("ended by itself")
	}
	return nil
}

// startPatience is how long a stop waits for a start that is under way. Upstream's hooks of the start end
// the whole process when they are broken off.
const startPatience = 10 * time.Second

// readyPoll is how often readiness is asked for; the question costs a fraction of a millisecond.
const readyPoll = 20 * time.Millisecond

// readyPatience is after how long it is worth telling the user what the API server waits for.
const readyPatience = 15 * time.Second

// waitReady returns true once /readyz answers with 200, and false when ctx is done.
func (s *Server) waitReady(ctx context.Context) bool {
	transport := s.Transport(inprocess.User("system:admin", user.SystemPrivilegedGroup))
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for complain := time.Now().Add(readyPatience); ; {
		code, report, err := get(ctx, transport, "/readyz?verbose")
		if err == nil && code == http.StatusOK {
			return true
		}
		if time.Now().After(complain) {
			complain = time.Now().Add(readyPatience)
			logrus.Warnf("the API server is not ready yet: %s%v", report, err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

func get(ctx context.Context, transport http.RoundTripper, path string) (code int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, inprocess.Host+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}
