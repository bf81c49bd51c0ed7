package bake

import (
	"fmt"

	"github.com/bytecodealliance/wasmtime-go/v39"

	"github.com/dormouse-k8s/dormouse/wasmplane/module"
)

// Compile compiles a module ahead of time, for engines as package module makes
// them. It uses all processors and, for the guest program, more than 1 GiB of
// memory.
func Compile(wasm []byte) ([]byte, error) {
	config, err := module.EngineConfig()
	if err != nil {
		return nil, err
	}
	engine := wasmtime.NewEngineWithConfig(config)
	defer engine.Close()
	m, err := wasmtime.NewModule(engine, wasm)
	if err != nil {
		return nil, fmt.Errorf("compiling the module: %w", err)
	}
	defer m.Close()
	b, err := m.Serialize()
	if err != nil {
		return nil, fmt.Errorf("serialising the compiled module: %w", err)
	}
	return b, nil
}
