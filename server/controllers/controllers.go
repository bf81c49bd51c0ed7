// Package controllers configures upstream's controllers, and runs natively those that nobody else runs, in
// this process, each as its own service account over the in-process transport.
package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"
	v1core "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/controller-manager/pkg/clientbuilder"
	"k8s.io/controller-manager/pkg/healthz"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/config"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	kubectrlmgrconfig "k8s.io/kubernetes/pkg/controller/apis/config"
	csrsigningconfig "k8s.io/kubernetes/pkg/controller/certificates/signer/config"
	gcconfig "k8s.io/kubernetes/pkg/controller/garbagecollector/config"
	serviceaccountcontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/server/apiserver/inprocess"
	"github.com/dormouse-k8s/dormouse/server/options"
	"github.com/dormouse-k8s/dormouse/server/pki"
)

// Config is what the controllers need to know.
type Config struct {
	Data                     paths.Data
	ClusterCIDR, ServiceCIDR netip.Prefix
	// Args are a user's arguments for kube-controller-manager.
	Args []string
}

// Manager is the natively running controllers.
type Manager struct {
	options *kcmoptions.KubeControllerManagerOptions
	exclude []string
}

// New parses the flags of cfg. Nothing is read or started.
func New(cfg Config) (*Manager, error) {
	o, err := kcmoptions.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, fmt.Errorf("kube-controller-manager: %w", err)
	}
	flags := o.Flags(app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases())
	if err := options.Parse("kube-controller-manager-arg", flags.FlagSets, defaults(cfg), cfg.Args); err != nil {
		return nil, err
	}
	if errs := o.Generic.Validate(app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()); len(errs) > 0 {
		return nil, fmt.Errorf("kube-controller-manager-arg: %w", utilerrors.NewAggregate(errs))
	}
	for i, given := range o.Generic.Controllers {
		name := strings.TrimPrefix(given, "-")
		if canonical, ok := app.ControllerAliases()[name]; ok {
			o.Generic.Controllers[i] = strings.TrimSuffix(given, name) + canonical
		}
	}
	return &Manager{options: o}, nil
}

// Exclude leaves the controllers with these upstream names to others. A name that upstream does not know is an
// error, since that controller would run nowhere; so is what cannot run natively without them.
func (m *Manager) Exclude(exclude []string) error {
	for _, name := range exclude {
		if !slices.Contains(app.KnownControllers(), name) {
			return fmt.Errorf("kube-controller-manager has no controller %q", name)
		}
	}
	m.exclude = exclude
	native := m.Names()
	if collector, migrator := names.GarbageCollectorController, names.StorageVersionMigratorController; slices.Contains(native, migrator) && !slices.Contains(native, collector) {
		// It reads the garbage collector's graph, and ends the process if there is none.
		return fmt.Errorf("%s runs natively only beside %s; name both in native-controllers, or neither", migrator, collector)
	}
	return nil
}

func defaults(cfg Config) map[string]string {
	tls := cfg.Data.TLS
	args := map[string]string{
		// Clients are built here, see clients; upstream wants an address all the same.
		"master":                           inprocess.Host,
		"kube-api-qps":                     "-1", // the API server's own fairness decides
		"leader-elect":                     "false",
		"secure-port":                      "0",
		"profiling":                        "false",
		"use-service-account-credentials":  "true",
		"allocate-node-cidrs":              "true",
		"cluster-cidr":                     cfg.ClusterCIDR.String(),
		"service-cluster-ip-range":         cfg.ServiceCIDR.String(),
		"configure-cloud-routes":           "false",
		"root-ca-file":                     tls(pki.ServerCA + ".crt"),
		"service-account-private-key-file": tls(pki.ServiceKey),
	}
	for signer, authority := range map[string]string{
		"kube-apiserver-client": pki.ClientCA, "kubelet-client": pki.ClientCA, "legacy-unknown": pki.ServerCA, "kubelet-serving": pki.ServerCA,
	} {
		args["cluster-signing-"+signer+"-cert-file"] = tls(authority + ".crt")
		args["cluster-signing-"+signer+"-key-file"] = tls(authority + ".key")
	}
	return args
}

