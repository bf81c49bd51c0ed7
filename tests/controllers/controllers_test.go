// Package controllers tests the compiled guest program, build/controllers.cwasm:
// every declared controller starts against an API without objects, watches what
// its declaration says, and then sleeps.
package controllers

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	servercontrollers "github.com/dormouse-k8s/dormouse/server/controllers"
	"github.com/dormouse-k8s/dormouse/server/pki"
	"github.com/dormouse-k8s/dormouse/server/scheduler"
	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers/options"
	"github.com/dormouse-k8s/dormouse/wasmplane/module"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
)

const file = "../../build/controllers.cwasm"

func TestEveryControllerStartsAndSleeps(t *testing.T) {
	m, err := module.Load(file)
	if err != nil {
		t.Fatalf("%v; run make build first", err)
	}
	defer m.Close()
	code, err := runtime.New(m.Engine, m.Wasmtime, m.Globals)
	if err != nil {
		t.Fatal(err)
	}
	defer code.Close()
	for _, d := range controllers.All() {
		t.Run(d.Name, func(t *testing.T) { startAndSleep(t, code, d) })
	}
}

func startAndSleep(t *testing.T, code *runtime.Code, d controllers.Declaration) {
	api := &emptyAPI{t: t, mailbox: runtime.NewMailbox(func() {})}
	o, files := setUp(t, d.Name)
	guest, err := code.Instantiate(runtime.Config{Host: api, Mailbox: api.mailbox, Memory: d.MemoryLimit, Run: d.RunLimit, Files: files})
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	start, err := json.Marshal(abi.Start{Controller: d.Name, Options: o, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	api.mailbox.Push(abi.FrameStart, 0, start)
	// Ten minutes of the guest's time pass at once; how often it runs is bounded
	// by its shortest loop, of 100 ms.
	next := time.Duration(-1)
	for range 10_000 {
		if err := guest.Run(); err != nil {
			t.Fatal(err)
		}
		at, ok := guest.NextTimer()
		if next = at; !ok || at > abi.BakeClock+10*time.Minute {
			break
		}
		api.elapsed = max(api.elapsed, at-abi.BakeClock)
	}

	const year = 365 * 24 * time.Hour
	if next >= 0 && next < year && d.TimerSlack == 0 && len(d.TimersFor) == 0 {
		t.Errorf("idle, it has a timer due in %s; neither is slack declared nor what it is for", next-abi.BakeClock-api.elapsed)
	}
	slices.Sort(api.watched)
	want := slices.Sorted(slices.Values(d.Resources))
	if got := slices.Compact(api.watched); !slices.Equal(want, []string{"*"}) && !slices.Equal(got, want) {
		t.Errorf("watches %v, declared are %v", got, want)
	}
	if resident, err := guest.Resident(); err != nil || resident > 10<<20 {
		t.Errorf("idle, %d KiB of memory are its own (%v)", resident>>10, err)
	}
}

// setUp is what a server starts a guest with.
func setUp(t *testing.T, name string) (encoded []byte, files map[string]string) {
	t.Helper()
	data := paths.Data(t.TempDir())
	cluster, err := pki.LoadCluster(data, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	service := netip.MustParsePrefix("10.43.0.0/16")
	if err := cluster.EnsureServer(pki.ClusterNames{ServiceCIDR: service, Domain: "cluster.local"}); err != nil {
		t.Fatal(err)
	}
	m, err := servercontrollers.New(servercontrollers.Config{Data: data, ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: service})
	if err != nil {
		t.Fatal(err)
	}
	var o options.Options
	if name == options.Scheduler {
		s, err := scheduler.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.Configuration(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		o.Scheduler = &options.SchedulerOptions{Config: c.Config, UnschedulableSeconds: int64(c.Unschedulable.Seconds())}
	} else {
		if o.ControllerManager, err = m.Configuration(); err != nil {
			t.Fatal(err)
		}
		if files, err = m.Files(name); err != nil {
			t.Fatal(err)
		}
	}
	if encoded, err = json.Marshal(o); err != nil {
		t.Fatal(err)
	}
	return encoded, files
}

// emptyAPI is an API server that has no objects, as a guest's host.
type emptyAPI struct {
	t       *testing.T
	mailbox *runtime.Mailbox
	elapsed time.Duration // since the guest was started
	watched []string
}

func (a *emptyAPI) Cancel(uint32)                      {}
func (a *emptyAPI) Log(line string)                    { a.t.Log(line) }
func (a *emptyAPI) Linger(time.Duration) time.Duration { return 0 }

func (a *emptyAPI) Clock() (wall, mono time.Duration) {
	return 1_800_000_000*time.Second + a.elapsed, abi.BakeClock + a.elapsed
}

func (a *emptyAPI) Random(b []byte) {
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
}

type object = map[string]any

// kinds are those that discovery offers, by resource: what is declared by name, and
// what defines kinds.
var kinds = func() map[string]string {
	kinds := map[string]string{
		"customresourcedefinitions.apiextensions.k8s.io": "CustomResourceDefinition",
		"apiservices.apiregistration.k8s.io":             "APIService",
	}
	types := resourceTypes()
	for _, d := range controllers.All() {
		for _, r := range slices.AppendSeq(slices.Clone(d.Resources), maps.Keys(d.Wait)) {
			if typ := types[r]; typ != nil {
				kinds[r] = typ.Name()
			}
		}
	}
	return kinds
}()

// Request implements runtime.Host.
func (a *emptyAPI) Request(encoded []byte) uint32 {
	r, err := abi.DecodeRequest(encoded)
	if err != nil {
		a.t.Error(err)
		return abi.ErrFormat
	}
	u, err := url.Parse(r.URL)
	// Even on an empty cluster there is something to make: the bundle of the API
	// server's authority.
	makes := r.Method == http.MethodPost && strings.HasSuffix(r.URL, "/clustertrustbundles")
	if err != nil || r.Method != http.MethodGet && !makes {
		a.t.Errorf("%s %s on an empty cluster", r.Method, r.URL)
		return abi.ErrFormat
	}
	if agent := r.Header.Get("User-Agent"); !strings.HasPrefix(agent, "kube-controller-manager/") && !strings.HasPrefix(agent, "kube-scheduler/") {
		a.t.Errorf("user agent %q would own other fields than upstream's controllers do", agent)
	}
	// /api/v1/pods, /apis/apps/v1/deployments
	parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	resource, version := "", ""
	switch {
	case parts[0] == "api" && len(parts) == 3:
		resource, version = parts[2], parts[1]
	case parts[0] == "apis" && len(parts) == 4:
		resource, version = parts[3]+"."+parts[1], parts[1]+"/"+parts[2]
	default:
		a.discover(r.Stream, u.Path)
		return abi.OK
	}
	kind := kinds[resource]
	if strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata") {
		kind, version = "PartialObjectMetadata", "meta.k8s.io/v1"
	}
	if kind == "" {
		a.t.Errorf("no such resource: %s", u.Path)
	}
	if makes {
		a.reply(r.Stream, object{"kind": kind, "apiVersion": version, "metadata": object{"resourceVersion": "2"}})
		a.mailbox.Push(abi.FrameEnd, r.Stream, nil)
		return abi.OK
	}
	if u.Query().Get("watch") == "" {
		a.reply(r.Stream, object{"kind": kind + "List", "apiVersion": version, "metadata": object{"resourceVersion": "1"}, "items": []object{}})
		a.mailbox.Push(abi.FrameEnd, r.Stream, nil)
		return abi.OK
	}
	a.watched = append(a.watched, resource)
	a.reply(r.Stream, object{"type": "BOOKMARK", "object": object{"kind": kind, "apiVersion": version, "metadata": object{
		"resourceVersion": "1", "annotations": object{"k8s.io/initial-events-end": "true"},
	}}})
	return abi.OK
}

// discover answers requests for API discovery, in its older form.
func (a *emptyAPI) discover(stream uint32, path string) {
	group := func(resource string) string {
		_, g, _ := strings.Cut(resource, ".")
		return g
	}
	switch path {
	case "/api":
		a.reply(stream, object{"kind": "APIVersions", "versions": []string{"v1"}})
	case "/apis":
		var groups []object
		seen := map[string]bool{"": true}
		for resource := range kinds {
			if g := group(resource); !seen[g] {
				seen[g] = true
				v := object{"groupVersion": g + "/v1", "version": "v1"}
				groups = append(groups, object{"name": g, "versions": []object{v}, "preferredVersion": v})
			}
		}
		a.reply(stream, object{"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
	default:
		version := strings.TrimPrefix(strings.TrimPrefix(path, "/apis/"), "/api/")
		var resources []object
		for resource, kind := range kinds {
			if v := strings.TrimPrefix(group(resource)+"/v1", "/"); v == version {
				name, _, _ := strings.Cut(resource, ".")
				resources = append(resources, object{"name": name, "kind": kind, "namespaced": true, "verbs": []string{"get", "list", "watch", "delete"}})
			}
		}
		a.reply(stream, object{"kind": "APIResourceList", "groupVersion": version, "resources": resources})
	}
	a.mailbox.Push(abi.FrameEnd, stream, nil)
}

// reply sends a response head and one JSON value; the body stays open.
func (a *emptyAPI) reply(stream uint32, v object) {
	b, err := json.Marshal(v)
	if err != nil {
		a.t.Error(err)
	}
	head := &abi.Head{Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}}
	a.mailbox.Push(abi.FrameHead, stream, head.Append(nil))
	a.mailbox.Push(abi.FrameBody, stream, append(b, '\n'))
}
