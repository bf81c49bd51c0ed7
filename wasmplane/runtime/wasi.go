package runtime

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/bytecodealliance/wasmtime-go/v39"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

// WASI preview 1, as far as a Go program asks for it. Names, layouts and errno
// values: https://github.com/WebAssembly/WASI/blob/main/legacy/preview1/docs.md
const wasi = "wasi_snapshot_preview1"

const (
	errnoSuccess = 0
	errnoAgain   = 6
	errnoBadf    = 8
	errnoFault   = 21
	errnoNosys   = 52
)

const (
	clockRealtime  = 0
	clockMonotonic = 1

	filetypeUnknown         = 0
	filetypeCharacterDevice = 2
	fdflagNonblock          = 4

	eventtypeClock  = 0
	eventtypeFdRead = 1

	subscriptionSize = 48
	eventSize        = 32
	iovecSize        = 8
	maxIovecs        = 1024 // as Linux has it

	// maxWrite is how much of a write is taken at once, in bytes, as a pipe of Linux
	// does. A guest's deadline does not count while the host works for it, and a
	// thousand buffers may all be the whole memory.
	maxWrite = 64 << 10
)

// call is one call from the guest: its instance and the integer arguments.
type call struct {
	*Instance
	args []wasmtime.Val
}

func (c call) u32(n int) uint32 { return uint32(c.args[n].I32()) }

// hostFunc is what the host offers under a name. call answers with an errno, or
// ends the guest with a trap.
type hostFunc struct {
	params string // a letter each: i is an i32, I an i64
	call   func(c call) (uint32, *wasmtime.Trap)
}

// errno makes a hostFunc of a function that never traps.
func errno(params string, f func(c call) uint32) hostFunc {
	return hostFunc{params, func(c call) (uint32, *wasmtime.Trap) { return f(c), nil }}
}

var hostFuncs = map[string]map[string]hostFunc{
	wasi: {
		"args_sizes_get":      errno("ii", func(c call) uint32 { return c.sizes(arguments) }),
		"args_get":            errno("ii", func(c call) uint32 { return c.strings(arguments) }),
		"environ_sizes_get":   errno("ii", func(c call) uint32 { return c.sizes(nil) }),
		"environ_get":         errno("ii", func(c call) uint32 { return c.strings(nil) }),
		"clock_time_get":      errno("iIi", clockTimeGet),
		"random_get":          errno("ii", randomGet),
		"fd_fdstat_get":       errno("ii", fdFdstatGet),
		"fd_fdstat_set_flags": errno("ii", func(call) uint32 { return errnoSuccess }),
		"fd_prestat_get":      errno("ii", fdPrestatGet),
		"fd_prestat_dir_name": errno("iii", fdPrestatDirName),
		"path_open":           errno("iiiiiIIii", pathOpen),
		"fd_filestat_get":     errno("ii", fdFilestatGet),
		"path_filestat_get":   errno("iiiii", pathFilestatGet),
		"fd_close":            errno("i", fdClose),
		"fd_read":             errno("iiii", fdRead),
		"fd_write":            errno("iiii", fdWrite),
		"poll_oneoff":         errno("iiii", pollOneoff),
		"sched_yield":         errno("", func(call) uint32 { return errnoSuccess }),
		"proc_exit":           {"i", procExit},
	},
	abi.Module: {
		abi.RequestImport: errno("ii", request),
		abi.CancelImport:  errno("i", cancel),
	},
}

// signature writes a function's type as hostFunc.params does. ok is false if it
// returns something else than an errno.
func signature(ty *wasmtime.FuncType) (params string, ok bool) {
	for _, p := range ty.Params() {
		switch p.Kind() {
		case wasmtime.KindI32:
			params += "i"
		case wasmtime.KindI64:
			params += "I"
		default:
			params += "?"
		}
	}
	results := ty.Results()
	return params, len(results) == 0 || len(results) == 1 && results[0].Kind() == wasmtime.KindI32
}

