// Package runtimetest compiles guest programs for tests.
package runtimetest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/bytecodealliance/wasmtime-go/v39"

	"github.com/dormouse-k8s/dormouse/wasmplane/module/bake"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
)

// Engine is configured as the product's, but compiles fast instead of well.
func Engine() *wasmtime.Engine {
	config := wasmtime.NewConfig()
	config.SetEpochInterruption(true)
	config.SetCraneliftOptLevel(wasmtime.OptLevelNone)
	return wasmtime.NewEngineWithConfig(config)
}

// Compile builds the guest program in a directory and bakes its image.
func Compile(program string) (*runtime.Code, error) {
	dir, err := os.MkdirTemp("", "dormouse-guest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "guest.wasm")
	build := exec.Command("go", "build", "-buildmode=c-shared", "-o", out, program)
	build.Env = append(build.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if msg, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the test module: %w\n%s", err, msg)
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	wasm, globals, err := bake.ExportGlobals(wasm)
	if err != nil {
		return nil, err
	}
	if wasm, err = bake.Bake(context.Background(), wasm, globals, func(string) {}); err != nil {
		return nil, err
	}
	engine := Engine()
	m, err := wasmtime.NewModule(engine, wasm)
	if err != nil {
		return nil, err
	}
	return runtime.New(engine, m, globals)
}
