package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/client-go/rest"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/manifests"
)

// cluster is as much of an API server as the package speaks to.
type cluster struct {
	url string
	mu  sync.Mutex
	// served is what there is, by path of the group and version.
	served map[string]string
	// refused are paths of objects that are refused, and why.
	refused map[string]string
	// A kind that has been defined is served after delay questions; pending are those still to come.
	delay, pending int
	patches        []string
	reviews        []string
	// happened tells of each request that changes something.
	happened chan string
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{
		delay:    3,
		refused:  map[string]string{},
		happened: make(chan string, 1000),
		served: map[string]string{
			"/api/v1":                            `{"resources":[{"name":"configmaps","namespaced":true,"kind":"ConfigMap"},{"name":"namespaces","kind":"Namespace"},{"name":"namespaces/status","kind":"Namespace"}]}`,
			"/apis/rbac.authorization.k8s.io/v1": `{"resources":[{"name":"clusterroles","kind":"ClusterRole"},{"name":"clusterrolebindings","kind":"ClusterRoleBinding"}]}`,
			"/apis/apiextensions.k8s.io/v1":      `{"resources":[{"name":"customresourcedefinitions","kind":"CustomResourceDefinition"}]}`,
		},
	}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fail := func(code int, reason, message string) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
	}
	w.Header().Set("Content-Type", "application/json")
	var body bytes.Buffer
	if _, err := body.ReadFrom(req.Body); err != nil {
		fail(http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	list, known := c.served[req.URL.Path]
	switch {
	case req.Method == http.MethodGet && known:
		_, _ = w.Write([]byte(list))
	case req.Method == http.MethodGet && req.URL.Path == "/apis/example.com/v1" && c.pending > 0:
		if c.pending--; c.pending == 0 {
			c.served[req.URL.Path] = `{"resources":[{"name":"widgets","kind":"Widget"}]}`
		}
		fail(http.StatusNotFound, "NotFound", "the server could not find the requested resource")
	case req.Method == http.MethodPatch && c.refused[req.URL.Path] != "":
		c.happened <- "refused " + req.URL.Path
		fail(http.StatusUnprocessableEntity, "Invalid", c.refused[req.URL.Path])
	case req.Method == http.MethodPatch:
		if q := req.URL.Query(); q.Get("fieldManager") != "dormouse" || q.Get("force") != "true" || req.Header.Get("Content-Type") != "application/apply-patch+yaml" {
			fail(http.StatusBadRequest, "BadRequest", "not the apply we expect: "+req.URL.String())
			return
		}
		c.patches = append(c.patches, req.URL.Path)
		if strings.Contains(req.URL.Path, "customresourcedefinitions") && c.pending == 0 {
			c.pending = c.delay
		}
		c.happened <- req.URL.Path
		_, _ = w.Write(body.Bytes())
	case req.Method == http.MethodPost && req.URL.Path == "/apis/authorization.k8s.io/v1/subjectaccessreviews":
		var review struct {
			Spec   map[string]any  `json:"spec"`
			Status map[string]bool `json:"status"`
		}
		if err := json.Unmarshal(body.Bytes(), &review); err != nil {
			fail(http.StatusBadRequest, "BadRequest", err.Error())
			return
		}
		c.reviews = append(c.reviews, review.Spec["user"].(string))
		// The authorizer learns of it a little later.
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "status": map[string]bool{"allowed": len(c.reviews) > 2}})
	default:
		fail(http.StatusNotFound, "NotFound", "the server could not find the requested resource")
	}
}

// expect waits for the next change, and for it to be what.
func (c *cluster) expect(t *testing.T, what string) {
	t.Helper()
	select {
	case got := <-c.happened:
		if got != what {
			t.Fatalf("got %s, want %s", got, what)
		}
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
}

func (c *cluster) refuse(path, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[path] = why
}

// run runs the package on c and a directory, which it returns, until the test ends. It returns when
// ready has been called.
func run(t *testing.T, c *cluster, embedded fs.FS, prepare func(dir string)) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "manifests")
	if prepare != nil {
		prepare(dir)
	}
	client := &rest.Config{Host: c.url, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
	ready, done := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- Run(ctx, Config{Client: client, Embedded: embedded, Dir: dir}, func() { close(ready) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case <-time.After(patience):
		t.Fatal("never ready")
	}
	return dir
}

// logged collects what is logged.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func (l *logged) Levels() []logrus.Level { return logrus.AllLevels }

func (l *logged) Fire(e *logrus.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, e.Level.String()+" "+e.Message)
	return nil
}

