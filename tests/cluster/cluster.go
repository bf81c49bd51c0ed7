// Package cluster looks at a running Dormouse from outside, as its users do:
// through the API server and the status of the Wasm plane. Tests of the whole
// binary share it.
package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

// Patience is how long Eventually waits. It is no measure of anything: a busy
// machine with one slow disk has to make it too.
const Patience = 3 * time.Minute

// Guests are the controllers that run in Wasm by default, and the scheduler.
var Guests = guests()

func guests() []string {
	byDefault := func(name string) bool {
		return !slices.Contains([]string{"bootstrap-signer-controller", "selinux-warning-controller", "token-cleaner-controller"}, name)
	}
	var names []string
	for _, d := range controllers.All() {
		if byDefault(d.Name) {
			names = append(names, d.Name)
		}
	}
	return names
}

// Cluster is a running Dormouse. Its methods may be called concurrently.
type Cluster struct {
	*kubernetes.Clientset
	Config *rest.Config
	http   *http.Client
}

// Connect returns the cluster that kubeconfig, a file's content, leads to at the
// given host and port. It does not talk to it yet.
func Connect(kubeconfig []byte, address string) (*Cluster, error) {
	config, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	config.Host = "https://" + address
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{} // Endpoints are deprecated, and read all the same
	config.Timeout = 30 * time.Second         // a server that was killed must not hold a client
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	set, err := kubernetes.NewForConfigAndClient(config, client)
	if err != nil {
		return nil, err
	}
	return &Cluster{Clientset: set, Config: config, http: client}, nil
}

// Controller is what Dormouse says of a controller. The names are the ones that
// scripts rely on.
type Controller struct {
	Name           string     `json:"name"`
	Identity       string     `json:"identity"`
	Module         string     `json:"module"`
	State          string     `json:"state"`
	Wakes          int        `json:"wakes"`
	LastWake       *time.Time `json:"lastWake"`
	LastWakeReason string     `json:"lastWakeReason"`
	NextTimer      *time.Time `json:"nextTimer"`
	ResidentBytes  int64      `json:"residentBytes"`
	SnapshotBytes  int64      `json:"snapshotBytes"`
	Restarts       int        `json:"restarts"`
	LastError      string     `json:"lastError"`
}

// Request asks for a path that no client knows and returns the status and the body.
func (c *Cluster) Request(ctx context.Context, method, path string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.Config.Host+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// Controllers lists all controllers.
func (c *Cluster) Controllers(ctx context.Context) ([]Controller, error) {
	code, body, err := c.Request(ctx, http.MethodGet, "/v1-dormouse/wasm/controllers")
	if err != nil {
		return nil, err
	}
	if code != http.StatusOK {
		return nil, fmt.Errorf("list the controllers: status %d: %s", code, body)
	}
	var list struct{ Controllers []Controller }
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("list the controllers: %w: %s", err, body)
	}
	return list.Controllers, nil
}

// Tell wakes or evicts a controller. It reports whether that was done: a busy one
// is not evicted.
func (c *Cluster) Tell(ctx context.Context, controller, verb string) (bool, error) {
	code, body, err := c.Request(ctx, http.MethodPost, "/v1-dormouse/wasm/controllers/"+controller+"/"+verb)
	if err == nil && code != http.StatusOK && code != http.StatusConflict {
		err = fmt.Errorf("%s %s: status %d: %s", verb, controller, code, body)
	}
	return code == http.StatusOK, err
}

// Describe returns all there is to know about some controllers, by default all
// guests, for a failed test.
func (c *Cluster) Describe(ctx context.Context, controllers ...string) string {
	if len(controllers) == 0 {
		controllers = Guests
	}
	all := ""
	for _, name := range controllers {
		_, body, err := c.Request(ctx, http.MethodGet, "/v1-dormouse/wasm/controllers/"+name)
		if err != nil {
			return all + err.Error()
		}
		all += string(body)
	}
	return all
}

// Asleep returns an error that names the guests which are not asleep.
func (c *Cluster) Asleep(ctx context.Context) error {
	all, err := c.Controllers(ctx)
	if err != nil {
		return err
	}
	awake := ""
	for _, k := range all {
		if k.State != "native" && k.State != "asleep" {
			awake += fmt.Sprintf(" %s (%s, %s)", k.Name, k.State, k.LastWakeReason)
		}
	}
	if awake != "" {
		return fmt.Errorf("not asleep:%s", awake)
	}
	return nil
}

// Eventually waits until check returns nil, and fails the test with its last
// error when that takes too long.
func Eventually(t testing.TB, what string, check func(context.Context) error) {
	t.Helper()
	if err := Await(t.Context(), check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// Await is Eventually for goroutines that are not the test's.
func Await(ctx context.Context, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	tick := time.NewTimer(Patience)
	defer tick.Stop()
	var last error
	for again := 50 * time.Millisecond; ; again = min(again*5/4, 500*time.Millisecond) {
		err := check(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() == nil || last == nil:
			last = err // not that of a check that was cut off
		}
		tick.Reset(again)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return last
		}
	}
}
