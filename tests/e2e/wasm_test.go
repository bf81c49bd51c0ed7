package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
)

// list is `dormouse wasm list -o json`.
func (w *world) list(t *testing.T) map[string]cluster.Controller {
	t.Helper()
	r := w.run(t, "", "wasm", "list", "-o", "json")
	var answer struct{ Controllers []cluster.Controller }
	if r.code != 0 || r.stderr != "" || json.Unmarshal([]byte(r.stdout), &answer) != nil {
		t.Fatalf("wasm list -o json gives %+v", r)
	}
	byName := map[string]cluster.Controller{}
	for _, c := range answer.Controllers {
		byName[c.Name] = c
	}
	return byName
}

// TestWasmList: all guests are listed, go to sleep when there is nothing to do,
// and say why they were last awake; what runs natively is listed too.
func TestWasmList(t *testing.T) {
	w := theNode(t)
	cluster.Eventually(t, "the controllers do not go to sleep", w.Asleep)
	all := w.list(t)
	for _, name := range cluster.Guests {
		if name == nativeController {
			continue
		}
		c, ok := all[name]
		if !ok {
			t.Errorf("%s is not listed", name)
			continue
		}
		// A guest may have woken since.
		asleep := c.State == "asleep" && c.ResidentBytes == 0 && c.SnapshotBytes > 0
		if !asleep && !slices.Contains([]string{"awake", "warm"}, c.State) || c.LastError != "" || c.Restarts != 0 ||
			!strings.HasPrefix(c.Identity, "system:") || c.Module == "" {
			t.Errorf("%+v", c)
		}
		if c.Wakes > 0 && (c.LastWake == nil || c.LastWakeReason == "") {
			t.Errorf("%s was woken %d times without a reason: %+v", name, c.Wakes, c)
		}
		delete(all, name)
	}
	if len(all) != 1 || all[nativeController].State != "native" {
		t.Errorf("besides the guests there are %+v", all)
	}
	for _, format := range []string{"table", "wide"} {
		r := w.run(t, "", "wasm", "list", "-o", format)
		if lines := strings.Split(r.stdout, "\n"); r.code != 0 || !strings.HasPrefix(lines[0], "NAME ") || len(lines) < len(cluster.Guests) {
			t.Errorf("wasm list -o %s gives %+v", format, r)
		}
	}
}

// TestWasmWakes: an event wakes those whom it concerns, and the reason says which it was.
func TestWasmWakes(t *testing.T) {
	w := theNode(t)
	ns := w.namespace(t)
	cluster.Eventually(t, "the controllers do not go to sleep", w.Asleep)
	before := w.list(t)
	w.kubectl(t, ns, "create", "deployment", "one", "--image="+web1, "--replicas=0")
	cluster.Eventually(t, "the replica set", func(ctx context.Context) error {
		sets, err := w.AppsV1().ReplicaSets(ns).List(ctx, metav1.ListOptions{})
		if err == nil && len(sets.Items) != 1 {
			err = fmt.Errorf("there are %d", len(sets.Items))
		}
		return err
	})
	// Objects of the tests before may still be going, and wake it again.
	after := w.list(t)["deployment-controller"]
	if after.Wakes <= before["deployment-controller"].Wakes || !eventReason.MatchString(after.LastWakeReason) {
		t.Errorf("after the creation of a deployment: %+v", after)
	}
}

// eventReason is the reason of a wake by an event: what happened to which object.
var eventReason = regexp.MustCompile(`^(ADDED|MODIFIED|DELETED) (deployments\.apps|replicasets\.apps|pods) [a-z-]+/[a-z0-9-]+$`)