// about returns the warnings that mention what.
func (l *logged) about(what string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.lines), func(line string) bool {
		return !strings.HasPrefix(line, "warning") || !strings.Contains(line, what)
	})
}

func capture(t *testing.T) *logged {
	l := &logged{}
	old := logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	t.Cleanup(func() { logrus.StandardLogger().ReplaceHooks(old) })
	logrus.AddHook(l)
	return l
}

func configMap(name string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + "}\n"
}

const inDefault = "/api/v1/namespaces/default/configmaps/"

var nothing = fstest.MapFS{}

func TestEmbeddedManifestsComeFirst(t *testing.T) {
	c := newCluster(t)
	run(t, c, manifests.FS, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, account := range []string{"service-account-controller", "root-ca-cert-publisher", "node-controller"} {
		for _, resource := range []string{"clusterroles", "clusterrolebindings"} {
			path := "/apis/rbac.authorization.k8s.io/v1/" + resource + "/system:dormouse:controller:" + account
			if !slices.Contains(c.patches, path) {
				t.Errorf("ready before %s is applied", path)
			}
		}
		if user := "system:serviceaccount:kube-system:" + account; !slices.Contains(c.reviews, user) {
			t.Errorf("ready before it is known that %s may read", user)
		}
	}
}

// TestRefusedEmbeddedManifestsHoldNothingUp: a cluster whose admission webhook is gone has to start.
func TestRefusedEmbeddedManifestsHoldNothingUp(t *testing.T) {
	c, log := newCluster(t), capture(t)
	c.refuse(inDefault+"ours", "by a webhook")
	dir := run(t, c, fstest.MapFS{"x/ours.yaml": {Data: []byte(configMap("ours"))}}, nil)
	c.expect(t, "refused "+inDefault+"ours")
	if got := log.about("by a webhook"); len(got) != 1 || !strings.Contains(got[0], "x/ours.yaml: ConfigMap ours: ") {
		t.Errorf("logged %q", got)
	}
	c.refuse(inDefault+"ours", "")
	write(t, filepath.Join(dir, "a.yaml"), configMap("a"))
	for seen := ""; seen != inDefault+"ours"; {
		select {
		case seen = <-c.happened:
		case <-time.After(patience):
			t.Fatal("not tried again")
		}
	}
}

func TestDirectoryIsApplied(t *testing.T) {
	c := newCluster(t)
	dir := run(t, c, nothing, func(dir string) {
		write(t, filepath.Join(dir, "a.yaml"), configMap("a"))
		write(t, filepath.Join(dir, "b.yaml"), configMap("b"))
		write(t, filepath.Join(dir, "b.yaml.skip"), "")
		write(t, filepath.Join(dir, "sub/c.json"), `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c","namespace":"ns"}}`)
		write(t, filepath.Join(dir, "sub/ns.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns}\n")
	})
	c.expect(t, inDefault+"a")
	c.expect(t, "/api/v1/namespaces/ns/configmaps/c")
	c.expect(t, "/api/v1/namespaces/ns")

	write(t, filepath.Join(dir, "new.yaml"), configMap("new"))
	c.expect(t, inDefault+"new")
	write(t, filepath.Join(dir, "a.yaml"), configMap("a")+"data: {x: z}\n")
	c.expect(t, inDefault+"a")
	if err := os.Remove(filepath.Join(dir, "b.yaml.skip")); err != nil {
		t.Fatal(err)
	}
	c.expect(t, inDefault+"b")

	// What goes, or is written again as it was, changes nothing. The last file shows that it has been seen.
	if err := os.Remove(filepath.Join(dir, "new.yaml")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "b.yaml"), configMap("b"))
	write(t, filepath.Join(dir, "last.yaml"), configMap("last"))
	c.expect(t, inDefault+"last")
}

func TestBrokenFilesStopNothing(t *testing.T) {
	c, log := newCluster(t), capture(t)
	c.refuse(inDefault+"refused", "metadata.name: not that one")
	dir := run(t, c, nothing, func(dir string) {
		write(t, filepath.Join(dir, "a.yaml"), configMap("a")+"---\nkind: [\n")
		write(t, filepath.Join(dir, "b.yaml"), configMap("refused")+"---\n"+configMap("b"))
		write(t, filepath.Join(dir, "c.yaml"), configMap("c"))
	})
	c.expect(t, "refused "+inDefault+"refused")
	c.expect(t, inDefault+"b")
	c.expect(t, inDefault+"c")
	// The refused one is tried again, and said to be refused once; the broken one waits.
	c.expect(t, "refused "+inDefault+"refused")
	c.expect(t, inDefault+"b")
	c.expect(t, "refused "+inDefault+"refused")
	c.expect(t, inDefault+"b")
	for name, want := range map[string]string{
		"a.yaml": "a.yaml: ignored until it changes: document 2: error converting YAML to JSON: yaml: line ",
		"b.yaml": "b.yaml: ConfigMap refused: metadata.name: not that one",
	} {
		if got := log.about(name); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("logged %q, want %q once", got, want)
		}
	}
	write(t, filepath.Join(dir, "a.yaml"), configMap("a"))
	for seen := ""; seen != inDefault+"a"; {
		select {
		case seen = <-c.happened:
		case <-time.After(patience):
			t.Fatal("mended, but not applied")
		}
	}
}