// Enabled are the upstream names of the controllers that are to run, here or elsewhere.
func (m *Manager) Enabled() []string {
	var enabled []string
	for name, d := range app.NewControllerDescriptors() {
		if m.context().IsControllerEnabled(d) {
			enabled = append(enabled, name)
		}
	}
	slices.Sort(enabled)
	return enabled
}

// Names are those of the controllers that Run runs.
func (m *Manager) Names() []string {
	return slices.DeleteFunc(m.Enabled(), func(name string) bool { return slices.Contains(m.exclude, name) })
}

// Configuration is upstream's configuration of all controllers, as encoding/json writes it.
func (m *Manager) Configuration() (json.RawMessage, error) {
	c, err := m.component()
	if err != nil {
		return nil, err
	}
	return json.Marshal(c)
}

// component is the part of upstream's Options.Config that starts nothing.
func (m *Manager) component() (*kubectrlmgrconfig.KubeControllerManagerConfiguration, error) {
	known, disabled, aliases := app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()
	if err := m.options.Validate(known, disabled, aliases); err != nil {
		return nil, fmt.Errorf("validating the arguments of the controllers: %w", err)
	}
	var c config.Config
	if err := m.options.ApplyTo(&c, known, disabled, aliases); err != nil {
		return nil, fmt.Errorf("applying the arguments of the controllers: %w", err)
	}
	// Upstream takes these from a map; what guests are told must not differ from start to start.
	slices.SortFunc(c.ComponentConfig.GarbageCollectorController.GCIgnoredResources, func(a, b gcconfig.GroupResource) int {
		return strings.Compare(a.Group+"/"+a.Resource, b.Group+"/"+b.Resource)
	})
	return &c.ComponentConfig, nil
}

// Files reads the files of which a controller is told in its configuration. Keys are among them: each
// controller gets its own only.
func (m *Manager) Files(name string) (map[string]string, error) {
	c, err := m.component()
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, file := range filesOf(name, c) {
		if file == "" {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading a file of %s: %w", name, err)
		}
		files[file] = string(b)
	}
	return files, nil
}

func filesOf(name string, c *kubectrlmgrconfig.KubeControllerManagerConfiguration) []string {
	switch name {
	case names.ServiceAccountTokenController:
		return []string{c.SAController.ServiceAccountKeyFile, c.SAController.RootCAFile}
	case names.RootCACertificatePublisherController, names.KubeAPIServerClusterTrustBundlePublisherController:
		return []string{c.SAController.RootCAFile}
	case names.CertificateSigningRequestSigningController:
		s := c.CSRSigningController
		files := []string{s.ClusterSigningCertFile, s.ClusterSigningKeyFile}
		for _, f := range []csrsigningconfig.CSRSigningConfiguration{
			s.KubeletServingSignerConfiguration, s.KubeletClientSignerConfiguration,
			s.KubeAPIServerClientSignerConfiguration, s.LegacyUnknownSignerConfiguration,
		} {
			files = append(files, f.CertFile, f.KeyFile)
		}
		return files
	case names.PersistentVolumeBinderController, names.PersistentVolumeAttachDetachController, names.PersistentVolumeExpanderController:
		r := c.PersistentVolumeBinderController.VolumeConfiguration.PersistentVolumeRecyclerConfiguration
		return []string{r.PodTemplateFilePathHostPath, r.PodTemplateFilePathNFS}
	}
	return nil
}

// context is a ControllerContext that knows no more than which controllers are enabled.
func (m *Manager) context() app.ControllerContext {
	var c app.ControllerContext
	c.ComponentConfig.Generic.Controllers = m.options.Generic.Controllers
	return c
}

