package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/dormouse-k8s/dormouse/cmd/dormouse/config"
	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/internal/payload"
	"github.com/dormouse-k8s/dormouse/server"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers/options"
	"github.com/dormouse-k8s/dormouse/wasmplane/module"
	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
	"github.com/dormouse-k8s/dormouse/wasmplane/pressure"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
)

// wasmPlane is the Wasm plane as the server sees it.
type wasmPlane struct {
	*plane.Plane
	handler http.Handler
	module  *module.Module
	code    *runtime.Code
}

var _ server.Plane = (*wasmPlane)(nil)

// unloadModule is how long every controller has slept when the module itself leaves memory. To map it again
// takes 2 to 3 ms.
const unloadModule = 30 * time.Second

// newPlane loads the compiled controllers. What it returns has to be closed after it has run.
func newPlane(c *config.Config, files payloadDir, guests []controllers.Declaration) (*wasmPlane, error) {
	file := files.file(payload.Controllers)
	m, err := module.Load(file)
	if err != nil {
		return nil, fmt.Errorf("loading the controllers: %w; install a complete release, or use --controller-mode=native", err)
	}
	code, err := runtime.New(m.Engine, m.Wasmtime, m.Globals)
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("loading the controllers from %s: %w", file, err)
	}
	code.UnloadAfter(unloadModule, m.Map)
	monitor, err := pressure.New()
	if err != nil {
		logrus.Warnf("controllers do not leave when memory is scarce: %v", err)
	}
	p := &wasmPlane{module: m, code: code}
	p.Plane = plane.New(plane.Config{
		Code:         code,
		ModuleName:   strings.TrimSuffix(payload.Controllers, filepath.Ext(payload.Controllers)),
		Digest:       m.Digest,
		Dir:          filepath.Dir(paths.Data(c.DataDir).WasmSnapshots()),
		Guests:       guests,
		IdleTimeout:  c.WasmIdleTimeout,
		MemoryBudget: c.WasmMemoryBudget,
		Pressure:     monitor,
		Log:          logrus.NewEntry(logrus.StandardLogger()),
	})
	p.handler = http.StripPrefix(strings.TrimSuffix(server.PlanePath, "/"), p.Plane)
	return p, nil
}

// Close releases the module.
func (p *wasmPlane) Close() error {
	err := p.code.Close()
	p.module.Close()
	return err
}

// ServeHTTP implements server.Plane.
func (p *wasmPlane) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.handler.ServeHTTP(w, r) }

// Run implements server.Plane.
func (p *wasmPlane) Run(ctx context.Context, host server.Host, ready func()) error {
	return p.Plane.Run(ctx, plane.Host{
		Transport: func(user string) http.RoundTripper { return host.Transport(user, nil) },
		Datastore: plane.Datastore(host.Datastore),
		Native:    host.Native,
		Changes:   host.Changes,
		Setup:     func(name string) (plane.Setup, error) { return setUp(host, name) },
	}, ready)
}

// setUp is what a guest is started with.
func setUp(host server.Host, name string) (plane.Setup, error) {
	o := options.Options{FeatureGates: host.FeatureGates}
	var files map[string]string
	if name == options.Scheduler {
		o.Scheduler = &options.SchedulerOptions{Config: host.Scheduler.Config, UnschedulableSeconds: int64(host.Scheduler.Unschedulable.Seconds())}
	} else {
		o.ControllerManager = host.ControllerManager
		var err error
		if files, err = host.Files(name); err != nil {
			return plane.Setup{}, err
		}
	}
	b, err := json.Marshal(o)
	if err != nil {
		return plane.Setup{}, fmt.Errorf("encoding the options of %s: %w", name, err)
	}
	return plane.Setup{Options: b, Files: files}, nil
}

// guests are the declarations of what runs in Wasm.
func guests(ctx context.Context, c *config.Config, cfg server.Config) ([]controllers.Declaration, error) {
	all := controllers.All()
	for _, name := range c.NativeControllers {
		if !slices.ContainsFunc(all, func(d controllers.Declaration) bool { return d.Name == name }) {
			var known []string
			for _, d := range all {
				known = append(known, d.Name)
			}
			return nil, fmt.Errorf("native-controllers: there is no controller %q; there are %s", name, strings.Join(known, ", "))
		}
	}
	if c.ControllerMode != config.ModeWasm {
		return nil, nil
	}
	names, err := server.Guests(ctx, cfg, c.NativeControllers)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(d controllers.Declaration) bool { return !slices.Contains(names, d.Name) }), nil
}