// link defines what module imports. WASI functions that are not offered answer
// ENOSYS; anything else unknown is an error, and so is a function of another type
// than the host's.
func link(linker *wasmtime.Linker, module *wasmtime.Module) error {
	defined := map[[2]string]bool{} // Go imports some functions more than once
	for _, imp := range module.Imports() {
		name := ""
		if imp.Name() != nil {
			name = *imp.Name()
		}
		if defined[[2]string{imp.Module(), name}] {
			continue
		}
		defined[[2]string{imp.Module(), name}] = true
		ty := imp.Type().FuncType()
		f, ok := hostFuncs[imp.Module()][name]
		if ty == nil || !ok && imp.Module() != wasi {
			return fmt.Errorf("the module imports %s.%s, which the plane does not offer", imp.Module(), name)
		}
		params, returns := signature(ty)
		if !ok {
			f = errno(params, func(call) uint32 { return errnoNosys })
		}
		if params != f.params || !returns {
			return fmt.Errorf("the module imports %s.%s with another type than the plane's", imp.Module(), name)
		}
		void := len(ty.Results()) == 0
		err := linker.FuncNew(imp.Module(), name, ty, func(caller *wasmtime.Caller, args []wasmtime.Val) ([]wasmtime.Val, *wasmtime.Trap) {
			code, trap := f.call(call{caller.Data().(*slot).guest, args})
			if trap != nil || void {
				return nil, trap
			}
			return []wasmtime.Val{wasmtime.ValI32(int32(code))}, nil
		})
		if err != nil {
			return fmt.Errorf("defining %s.%s: %w", imp.Module(), name, err)
		}
	}
	return nil
}

// bytes is the guest's memory at [ptr, ptr+n); nil if that is out of bounds, or if
// there is none yet: a module may call while it is instantiated.
func (i *Instance) bytes(ptr, n uint32) []byte {
	if i.memory == nil {
		return nil
	}
	mem := i.memory.UnsafeData(i.store)
	if uint64(ptr)+uint64(n) > uint64(len(mem)) {
		return nil
	}
	return mem[ptr : uint64(ptr)+uint64(n) : uint64(ptr)+uint64(n)]
}

func (i *Instance) putUint32(ptr uint32, vs ...uint32) uint32 {
	b := i.bytes(ptr, uint32(4*len(vs)))
	if b == nil {
		return errnoFault
	}
	for k, v := range vs {
		binary.LittleEndian.PutUint32(b[4*k:], v)
	}
	return errnoSuccess
}

// arguments are the guest's; programs count on a name for themselves.
var arguments = []string{"guest"}

// sizes answers how many strings there are, and their size with the zero bytes.
func (c call) sizes(list []string) uint32 {
	size := 0
	for _, s := range list {
		size += len(s) + 1
	}
	if e := c.putUint32(c.u32(0), uint32(len(list))); e != errnoSuccess {
		return e
	}
	return c.putUint32(c.u32(1), uint32(size))
}

// strings writes the pointers to the strings, and the strings.
func (c call) strings(list []string) uint32 {
	ptrs, text := c.u32(0), c.u32(1)
	for _, s := range list {
		if e := c.putUint32(ptrs, text); e != errnoSuccess {
			return e
		}
		b := c.bytes(text, uint32(len(s)+1))
		if b == nil {
			return errnoFault
		}
		copy(b, s)
		b[len(s)] = 0
		ptrs, text = ptrs+4, text+uint32(len(b))
	}
	return errnoSuccess
}

func clockTimeGet(c call) uint32 {
	b := c.bytes(c.u32(2), 8)
	if b == nil {
		return errnoFault
	}
	wall, monotonic := c.config.Host.Clock()
	switch c.u32(0) {
	case clockRealtime:
		binary.LittleEndian.PutUint64(b, uint64(wall))
	case clockMonotonic:
		binary.LittleEndian.PutUint64(b, uint64(monotonic))
	default:
		return errnoNosys
	}
	return errnoSuccess
}

func randomGet(c call) uint32 {
	b := c.bytes(c.u32(0), c.u32(1))
	if b == nil {
		return errnoFault
	}
	c.config.Host.Random(b)
	return errnoSuccess
}

// fdFdstatGet says that the mailbox is non-blocking, which is what makes Go's
// scheduler wait for it in poll_oneoff.
func fdFdstatGet(c call) uint32 {
	b := c.bytes(c.u32(1), 24)
	if b == nil {
		return errnoFault
	}
	clear(b)
	switch fd := c.u32(0); {
	case fd < abi.MailboxFD:
		b[0] = filetypeCharacterDevice
	case fd == abi.MailboxFD:
		b[0] = filetypeUnknown
		binary.LittleEndian.PutUint16(b[2:], fdflagNonblock)
	case fd == rootFD:
		b[0] = filetypeDirectory
	case c.files[fd] != nil:
		b[0] = filetypeRegularFile
	default:
		return errnoBadf
	}
	for k := 8; k < 24; k++ { // all rights
		b[k] = 0xff
	}
	return errnoSuccess
}

