// Package server runs a cluster's control plane in one process: the datastore, the API server, the
// scheduler, and the controllers, natively or in a Plane.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/internal/service"
	"github.com/dormouse-k8s/dormouse/internal/version"
	"github.com/dormouse-k8s/dormouse/manifests"
	"github.com/dormouse-k8s/dormouse/server/apiserver"
	"github.com/dormouse-k8s/dormouse/server/apiserver/inprocess"
	"github.com/dormouse-k8s/dormouse/server/controllers"
	"github.com/dormouse-k8s/dormouse/server/datastore"
	"github.com/dormouse-k8s/dormouse/server/deploy"
	"github.com/dormouse-k8s/dormouse/server/pki"
	"github.com/dormouse-k8s/dormouse/server/scheduler"
	"github.com/dormouse-k8s/dormouse/server/token"
)

// Config is what a server needs to know. Every field up to KubeconfigMode has to be set.
type Config struct {
	// DataDir is an absolute path; the server's files lie under <DataDir>/server.
	DataDir string
	// BindAddress and HTTPSListenPort are where the API server listens.
	BindAddress     net.IP
	HTTPSListenPort int
	// AdvertiseAddress is where pods reach the API server; a loopback address if nowhere.
	AdvertiseAddress net.IP
	ClusterCIDR      netip.Prefix
	ServiceCIDR      netip.Prefix
	ClusterDNS       netip.Addr
	ClusterDomain    string
	// Kubeconfig is where the administrator's kubeconfig is written, with KubeconfigMode.
	Kubeconfig     string
	KubeconfigMode fs.FileMode

	// TLSSANs are further names and addresses in the API server's certificate.
	TLSSANs []string
	// Token is the secret to join with, "" for the stored one or a new random one.
	Token string
	// Arguments for upstream's components, each "name=value".
	KubeAPIServerArgs, KubeSchedulerArgs, KubeControllerManagerArgs []string
	// DisableScheduler and DisableControllerManager leave out what others do in the cluster's place.
	DisableScheduler, DisableControllerManager bool
	// Plane runs some of the controllers. Without one all run natively.
	Plane Plane
	// Ready is called once everything is ready.
	Ready func()
}

// Plane is a control plane that runs some of upstream's controllers, and perhaps its scheduler, as the server
// sees it.
type Plane interface {
	// Controllers are the upstream names of what it runs. It is not started natively.
	Controllers() []string
	// Run runs them until ctx is done. The API server behind host is ready.
	Run(ctx context.Context, host Host, ready func()) error
	// The Plane's own requests, under PlanePath, for members of system:masters.
	http.Handler
	// The Plane's metrics, on the API server's /metrics.
	prometheus.Collector
}

// PlanePath is the prefix of the paths a Plane serves.
const PlanePath = "/v1-dormouse/wasm/"

// Host is what the server offers to a Plane.
type Host struct {
	// Transport reaches the API server in process as user. Its host is inprocess.Host.
	Transport func(user string, groups []string) http.RoundTripper
	// Datastore says which store this is, and where in its history this run began.
	Datastore datastore.Identity
	// Changes says when objects change; nil: nobody can.
	Changes Changes
	// Native are the names of what runs natively beside the Plane.
	Native []string
	// ControllerManager is upstream's internal configuration of all controllers, as encoding/json writes it.
	ControllerManager json.RawMessage
	// Scheduler is that of the scheduler.
	Scheduler *scheduler.Configuration
	// FeatureGates are those that are not at their default.
	FeatureGates map[string]bool
	// Files reads the files of which a controller is told in its configuration, by path.
	Files func(controller string) (map[string]string, error)
}

// Changes says when objects of a resource ("pods", "leases.coordination.k8s.io") change. It is safe for concurrent
// use.
type Changes interface {
	// UpTo is a version up to which none has become newer than since: since itself where that cannot be told.
	UpTo(resource string, since uint64) uint64
	// Await calls changed once, when one has become newer than since, with a version up to which none had. stop
	// has it not do so. It is not ok where that cannot be told.
	Await(resource string, since uint64, changed func(before uint64)) (stop func(), ok bool)
}

