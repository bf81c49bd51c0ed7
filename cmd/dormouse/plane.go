package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/dormouse-k8s/dormouse/cmd/dormouse/config"
	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/internal/payload"
	"github.com/dormouse-k8s/dormouse/server"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/module"
	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
	"github.com/dormouse-k8s/dormouse/wasmplane/pressure"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
)

// wasmPlane is the Wasm plane as the server sees it.
type wasmPlane struct {
	*plane.Plane
	handler http.Handler
	cfg     *config.Config
	module  *module.Module
	code    *runtime.Code
}

var _ server.Plane = (*wasmPlane)(nil)

// newPlane loads the compiled controllers. What it returns has to be closed after it has run.
func newPlane(c *config.Config, files payloadDir) (*wasmPlane, error) {
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
	monitor, err := pressure.New()
	if err != nil {
		logrus.Warnf("controllers do not leave when memory is scarce: %v", err)
	}
	p := &wasmPlane{cfg: c, module: m, code: code}
	p.Plane = plane.New(plane.Config{
		Code:         code,
		ModuleName:   strings.TrimSuffix(payload.Controllers, filepath.Ext(payload.Controllers)),
		Digest:       m.Digest,
		Dir:          filepath.Dir(paths.Data(c.DataDir).WasmSnapshots()),
		Guests:       controllers.All(),
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
	options, err := json.Marshal(controllers.Options{
		ClusterCIDR: p.cfg.ClusterCIDR.String(),
		ServiceCIDR: p.cfg.ServiceCIDR.String(),
		RootCA:      string(host.RootCA),
	}.WithDefaults())
	if err != nil {
		return fmt.Errorf("encoding the options of the controllers: %w", err)
	}
	return p.Plane.Run(ctx, plane.Host{
		Transport: func(user string) http.RoundTripper { return host.Transport(user, nil) },
		Datastore: plane.Datastore(host.Datastore),
		Native:    host.Native,
		Options:   options,
	}, ready)
}