// TestWasmCommands: single controllers can be looked at, woken and put to sleep,
// and what is impossible is said in a line.
func TestWasmCommands(t *testing.T) {
	w := theNode(t)
	const name = "node-ipam-controller"
	cluster.Eventually(t, "the controllers do not go to sleep", w.Asleep)
	var detail struct {
		cluster.Controller
		Streams     []struct{ URL, Revision string }
		MemoryLimit int64
	}
	r := w.run(t, "", "wasm", "inspect", name)
	if err := json.Unmarshal([]byte(r.stdout), &detail); r.code != 0 || err != nil || detail.Name != name || len(detail.Streams) == 0 || detail.MemoryLimit == 0 {
		t.Errorf("inspect: %v: %+v", err, r)
	}
	wakes := detail.Wakes
	if r = w.run(t, "", "wasm", "wake", name); r.code != 0 || r.stderr != "" {
		t.Errorf("wake: %+v", r)
	}
	if c := w.list(t)[name]; c.Wakes <= wakes || c.LastWakeReason == "" {
		t.Errorf("after wake: %+v", c)
	}
	// Something may just be going on.
	cluster.Eventually(t, "evict", func(context.Context) error {
		if r := w.run(t, "", "wasm", "evict", name); r.code != 0 || r.stderr != "" {
			return fmt.Errorf("%+v", r)
		}
		if c := w.list(t)[name]; c.State != "asleep" || c.ResidentBytes != 0 {
			return fmt.Errorf("after evict: %+v", c)
		}
		return nil
	})
	if r = w.run(t, "", "wasm", "inspect", nativeController); r.code != 0 || !strings.Contains(r.stdout, "native") {
		t.Errorf("inspect of what runs natively: %+v", r)
	}

	for _, args := range [][]string{
		{"inspect", "no-such-controller"}, {"wake", "no-such-controller"}, {"evict", "no-such-controller"},
		{"wake", nativeController}, {"evict", nativeController},
	} {
		r := w.run(t, "", append([]string{"wasm"}, args...)...)
		if r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, args[1]) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("wasm %v: %+v, want exit code 1 and one line with the name", args, r)
		}
	}
}

// TestStorageVersionMigration: objects are written anew.
func TestStorageVersionMigration(t *testing.T) {
	w := theNode(t)
	ns := w.namespace(t)
	w.apply(t, ns, `
apiVersion: storagemigration.k8s.io/v1
kind: StorageVersionMigration
metadata: {name: `+ns+`}
spec: {resource: {group: "", resource: configmaps}}
`)
	w.kubectl(t, ns, "wait", "--for=condition=Succeeded", "--timeout=2m", "storageversionmigration/"+ns)
	w.kubectl(t, ns, "delete", "storageversionmigration", ns)
}

// TestMetrics: the plane's metrics are among the API server's.
func TestMetrics(t *testing.T) {
	w := theNode(t)
	code, body, err := w.Request(t.Context(), http.MethodGet, "/metrics")
	if err != nil || code != http.StatusOK {
		t.Fatalf("status %d, %v", code, err)
	}
	const some = `\{controller="deployment-controller"[^}]*\} \d`
	for _, sample := range []string{
		`dormouse_wasm_wakes_total\{controller="deployment-controller",reason="(event|start|timer|command)"\} \d`,
		`dormouse_wasm_wake_seconds_bucket\{controller="deployment-controller",le="0.025"\} \d`,
		`dormouse_wasm_save_seconds_bucket\{le="0.025"\} \d`,
		`dormouse_wasm_snapshot_bytes` + some,
		`dormouse_wasm_resident_bytes` + some,
		`dormouse_wasm_snapshot_written_bytes_total \d`,
		`dormouse_wasm_state` + some,
	} {
		if !regexp.MustCompile(`(?m)^` + sample).Match(body) {
			t.Errorf("no sample %s", sample)
		}
	}
	// A counter that never counted has no samples, and nothing should have failed.
	if bytes.Contains(body, []byte("\ndormouse_wasm_restarts_total{")) {
		t.Error("a guest was restarted")
	}
}

// TestNative: with the controllers in the process instead of in Wasm, all that does not ask about Wasm is the same. It
// ends the node of the other tests.
func TestNative(t *testing.T) {
	swap := func(to string) {
		if err := stopNode(); err != nil {
			t.Fatal(err)
		}
		mode = to
	}
	before := mode
	swap("native")
	defer swap(before)
	for name, c := range theNode(t).list(t) {
		if c.State != "native" {
			t.Errorf("%s is %s", name, c.State)
		}
	}
	for name, test := range map[string]func(*testing.T){
		"BrokenFiles": TestBrokenFiles, "Deployment": TestDeployment, "Service": TestService,
		"GarbageCollection": TestGarbageCollection, "Namespace": TestNamespace, "Node": TestNode,
		"TaintEvicts": TestTaintEvicts, "LogsAndExec": TestLogsAndExec, "PortForward": TestPortForward,
		"Resources": TestResources, "Restart": TestRestart, "StorageVersionMigration": TestStorageVersionMigration,
	} {
		t.Run(name, test)
	}
}