// Guests are the upstream names of what a Plane has to run for a server with cfg: the enabled controllers and
// the scheduler, but for those in native and what cannot run in a Plane. It reads the configuration files that
// the arguments name.
func Guests(ctx context.Context, cfg Config, native []string) ([]string, error) {
	cfg.Plane = nil
	s, err := newServer(cfg, paths.Data(cfg.DataDir))
	if err != nil {
		return nil, err
	}
	if err := setFeatureGates(); err != nil {
		return nil, err
	}
	isNative := func(name string) bool { return slices.Contains(native, name) }
	var guests []string
	if !cfg.DisableControllerManager {
		guests = slices.DeleteFunc(s.controllers.Enabled(), isNative)
		if err := s.controllers.Exclude(guests); err != nil {
			return nil, err
		}
		if _, err := s.controllers.Configuration(); err != nil {
			return nil, err
		}
	}
	if !cfg.DisableScheduler && !isNative(scheduler.Name) {
		c, err := s.scheduler.Configuration(ctx)
		if err != nil {
			return nil, err
		}
		if !c.Extended { // a guest reaches nothing but the API server
			guests = append(guests, scheduler.Name)
		}
	}
	return guests, nil
}

// Validate says whether cfg could work at all, from its values alone.
func (c Config) Validate() error {
	switch {
	case !filepath.IsAbs(c.DataDir):
		return fmt.Errorf("data-dir %q: not an absolute path", c.DataDir)
	case !dataDirName.MatchString(c.DataDir):
		return fmt.Errorf("data-dir %q: only letters, digits and . _ - + @ / may occur in it", c.DataDir)
	case len(paths.Data(c.DataDir).DatabaseSocket()) > maxSocketPath:
		return fmt.Errorf("data-dir %q: longer than %d characters, so that no socket can be made in it", c.DataDir, len(c.DataDir)+maxSocketPath-len(paths.Data(c.DataDir).DatabaseSocket()))
	case c.ClusterCIDR.Overlaps(c.ServiceCIDR):
		return fmt.Errorf("cluster-cidr %s and service-cidr %s overlap", c.ClusterCIDR, c.ServiceCIDR)
	case c.ClusterCIDR.Addr().Is4() != c.ServiceCIDR.Addr().Is4():
		return fmt.Errorf("cluster-cidr %s and service-cidr %s are of different address families", c.ClusterCIDR, c.ServiceCIDR)
	case !c.ServiceCIDR.Contains(c.ClusterDNS):
		return fmt.Errorf("cluster-dns %s is not in service-cidr %s", c.ClusterDNS, c.ServiceCIDR)
	}
	return nil
}

// dataDirName keeps to what needs no quoting in the URLs that name the database and its socket.
var dataDirName = regexp.MustCompile(`^[A-Za-z0-9._+@/-]+$`)

// maxSocketPath is the longest name a unix socket may have.
const maxSocketPath = 107

// Check says whether a server could start with cfg here and now, without changing anything.
func Check(cfg Config) error {
	if _, err := newServer(cfg, paths.Data(cfg.DataDir)); err != nil {
		return err
	}
	l, err := preflight(cfg)
	if err != nil {
		return err
	}
	return l.Close()
}

// preflight checks everything that can be checked without writing and returns the listener of the API
// server, whose port would otherwise be found taken only after much has been written.
func preflight(cfg Config) (net.Listener, error) {
	data := paths.Data(cfg.DataDir)
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := checkVersion(data); err != nil {
		return nil, err
	}
	if err := token.Check(data, cfg.Token); err != nil {
		return nil, err
	}
	address := net.JoinHostPort(cfg.BindAddress.String(), strconv.Itoa(cfg.HTTPSListenPort))
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s, choose another with --https-listen-port or --bind-address: %w", address, err)
	}
	return l, nil
}

// URL is where clients on this machine reach the API server.
func (c Config) URL() string {
	host := c.BindAddress.String()
	if c.BindAddress.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "https://" + net.JoinHostPort(host, strconv.Itoa(c.HTTPSListenPort))
}

// Run runs a server until ctx is done. Only one can run in a process, and once: upstream's components
// keep their feature gates and metrics in global variables.
func Run(ctx context.Context, cfg Config) (err error) {
	data := paths.Data(cfg.DataDir)
	s, err := newServer(cfg, data)
	if err != nil {
		return err
	}
	if err := setFeatureGates(); err != nil {
		return err
	}
	listener, err := preflight(cfg)
	if err != nil {
		return err
	}
	defer listener.Close() // the API server closes it earlier

	logrus.Infof("data directory is %s", data)
	if err := paths.MakeDir(data.Server(), paths.ModePrivateDir); err != nil {
		return err
	}
	held, err := lock(data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Close()) }()
	if err := writeVersion(data); err != nil {
		return err
	}
	if err := s.writeCredentials(); err != nil {
		return err
	}
	if s.store, err = datastore.Open(ctx, data); err != nil {
		return err
	}
	return service.Run(ctx, s.services(listener))
}