const widgets = `
apiVersion: example.com/v1
kind: Widget
metadata: {name: w}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec: {group: example.com, names: {kind: Widget}}
`

// TestKindDefinedInTheSameFile: it is served a moment later, and nobody needs to be told.
func TestKindDefinedInTheSameFile(t *testing.T) {
	c, log := newCluster(t), capture(t)
	run(t, c, nothing, func(dir string) { write(t, filepath.Join(dir, "widgets.yaml"), widgets) })
	c.expect(t, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.example.com")
	c.expect(t, "/apis/example.com/v1/widgets/w")
	if got := log.about("widgets"); len(got) != 0 {
		t.Errorf("logged %q", got)
	}
}

// TestKindDefinedByOthers: it is applied once somebody has defined its kind.
func TestKindDefinedByOthers(t *testing.T) {
	c, log := newCluster(t), capture(t)
	c.delay = 1
	instance, definition, _ := strings.Cut(widgets, "---")
	dir := run(t, c, nothing, func(dir string) { write(t, filepath.Join(dir, "w.yaml"), instance) })
	write(t, filepath.Join(dir, "x.yaml"), definition)
	c.expect(t, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.example.com")
	c.expect(t, "/apis/example.com/v1/widgets/w")
	if got := log.about("w.yaml"); len(got) != 1 || !strings.Contains(got[0], `Widget w: no matches for kind "Widget" in version "example.com/v1"`) {
		t.Errorf("logged %q", got)
	}
}

// TestRetriesSlowDown: what keeps failing costs next to nothing.
func TestRetriesSlowDown(t *testing.T) {
	backoff := retries
	var pauses []time.Duration
	for range 15 {
		pauses = append(pauses, backoff.Step())
	}
	if !slices.IsSorted(pauses) || pauses[0] > time.Second || pauses[14] != retries.Cap {
		t.Errorf("got %v", pauses)
	}
}

func TestDirectoryIsMadePrivate(t *testing.T) {
	dir := run(t, newCluster(t), nothing, nil)
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != paths.ModePrivateDir {
		t.Errorf("got %v, %v", info, err)
	}
}

// TestEmbeddedManifests: those of the program itself can be read.
func TestEmbeddedManifests(t *testing.T) {
	d, err := newDeployer(Config{Client: &rest.Config{Host: "http://127.0.0.1:1"}, Embedded: manifests.FS})
	if err != nil {
		t.Fatal(err)
	}
	if len(d.embedded) == 0 {
		t.Error("there are none")
	}
	for _, m := range d.embedded {
		if _, err := decode(m.content); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}
