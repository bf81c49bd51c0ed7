// Package runtime runs guests: it instantiates a compiled module with wasmtime,
// answers its WASI calls, holds it to its limits, and gives access to what a
// snapshot consists of, the pages of its linear memory that differ from the
// module's image and its globals.
//
// A guest reaches nothing but the functions here: no files, no sockets, no
// environment. Time is the plane's, so that it runs on while the guest sleeps.
package runtime

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bytecodealliance/wasmtime-go/v39"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

// tick is the resolution of run-time limits.
const tick = 50 * time.Millisecond

// Code is a module ready to be instantiated any number of times. Its methods are
// safe for concurrent use.
type Code struct {
	engine  *wasmtime.Engine
	linker  *wasmtime.Linker
	globals []string
	pagemap *os.File // /proc/self/pagemap
	ticker  ticker
	longest atomic.Int64 // Config.Run of the instance that may run for longest

	priorities priorities

	slots   slots
	batches sync.Pool // of *batch, for Restore

	mu        sync.Mutex
	module    *wasmtime.Module // nil while it is unloaded
	instances int
	unloading *time.Timer // nil: it stays
	idle      time.Duration
	load      func() (*wasmtime.Module, error)
}

// New prepares module, which belongs to engine. globals names its exports that
// are mutable globals, in a fixed order. It fails if the module does not speak
// this version of the wire format or asks the host for something unknown.
func New(engine *wasmtime.Engine, module *wasmtime.Module, globals []string) (*Code, error) {
	if err := checkExports(module); err != nil {
		return nil, err
	}
	priorities, err := newPriorities()
	if err != nil {
		return nil, err
	}
	linker := wasmtime.NewLinker(engine)
	if err := link(linker, module); err != nil {
		linker.Close()
		return nil, err
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		linker.Close()
		return nil, fmt.Errorf("opening the page map that snapshots are taken from: %w", err)
	}
	c := &Code{engine: engine, module: module, linker: linker, globals: globals, pagemap: pagemap, priorities: priorities}
	c.ticker.start(engine.IncrementEpoch)
	return c, nil
}

// UnloadAfter has the module leave memory when there has been no instance for the
// given time. load brings it back for the next one: the same module, for the same
// engine. What wasmtime keeps of a module with 100,000 functions are some megabytes,
// and the pages of its file that are mapped. It is called before the first instance.
func (c *Code) UnloadAfter(idle time.Duration, load func() (*wasmtime.Module, error)) {
	c.idle, c.load = idle, load
	c.unloading = time.AfterFunc(idle, c.unload)
}

func (c *Code) unload() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.instances > 0 || c.module == nil {
		return
	}
	c.dropSlots()
	if c.slots.pristine != nil {
		c.slots.pristine.store.Close()
		c.slots.pristine, c.slots.image = nil, nil
	}
	c.module.Close()
	c.module = nil
}

// acquire returns the module for an instance, which has to release it.
func (c *Code) acquire() (*wasmtime.Module, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.module == nil {
		m, err := c.load()
		if err != nil {
			return nil, fmt.Errorf("loading the module again: %w", err)
		}
		c.module = m
	}
	c.instances++
	return c.module, nil
}

func (c *Code) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave()
}

// leave is release with c.mu held.
func (c *Code) leave() {
	if c.instances--; c.instances == 0 && c.unloading != nil {
		c.unloading.Reset(c.idle)
	}
}

// Close releases the module. All instances must have been closed.
func (c *Code) Close() error {
	if c.unloading != nil {
		c.unloading.Stop()
	}
	c.slots.making.Wait()
	c.ticker.stop()
	c.unload()
	c.linker.Close()
	return c.pagemap.Close()
}

// Interrupt ends every guest that runs at this moment, as if its time were up. One
// that is idle is not affected.
func (c *Code) Interrupt() {
	for range ticks(time.Duration(c.longest.Load())) {
		c.engine.IncrementEpoch()
	}
}

// ticks are how many steps of the epoch a guest may run for.
func ticks(run time.Duration) uint64 { return uint64(run/tick) + 1 }

func checkExports(module *wasmtime.Module) error {
	have := map[string]bool{}
	for _, e := range module.Exports() {
		have[e.Name()] = true
	}
	if !have[abi.VersionExport] {
		return fmt.Errorf("the module does not speak version %d of the wire format (no export %s)", abi.Version, abi.VersionExport)
	}
	for _, name := range []string{"memory", abi.PumpExport} {
		if !have[name] {
			return fmt.Errorf("the module has no export %q", name)
		}
	}
	return nil
}

// ticker advances the engine's epoch while at least one guest runs, so that an
// idle plane has no timer.
type ticker struct {
	mu      sync.Mutex
	running int
	wake    chan struct{}
	done    chan struct{}
}

func (t *ticker) start(advance func()) {
	t.wake, t.done = make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(t.done)
		clock := time.NewTicker(tick)
		defer clock.Stop()
		for range t.wake {
			clock.Reset(tick)
			for t.busy() {
				<-clock.C
				advance()
			}
			clock.Stop()
		}
	}()
}

func (t *ticker) stop() {
	close(t.wake)
	<-t.done
}

func (t *ticker) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running > 0
}

func (t *ticker) enter() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running++; t.running == 1 {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

func (t *ticker) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
}

// Reason classes of an [Exit].
const (
	ReasonTrap     = "trap"     // a WebAssembly trap, or a panic in the guest
	ReasonDeadline = "deadline" // ran too long without going idle
	ReasonMemory   = "memory"   // wanted more memory than its limit
	ReasonExit     = "exit"     // the controller ended by itself
)

// Exit says why a guest is gone. The instance can only be closed.
type Exit struct {
	Reason string // one of the Reason… constants
	Detail string // what it said last
}

func (e *Exit) Error() string { return e.Reason + ": " + e.Detail }

// ErrClosed is returned by Run and Call of a closed instance.
var ErrClosed = errors.New("the instance is closed")