// setFeatureGates is for when the arguments of all components have been parsed: they share their gates.
func setFeatureGates() error {
	if err := compatibility.DefaultComponentGlobalsRegistry.Set(); err != nil {
		return fmt.Errorf("setting the feature gates: %w", err)
	}
	return nil
}

// server is the control plane's parts, put together but not running.
type server struct {
	cfg         Config
	data        paths.Data
	api         *apiserver.Server
	scheduler   *scheduler.Scheduler
	controllers *controllers.Manager
	store       *datastore.Store
}

// newServer parses the arguments of all components. It reads and writes no files.
func newServer(cfg Config, data paths.Data) (*server, error) {
	s := &server{cfg: cfg, data: data}
	var err error
	if s.api, err = apiserver.New(apiserver.Config{
		Data: data, Port: cfg.HTTPSListenPort, BindAddress: cfg.BindAddress, AdvertiseAddress: cfg.AdvertiseAddress,
		ServiceCIDR: cfg.ServiceCIDR, ClusterDomain: cfg.ClusterDomain, Etcd: datastore.Endpoint(data), Args: cfg.KubeAPIServerArgs,
	}); err != nil {
		return nil, err
	}
	if s.scheduler, err = scheduler.New(cfg.KubeSchedulerArgs); err != nil {
		return nil, err
	}
	if s.controllers, err = controllers.New(controllers.Config{
		Data: data, ClusterCIDR: cfg.ClusterCIDR, ServiceCIDR: cfg.ServiceCIDR, Args: cfg.KubeControllerManagerArgs,
	}); err != nil {
		return nil, err
	}
	if cfg.Plane != nil {
		guests := slices.DeleteFunc(cfg.Plane.Controllers(), func(name string) bool { return name == scheduler.Name })
		if err := s.controllers.Exclude(guests); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// writeCredentials creates or renews certificates, token and kubeconfig.
func (s *server) writeCredentials() error {
	cluster, err := pki.LoadCluster(s.data, time.Now())
	if err != nil {
		return err
	}
	names := pki.ClusterNames{ServiceCIDR: s.cfg.ServiceCIDR, Domain: s.cfg.ClusterDomain, SANs: append([]string{s.cfg.AdvertiseAddress.String()}, s.cfg.TLSSANs...)}
	if !s.cfg.BindAddress.IsUnspecified() {
		names.SANs = append(names.SANs, s.cfg.BindAddress.String())
	}
	if err := cluster.EnsureServer(names); err != nil {
		return err
	}
	rootCA := cluster.Server.PEM
	if _, err := token.Ensure(s.data, s.cfg.Token, rootCA); err != nil {
		return err
	}
	logrus.Infof("node token is at %s", s.data.NodeToken())
	if err := writeKubeconfig(s.cfg.Kubeconfig, s.cfg.KubeconfigMode, s.cfg.URL(), rootCA, s.data.TLS(pki.Admin+".crt"), s.data.TLS(pki.Admin+".key")); err != nil {
		return err
	}
	logrus.Infof("wrote kubeconfig %s", s.cfg.Kubeconfig)
	return nil
}

// Names of the services.
const (
	datastoreService   = "datastore"
	apiService         = "apiserver"
	manifestsService   = "manifests"
	schedulerService   = "scheduler"
	controllersService = "controllers"
	changesService     = "changes"
	planeService       = "plane"
	readyService       = "ready"
)

func (s *server) services(listener net.Listener) []service.Service {
	services := []service.Service{
		{Name: datastoreService, Run: s.store.Serve},
		{Name: apiService, Needs: []string{datastoreService}, Run: func(ctx context.Context, ready func()) error {
			return s.api.Run(ctx, listener, func() {
				logrus.Infof("API server is running at %s (Kubernetes %s)", s.cfg.URL(), version.Get())
				ready()
			})
		}},
		// Alone with the API server it takes some milliseconds, beside the start of the others much longer.
		{Name: manifestsService, Needs: []string{apiService}, Run: func(ctx context.Context, ready func()) error {
			client := &rest.Config{Host: inprocess.Host, Transport: s.api.Transport(inprocess.User("system:admin", user.SystemPrivilegedGroup))}
			return deploy.Run(ctx, deploy.Config{Client: client, Embedded: manifests.FS, Dir: s.data.Manifests()}, ready)
		}},
	}
	everything := []string{datastoreService, apiService, manifestsService}
	if s.nativeScheduler() {
		services = append(services, service.Service{Name: schedulerService, Needs: []string{apiService, manifestsService}, Run: func(ctx context.Context, ready func()) error {
			return s.scheduler.Run(ctx, s.api.Transport, ready)
		}})
		everything = append(everything, schedulerService)
	}
	if len(s.nativeControllers()) > 0 {
		services = append(services, service.Service{Name: controllersService, Needs: []string{apiService, manifestsService}, Run: func(ctx context.Context, ready func()) error {
			return s.controllers.Run(ctx, s.api.Transport, ready)
		}})
		everything = append(everything, controllersService)
	}
	if plane := s.cfg.Plane; plane != nil {
		s.api.Handle(PlanePath, plane)
		legacyregistry.RawMustRegister(plane)
		needs := []string{apiService, manifestsService}
		changes := s.api.Changes()
		if changes != nil {
			services = append(services, service.Service{Name: changesService, Needs: []string{datastoreService}, Run: changes.Run})
			needs = append(needs, changesService)
		}
		services = append(services, service.Service{Name: planeService, Needs: needs, Run: func(ctx context.Context, ready func()) error {
			host, err := s.host(ctx)
			if err != nil {
				return err
			}
			if changes != nil {
				host.Changes = changes
			}
			return plane.Run(ctx, host, ready)
		}})
		everything = append(everything, planeService)
	} else {
		s.api.Handle(PlanePath, nativeOnly(s.native()))
	}
	if s.cfg.Ready != nil {
		services = append(services, service.Service{Name: readyService, Needs: everything, Run: func(_ context.Context, ready func()) error {
			s.cfg.Ready()
			ready()
			return nil
		}})
	}
	return services
}

func (s *server) host(ctx context.Context) (Host, error) {
	manager, err := s.controllers.Configuration()
	if err != nil {
		return Host{}, err
	}
	scheduler, err := s.scheduler.Configuration(ctx)
	if err != nil {
		return Host{}, err
	}
	return Host{
		Transport: func(name string, groups []string) http.RoundTripper {
			return s.api.Transport(inprocess.User(name, groups...))
		},
		Datastore:         s.store.Identity,
		Native:            s.native(),
		ControllerManager: manager,
		Scheduler:         scheduler,
		FeatureGates:      changedGates(),
		Files:             s.controllers.Files,
	}, nil
}

// changedGates are the feature gates that are not at their default.
func changedGates() map[string]bool {
	changed := map[string]bool{}
	defaults := utilfeature.DefaultMutableFeatureGate.DeepCopyAndReset()
	for gate := range utilfeature.DefaultMutableFeatureGate.GetAll() {
		if on := utilfeature.DefaultFeatureGate.Enabled(gate); on != defaults.Enabled(gate) {
			changed[string(gate)] = on
		}
	}
	return changed
}

// native are the names of what runs natively.
func (s *server) native() []string {
	names := s.nativeControllers()
	if s.nativeScheduler() {
		names = append(names, scheduler.Name)
	}
	return names
}

func (s *server) nativeControllers() []string {
	if s.cfg.DisableControllerManager {
		return nil
	}
	return s.controllers.Names()
}

func (s *server) nativeScheduler() bool {
	return !s.cfg.DisableScheduler && (s.cfg.Plane == nil || !slices.Contains(s.cfg.Plane.Controllers(), scheduler.Name))
}

// nativeOnly answers "what runs where" when there is no Plane.
func nativeOnly(names []string) http.Handler {
	type controller struct {
		Name  string `json:"name"`
		State string `json:"state"`
	}
	list := struct {
		Controllers []controller `json:"controllers"`
	}{[]controller{}}
	for _, n := range names {
		list.Controllers = append(list.Controllers, controller{n, "native"})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet || req.URL.Path != PlanePath+"controllers" {
			http.Error(w, "every controller runs natively (controller-mode=native)", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(list); err != nil {
			logrus.Debugf("answering %s: %v", req.URL.Path, err)
		}
	})
}
