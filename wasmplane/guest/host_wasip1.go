package guest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"unsafe"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

//go:wasmimport dormouse request
func hostRequest(p unsafe.Pointer, n uint32) uint32

//go:wasmimport dormouse cancel
func hostCancel(stream uint32)

func init() {
	exchanges.send = func(b []byte) uint32 { return hostRequest(unsafe.Pointer(&b[0]), uint32(len(b))) }
	exchanges.cancel = hostCancel
}

// mailbox is opened while the base image is made, so that a fresh guest finds
// it ready.
var mailbox *os.File

//go:wasmexport dormouse_abi_2
func version() {}

// gcPercent is the garbage collector's target. Most of what a collection looks through
// is the base image, so that in a burst of work they should be few; what a guest leaves
// lying about is not saved, see abi.FrameCollect.
const gcPercent = 100

//go:wasmexport dormouse_bake
func bake() {
	mailbox = os.NewFile(abi.MailboxFD, "mailbox")
	debug.SetGCPercent(-1)
	// Twice: finalizers of the first pass may free more.
	runtime.GC()
	runtime.GC()
	fillHoles()
	debug.FreeOSMemory()
	debug.SetGCPercent(gcPercent)
}

//go:wasmexport dormouse_pump
func pump() {
	if err := pumpUntilPark(); err != nil {
		end(fmt.Errorf("mailbox: %w", err))
	}
}

func pumpUntilPark() error {
	var header [abi.HeaderSize]byte
	for {
		if _, err := io.ReadFull(mailbox, header[:]); err != nil {
			return err
		}
		h, err := abi.DecodeHeader(header[:])
		if err != nil {
			return err
		}
		switch h.Kind {
		case abi.FramePark:
			return nil
		case abi.FrameStart:
			var s abi.Start
			payload := make([]byte, h.Length)
			if _, err := io.ReadFull(mailbox, payload); err != nil {
				return err
			}
			if err := json.Unmarshal(payload, &s); err != nil {
				return fmt.Errorf("decoding start: %w", err)
			}
			go func() { end(run(s)) }()
		case abi.FrameCollect:
			runtime.GC()
		default:
			if err := exchanges.deliver(h, mailbox); err != nil {
				return err
			}
		}
	}
}

// end ends the guest; the host reports the last line.
func end(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
