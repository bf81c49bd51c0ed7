package runtime

import (
	"errors"
	"fmt"
	goruntime "runtime"
	"strings"
	"time"

	"github.com/bytecodealliance/wasmtime-go/v39"
	"golang.org/x/sys/unix"
)

const (
	// wasmPage is the unit in which linear memory grows, in bytes.
	wasmPage = 64 << 10

	// maxTable bounds a module's table of functions, in elements of 8 bytes. The
	// controllers have some hundred thousand functions, and Go's tables never grow.
	maxTable = 1 << 20
)

// Host is what an instance asks of the plane. All methods are called while the
// guest runs, on the goroutine that runs it; only Linger's answer may make the
// guest wait.
type Host interface {
	// Request takes over one encoded abi.Request, which is valid only during
	// the call, and returns an errno of package abi.
	Request(encoded []byte) uint32
	// Cancel ends an exchange.
	Cancel(stream uint32)
	// Log takes a line that the guest wrote to its standard output or error.
	Log(line string)
	// Clock reads the wall clock, since the Unix epoch, and the monotonic
	// clock, which runs on through sleep and restarts.
	Clock() (wall, monotonic time.Duration)
	// Random fills b with random bytes.
	Random(b []byte)
	// Linger says how long an idle guest whose next timer is due in next (less
	// than 0: none) waits in place before it is parked.
	Linger(next time.Duration) time.Duration
}

// Config is what an instance is made with.
type Config struct {
	Host    Host
	Mailbox *Mailbox
	// Size is how long the linear memory is at least, in bytes, for an instance that is to be restored. Its globals have any
	// value until they are set. 0 is for one that begins: all of it is as the module has it.
	Size int64
	// Memory bounds the linear memory, in bytes; 0 means no bound.
	Memory int64
	// Run bounds how long the guest may run without going idle, and for how long it
	// may have nothing but timers of its own before it leaves the pump; 0 means a
	// minute.
	Run time.Duration
	// Files are the files that the guest can read, by their absolute path. The map
	// must not change.
	Files map[string]string
}

// Instance is a guest in memory. It belongs to one goroutine at a time.
type Instance struct {
	*slot  // nil: closed
	code   *Code
	config Config
	next   time.Duration // monotonic time of the guest's next timer; less than 0: none
	since  time.Time     // when it was idle last, or began to run
	exited bool          // proc_exit was called
	broken bool          // it ended while it ran
	cpu    time.Duration
	output output
	files  map[uint32]*file // open ones, by descriptor
}

// Instantiate makes a guest from the module's image. It has not run yet, but for a
// start function if its module has one.
func (c *Code) Instantiate(config Config) (*Instance, error) {
	if config.Run == 0 {
		config.Run = time.Minute
	}
	for longest := c.longest.Load(); int64(config.Run) > longest; longest = c.longest.Load() {
		c.longest.CompareAndSwap(longest, int64(config.Run))
	}
	i := &Instance{code: c, config: config, next: -1}
	i.output.log = config.Host.Log
	if s := c.takeSlot(config.Size); s != nil {
		i.enter(s)
	} else if err := i.makeSlot(); err != nil {
		return nil, err
	}
	if err := i.grow(config.Size); err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

// enter makes the slot the guest's.
func (i *Instance) enter(s *slot) {
	i.slot, s.guest = s, i
	memory := int64(-1)
	if i.config.Memory > 0 {
		memory = i.config.Memory
	}
	s.store.Limiter(memory, maxTable, 1, 1, 1)
}

// Close ends the guest and frees its memory.
func (i *Instance) Close() {
	if i.slot != nil {
		i.slot.guest = nil
		i.code.putSlot(i.slot, !i.broken)
		i.slot = nil
	}
}

func (i *Instance) resetDeadline() {
	i.store.SetEpochDeadline(ticks(i.config.Run))
	i.since = time.Now()
}

// Run runs the guest until it is idle and parked. It returns an *Exit if the
// guest is gone, or has left with something unread: it would never read it.
func (i *Instance) Run() error {
	if i.slot == nil {
		return ErrClosed
	}
	i.config.Mailbox.unpark()
	if err := i.call(i.pump); err != nil {
		return err
	}
	if !i.config.Mailbox.mayLeave() {
		return &Exit{Reason: ReasonTrap, Detail: "left the pump without being told to park"}
	}
	return nil
}

// Call runs an export without parameters, for instance abi.InitializeExport. A
// missing one is no error.
func (i *Instance) Call(export string) error {
	if i.slot == nil {
		return ErrClosed
	}
	f := i.instance.GetFunc(i.store, export)
	if f == nil {
		return nil
	}
	return i.call(f)
}

func (i *Instance) call(f *wasmtime.Func) error {
	i.code.ticker.enter()
	defer i.code.ticker.leave()
	i.resetDeadline()
	i.output.forget()
	goruntime.LockOSThread() // the thread's time is the guest's
	defer goruntime.UnlockOSThread()
	i.code.priorities.enter()
	defer i.code.priorities.leave()
	began := threadTime()
	_, err := f.Call(i.store)
	i.cpu += threadTime() - began
	if err == nil {
		return nil
	}
	i.broken = true
	return i.exit(err)
}

// exit tells the classes of ends apart.
func (i *Instance) exit(err error) *Exit {
	i.output.flush()
	var trap *wasmtime.Trap
	if errors.As(err, &trap) {
		if code := trap.Code(); code != nil && *code == wasmtime.Interrupt {
			if ran := time.Since(i.since); ran < i.config.Run/2 {
				return &Exit{Reason: ReasonDeadline, Detail: fmt.Sprintf("interrupted after %s", ran.Round(tick))}
			}
			return &Exit{Reason: ReasonDeadline, Detail: fmt.Sprintf("ran for more than %s without going idle", i.config.Run)}
		}
	}
	said := i.output.cause(i.exited)
	switch {
	case strings.HasPrefix(said, "fatal error: out of memory"), strings.HasPrefix(said, "fatal error: runtime: cannot allocate"):
		return &Exit{Reason: ReasonMemory, Detail: fmt.Sprintf("wanted more than its limit of %d MiB", i.config.Memory>>20)}
	case i.exited && !isFatal(said):
		return &Exit{Reason: ReasonExit, Detail: said}
	case said != "":
		return &Exit{Reason: ReasonTrap, Detail: said}
	}
	return &Exit{Reason: ReasonTrap, Detail: trapCause(err.Error())}
}

// trapCause picks the sentence out of wasmtime's description of a trap, which has
// a backtrace in front and behind.
func trapCause(s string) string {
	if _, cause, ok := strings.Cut(s, "Caused by:\n"); ok {
		s = strings.TrimSpace(cause)
	}
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// CPU is how much processor time the guest has used in this instance, with what the
// host did for it meanwhile.
func (i *Instance) CPU() time.Duration { return i.cpu }

// threadTime is how much processor time this thread has used.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0 // no kernel lacks it
	}
	return time.Duration(t.Nano())
}