// iovecs calls f with each buffer that an iovec array names until f returns
// false.
func (c call) iovecs(f func(b []byte) bool) bool {
	ptr, n := c.u32(1), c.u32(2)
	if n > maxIovecs {
		return false // the guest's deadline does not count in here
	}
	for range n {
		v := c.bytes(ptr, iovecSize)
		if v == nil {
			return false
		}
		b := c.bytes(binary.LittleEndian.Uint32(v), binary.LittleEndian.Uint32(v[4:]))
		if b == nil {
			return false
		}
		if !f(b) {
			return true
		}
		ptr += iovecSize
	}
	return true
}

func fdRead(c call) uint32 {
	if f := c.files[c.u32(0)]; f != nil {
		return c.readFile(f)
	}
	if c.u32(0) != abi.MailboxFD {
		return errnoBadf
	}
	total := 0
	ok := c.iovecs(func(b []byte) bool {
		n := c.config.Mailbox.read(b)
		total += n
		return n == len(b)
	})
	if !ok {
		return errnoFault
	}
	if total == 0 {
		return errnoAgain
	}
	return c.putUint32(c.u32(3), uint32(total))
}

func fdWrite(c call) uint32 {
	if fd := c.u32(0); fd != 1 && fd != 2 {
		return errnoBadf
	}
	total := 0
	ok := c.iovecs(func(b []byte) bool {
		b = b[:min(len(b), maxWrite-total)]
		c.output.write(b)
		total += len(b)
		return total < maxWrite
	})
	if !ok {
		return errnoFault
	}
	return c.putUint32(c.u32(3), uint32(total))
}

func procExit(c call) (uint32, *wasmtime.Trap) {
	c.exited = true
	return 0, wasmtime.NewTrap(fmt.Sprintf("exit status %d", c.u32(0)))
}

func request(c call) uint32 {
	if c.u32(1) > abi.MaxRequest {
		return abi.ErrFormat
	}
	b := c.bytes(c.u32(0), c.u32(1))
	if b == nil {
		return abi.ErrFormat
	}
	return c.config.Host.Request(b)
}

func cancel(c call) uint32 {
	c.config.Host.Cancel(c.u32(0))
	return errnoSuccess
}

// pollOneoff is called by Go's scheduler when every goroutine is blocked; the
// next timer comes with it. This is how the plane knows, exactly and for free,
// that a guest is idle. After a short wait it makes the mailbox readable with a
// Park frame.
func pollOneoff(c call) uint32 {
	n := c.u32(2)
	if n == 0 || n > 64 {
		return errnoFault
	}
	in, out := c.bytes(c.u32(0), n*subscriptionSize), c.bytes(c.u32(1), n*eventSize)
	if in == nil || out == nil {
		return errnoFault
	}
	const none = time.Duration(-1)
	next := none
	var timer, mailbox []byte // the subscriptions
	for ; len(in) > 0; in = in[subscriptionSize:] {
		switch in[8] {
		case eventtypeClock:
			d := time.Duration(binary.LittleEndian.Uint64(in[24:]))
			if in[40]&1 != 0 { // absolute
				_, now := c.config.Host.Clock()
				d -= now
			}
			if d = max(d, 0); next == none || d < next {
				next, timer = d, in
			}
		case eventtypeFdRead:
			if binary.LittleEndian.Uint32(in[16:]) == abi.MailboxFD {
				mailbox = in
			}
		}
	}
	ready := eventtypeClock
	switch {
	case mailbox == nil && timer == nil:
		return errnoNosys
	case mailbox == nil:
		// The Go runtime waits for itself for some microseconds; nothing is
		// idle, and the deadline keeps running.
		time.Sleep(min(next, tick))
	case !c.config.Mailbox.Empty():
		ready = eventtypeFdRead
	case next == 0:
	default:
		ready = c.idle(next)
	}
	sub := timer
	if ready == eventtypeFdRead {
		sub = mailbox
	}
	clear(out[:eventSize])
	copy(out[:8], sub[:8])
	out[10] = byte(ready)
	return c.putUint32(c.u32(3), 1)
}

// idle waits in place for as long as the host says, then parks the guest. It
// returns the kind of event that the guest gets to see. Its time begins anew if
// something came for it, but not for a timer of its own, nor for the Park frame:
// it could go on with these forever.
func (i *Instance) idle(next time.Duration) int {
	_, now := i.config.Host.Clock()
	i.next = -1
	if next >= 0 {
		i.next = now + next
	}
	linger := i.config.Host.Linger(next)
	if next >= 0 && next <= linger {
		if !i.config.Mailbox.wait(next) {
			return eventtypeClock
		}
		i.resetDeadline()
		return eventtypeFdRead
	}
	if i.config.Mailbox.wait(linger) || !i.config.Mailbox.park() {
		i.resetDeadline()
	}
	return eventtypeFdRead
}
