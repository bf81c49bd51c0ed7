package bake

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/bytecodealliance/wasmtime-go/v39"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
)

// wasmPage is the unit of linear memory, hostPage that of copying on write, in
// bytes.
const (
	wasmPage = 64 << 10
	hostPage = 4 << 10
)

// globalPrefix begins the names under which globals are exported.
const globalPrefix = "__g"

// ExportGlobals returns the module with every mutable global exported, and their
// names. Custom sections are dropped.
func ExportGlobals(wasm []byte) ([]byte, []string, error) {
	m, err := parse(wasm)
	if err != nil {
		return nil, nil, err
	}
	m.remove(sectionCustom)
	before, err := m.imported(kindGlobal)
	if err != nil {
		return nil, nil, err
	}
	if before > 0 {
		return nil, nil, errors.New("the module imports globals, which a snapshot cannot hold")
	}
	globals, err := m.globals()
	if err != nil {
		return nil, nil, err
	}
	exports, err := m.exports()
	if err != nil {
		return nil, nil, err
	}
	s := m.find(sectionExport)
	if s == nil {
		return nil, nil, errors.New("the module exports nothing")
	}
	var names []string
	for i, g := range globals {
		if !g.mutable {
			continue
		}
		if g.typ != typeI32 && g.typ != typeI64 {
			return nil, nil, fmt.Errorf("global %d has type %#x; only integers can be saved", i, g.typ)
		}
		name := fmt.Sprint(globalPrefix, i)
		if slices.ContainsFunc(exports, func(e export) bool { return e.name == name }) {
			return nil, nil, fmt.Errorf("the module exports %s already", name)
		}
		names = append(names, name)
		exports = append(exports, export{name, kindGlobal, uint32(i)})
	}
	s.body = encodeExports(exports)
	return m.encode(), names, nil
}

// Bake runs the initialisation of a module with exported globals and returns
// the module as it is afterwards: its memory and globals start with what the
// initialisation left there, and the exports that did it are gone. log receives
// what the program writes meanwhile.
//
// The image is the same for every guest, and with it the state of the random
// number generators and hash seeds: a guest has to reseed what must differ.
// Both clocks stand at abi.BakeClock and random numbers come from a fixed seed,
// so that equal programs give equal images.
func Bake(ctx context.Context, wasm []byte, globals []string, log func(string)) ([]byte, error) {
	memory, values, err := initialise(ctx, wasm, globals, log)
	if err != nil {
		return nil, fmt.Errorf("initialising the guest program: %w", err)
	}
	return replaceState(wasm, memory, values)
}

func initialise(ctx context.Context, wasm []byte, globals []string, log func(string)) ([]byte, []uint64, error) {
	config := wasmtime.NewConfig()
	config.SetEpochInterruption(true)
	config.SetCraneliftOptLevel(wasmtime.OptLevelNone) // this code runs for a moment
	engine := wasmtime.NewEngineWithConfig(config)
	defer engine.Close()
	module, err := wasmtime.NewModule(engine, wasm)
	if err != nil {
		return nil, nil, err
	}
	code, err := runtime.New(engine, module, globals)
	if err != nil {
		return nil, nil, err
	}
	defer code.Close()
	host := &bakeHost{random: rand.NewChaCha8([32]byte{}), log: log}
	instance, err := code.Instantiate(runtime.Config{Host: host, Mailbox: runtime.NewMailbox(func() {}), Run: 10 * time.Minute})
	if err != nil {
		return nil, nil, err
	}
	defer instance.Close()
	for _, export := range []string{abi.InitializeExport, abi.BakeExport} {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if err := instance.Call(export); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", export, err)
		}
	}
	if host.asked {
		return nil, nil, errors.New("it makes requests while it initialises")
	}
	values, err := instance.Globals()
	if err != nil {
		return nil, nil, err
	}
	return bytes.Clone(instance.Memory()), values, nil
}

// bakeHost is the surroundings in which a program initialises.
type bakeHost struct {
	random *rand.ChaCha8
	log    func(string)
	asked  bool
}

func (h *bakeHost) Request([]byte) uint32 {
	h.asked = true
	return abi.ErrLimit
}

func (h *bakeHost) Cancel(uint32)                      {}
func (h *bakeHost) Log(line string)                    { h.log(line) }
func (h *bakeHost) Clock() (wall, mono time.Duration)  { return abi.BakeClock, abi.BakeClock }
func (h *bakeHost) Random(b []byte)                    { _, _ = h.random.Read(b) }
func (h *bakeHost) Linger(time.Duration) time.Duration { return 0 }

// replaceState returns the module with that memory and those values of its
// mutable globals to start with.
func replaceState(wasm, memory []byte, values []uint64) ([]byte, error) {
	m, err := parse(wasm)
	if err != nil {
		return nil, err
	}
	if m.find(sectionDataCount) != nil {
		return nil, errors.New("the module may copy data segments while it runs")
	}
	if len(memory)%wasmPage != 0 {
		return nil, fmt.Errorf("a memory of %d bytes, which is no whole number of pages", len(memory))
	}
	l, err := m.memory()
	if err != nil {
		return nil, err
	}
	l.min = uint64(len(memory) / wasmPage)
	m.find(sectionMemory).body = encodeMemory(l)

	globals, err := m.globals()
	if err != nil {
		return nil, err
	}
	for i := range globals {
		g := &globals[i]
		if !g.mutable {
			continue
		}
		if len(values) == 0 {
			return nil, errors.New("fewer values than mutable globals")
		}
		if g.typ == typeI32 {
			g.init = appendSleb([]byte{opI32Const}, int64(int32(uint32(values[0]))))
		} else {
			g.init = appendSleb([]byte{opI64Const}, int64(values[0]))
		}
		g.init = append(g.init, opEnd)
		values = values[1:]
	}
	if len(values) > 0 {
		return nil, errors.New("more values than mutable globals")
	}
	if s := m.find(sectionGlobal); s != nil {
		s.body = encodeGlobals(globals)
	}

	exports, err := m.exports()
	if err != nil {
		return nil, err
	}
	exports = slices.DeleteFunc(exports, func(e export) bool {
		return e.name == abi.InitializeExport || e.name == abi.BakeExport
	})
	if s := m.find(sectionExport); s != nil {
		s.body = encodeExports(exports)
	}

	m.remove(sectionStart, sectionData)
	m.sections = append(m.sections, section{sectionData, dataSegments(memory)})
	return m.encode(), nil
}

// dataSegments is a data section that makes memory: one active segment for each
// run of host pages that are not zero.
func dataSegments(memory []byte) []byte {
	var body []byte
	count := 0
	for start := 0; start < len(memory); {
		if isZero(memory[start : start+hostPage]) {
			start += hostPage
			continue
		}
		end := start + hostPage
		for end < len(memory) && !isZero(memory[end:end+hostPage]) {
			end += hostPage
		}
		body = append(body, 0, opI32Const)
		body = appendSleb(body, int64(int32(uint32(start))))
		body = append(body, opEnd)
		body = appendBytes(body, memory[start:end])
		count++
		start = end
	}
	return append(binary.AppendUvarint(nil, uint64(count)), body...)
}

var zeroPage [hostPage]byte

func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:]) }

// Pages is the size of the memory that the module starts with, in WebAssembly
// pages.
func Pages(wasm []byte) (uint64, error) {
	m, err := parse(wasm)
	if err != nil {
		return 0, err
	}
	l, err := m.memory()
	return l.min, err
}