// NextTimer is the monotonic time at which the guest wants to run next; ok is
// false if no timer is set. Valid after Run.
func (i *Instance) NextTimer() (at time.Duration, ok bool) { return i.next, i.next >= 0 }

// SetNextTimer sets what NextTimer returns, after a restore.
func (i *Instance) SetNextTimer(at time.Duration, ok bool) {
	i.next = -1
	if ok {
		i.next = at
	}
}

// MemorySize is the size of the linear memory in bytes. Most of it shares the
// pages of the module's image.
func (i *Instance) MemorySize() int64 { return int64(i.memory.DataSize(i.store)) }

// grow makes the linear memory at least size bytes long.
func (i *Instance) grow(size int64) error {
	missing := size - i.MemorySize()
	if missing <= 0 {
		return nil
	}
	if _, err := i.memory.Grow(i.store, uint64((missing+wasmPage-1)/wasmPage)); err != nil {
		return fmt.Errorf("growing linear memory to %d bytes: %w", size, err)
	}
	return nil
}

// Memory is the linear memory itself. It is valid until the guest runs or grows.
func (i *Instance) Memory() []byte { return i.memory.UnsafeData(i.store) }

// Globals returns the values of the mutable globals, in the module's order.
func (i *Instance) Globals() ([]uint64, error) {
	vs := make([]uint64, len(i.code.globals))
	for k, name := range i.code.globals {
		g, err := i.global(name)
		if err != nil {
			return nil, err
		}
		switch v := g.Get(i.store); v.Kind() {
		case wasmtime.KindI32:
			vs[k] = uint64(uint32(v.I32()))
		case wasmtime.KindI64:
			vs[k] = uint64(v.I64())
		default:
			return nil, fmt.Errorf("global %s is neither i32 nor i64", name)
		}
	}
	return vs, nil
}

// SetGlobals sets what Globals returned.
func (i *Instance) SetGlobals(vs []uint64) error {
	if len(vs) != len(i.code.globals) {
		return fmt.Errorf("%d values for %d globals", len(vs), len(i.code.globals))
	}
	for k, name := range i.code.globals {
		g, err := i.global(name)
		if err != nil {
			return err
		}
		v := wasmtime.ValI64(int64(vs[k]))
		if g.Type(i.store).Content().Kind() == wasmtime.KindI32 {
			v = wasmtime.ValI32(int32(uint32(vs[k])))
		}
		if err := g.Set(i.store, v); err != nil {
			return fmt.Errorf("setting global %s: %w", name, err)
		}
	}
	return nil
}

func (i *Instance) global(name string) (*wasmtime.Global, error) {
	e := i.instance.GetExport(i.store, name)
	if e == nil || e.Global() == nil {
		return nil, fmt.Errorf("the module has no global %s", name)
	}
	return e.Global(), nil
}

// output splits what the guest writes into lines and remembers those that may
// explain its end.
type output struct {
	log   func(line string)
	rest  []byte
	fatal string // the first line of a panic or of a fatal error
	last  string
}

// maxLine is where longer lines are broken, in bytes.
const maxLine = 8 << 10

func (o *output) write(b []byte) {
	for _, c := range b {
		if c == '\n' || len(o.rest) >= maxLine {
			o.flush()
		}
		if c != '\n' {
			o.rest = append(o.rest, c)
		}
	}
}

func (o *output) flush() {
	if len(o.rest) == 0 {
		return
	}
	line := string(o.rest)
	o.rest = nil
	o.last = line
	if o.fatal == "" && isFatal(line) {
		o.fatal = line
	}
	o.log(line)
}

// forget drops what was said before.
func (o *output) forget() { o.fatal, o.last = "", "" }

// cause is the line that says best why the guest ended; one that exited in good
// order says it last.
func (o *output) cause(exited bool) string {
	if o.fatal == "" && exited {
		return o.last
	}
	return o.fatal
}

// isFatal recognises how the Go runtime begins its last words.
func isFatal(line string) bool {
	return strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ")
}