// Run runs the controllers until ctx is done. transport reaches the API server, which is ready.
func (m *Manager) Run(ctx context.Context, transport func(user.Info) http.RoundTripper, ready func()) error {
	ctx = klog.NewContext(ctx, klog.Background())
	c, err := m.options.Config(ctx, app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases())
	if err != nil {
		return fmt.Errorf("building the configuration: %w", err)
	}
	root := clients{base: c.Kubeconfig, transport: transport, identity: func(string) user.Info { return inprocess.User(user.KubeControllerManager) }}
	each := clients{base: c.Kubeconfig, transport: transport, identity: inprocess.Controller}
	if err := m.prepare(c, root); err != nil {
		return err
	}
	c.EventBroadcaster.StartRecordingToSink(&v1core.EventSinkImpl{Interface: c.Client.CoreV1().Events("")})
	defer c.EventBroadcaster.Shutdown()

	cctx, err := app.CreateControllerContext(ctx, c.Complete(), root, each)
	if err != nil {
		return fmt.Errorf("building the controller context: %w", err)
	}
	descriptors := app.NewControllerDescriptors()
	maps.DeleteFunc(descriptors, func(name string, _ *app.ControllerDescriptor) bool {
		return slices.Contains(m.exclude, name) || name == names.ServiceAccountTokenController
	})
	running, err := app.BuildControllers(ctx, cctx, descriptors, nil, healthz.NewMutableHealthzHandler())
	if err != nil {
		return fmt.Errorf("building the controllers: %w", err)
	}
	if tokens := names.ServiceAccountTokenController; slices.Contains(m.Names(), tokens) {
		t, err := newTokenController(ctx, cctx, root)
		if err != nil {
			return fmt.Errorf("building %s: %w", tokens, err)
		}
		running = append(running, t)
	}

	cctx.InformerFactory.Start(ctx.Done())
	defer cctx.InformerFactory.Shutdown()
	cctx.ObjectOrMetadataInformerFactory.Start(ctx.Done())
	close(cctx.InformersStarted)
	logrus.Debugf("%d controllers run natively", len(running))
	ready()
	if !app.RunControllers(ctx, cctx, running, app.ControllerStartJitter, c.ControllerShutdownTimeout) {
		return fmt.Errorf("controllers did not stop within %s", c.ControllerShutdownTimeout)
	}
	if ctx.Err() == nil {
		return errors.New("all controllers ended by themselves")
	}
	return nil
}

// prepare replaces what upstream made of the command line by what holds in this process.
func (m *Manager) prepare(c *config.Config, root clients) error {
	for _, name := range m.exclude {
		// First match wins, also over the name itself.
		c.ComponentConfig.Generic.Controllers = slices.Insert(c.ComponentConfig.Generic.Controllers, 0, "-"+name)
	}
	var err error
	c.Kubeconfig = root.ConfigOrDie(kcmoptions.KubeControllerManagerUserAgent)
	if c.Client, err = kubernetes.NewForConfig(c.Kubeconfig); err != nil {
		return fmt.Errorf("building a client: %w", err)
	}
	return nil
}

// tokenController is upstream's serviceaccount-token-controller. Its constructor in kube-controller-manager
// is private, since it alone acts as the controller manager itself.
type tokenController struct {
	*serviceaccountcontroller.TokensController
	workers int
}

func newTokenController(ctx context.Context, cctx app.ControllerContext, root clientbuilder.ControllerClientBuilder) (*tokenController, error) {
	o := cctx.ComponentConfig.SAController
	key, err := keyutil.PrivateKeyFromFile(o.ServiceAccountKeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the signing key: %w", err)
	}
	rootCA, err := os.ReadFile(o.RootCAFile)
	if err != nil {
		return nil, fmt.Errorf("reading the root CA: %w", err)
	}
	generator, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, key)
	if err != nil {
		return nil, fmt.Errorf("building the token generator: %w", err)
	}
	client, err := root.Client("tokens-controller")
	if err != nil {
		return nil, err
	}
	core := cctx.InformerFactory.Core().V1()
	c, err := serviceaccountcontroller.NewTokensController(klog.FromContext(ctx), core.ServiceAccounts(), core.Secrets(), client,
		serviceaccountcontroller.TokensControllerOptions{TokenGenerator: generator, RootCA: rootCA})
	if err != nil {
		return nil, err
	}
	return &tokenController{c, int(o.ConcurrentSATokenSyncs)}, nil
}

// Name implements app.Controller.
func (t *tokenController) Name() string { return names.ServiceAccountTokenController }

// Run implements app.Controller.
func (t *tokenController) Run(ctx context.Context) { t.TokensController.Run(ctx, t.workers) }
