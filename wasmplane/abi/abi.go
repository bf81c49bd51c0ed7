// Package abi is the wire format between the plane (the host) and a controller
// compiled to WebAssembly (the guest). Both sides use it; it imports nothing
// but the standard library.
//
// A guest is a WASI preview 1 reactor. It exports
//
//	_initialize     made by the toolchain: runs package initialisation; once, at build time
//	dormouse_bake   settles the heap before the base image is taken; once, at build time
//	dormouse_pump   reads frames from the mailbox until Park, then returns
//
// and imports, from the module named [Module],
//
//	request(ptr, len) errno   hands over one encoded [Request]
//	cancel(stream)            ends the exchange with that stream number
//
// # Mailbox
//
// What the host has to say arrives through one non-blocking file descriptor,
// [MailboxFD], as a sequence of frames:
//
//	kind   uint32  one of the Frame… constants
//	stream uint32  the exchange it belongs to; 0 for Park, Start and Collect
//	length uint32  bytes of payload that follow, at most [MaxFrame]
//	payload
//
// All integers are little endian. The guest numbers its exchanges itself,
// starting at 1, so that the numbers are part of its memory and survive sleep.
//
// # Exchanges
//
// An exchange is one HTTP request and its response: the guest calls request,
// the host answers with one Head frame, any number of Body frames, and one End
// or Fail frame. Body frames of a watch carry whole watch events. The guest may
// cancel at any time; frames that are already under way are then ignored.
//
// The format is versioned as a whole by [Version]: a module says which version it
// speaks by exporting a function named [VersionExport].
package abi

import (
	"encoding/json"
	"time"
)

const (
	// Version of this wire format.
	Version = 2
	// VersionExport is exported by every guest of this version.
	VersionExport = "dormouse_abi_2"

	// Module is the name guests import the host's functions from.
	Module = "dormouse"
	// RequestImport and CancelImport are the functions in Module.
	RequestImport = "request"
	CancelImport  = "cancel"

	// InitializeExport, BakeExport and PumpExport are the guest's entry points.
	InitializeExport = "_initialize"
	BakeExport       = "dormouse_bake"
	PumpExport       = "dormouse_pump"

	// MailboxFD is the file descriptor of the mailbox.
	MailboxFD = 3

	// MaxFrame bounds the payload of one frame, in bytes. Longer bodies are
	// split; a longer watch event is refused by the host, as etcd's limit on an
	// object (1.5 MiB) is far below.
	MaxFrame = 8 << 20
	// MaxRequest bounds an encoded request, in bytes. The API server itself
	// refuses bodies above 3 MiB.
	MaxRequest = 8 << 20
	// MaxHeaders bounds the header lines of a request or a response. In memory a
	// short line takes fifty times what it takes here; clients and API server send
	// about ten.
	MaxHeaders = 256

	// BakeClock is what both clocks read while the base image is made, so that
	// equal sources give equal images. The plane's monotonic clock never reads
	// less.
	BakeClock = time.Hour
)

// Errno values that request returns to the guest.
const (
	OK        = 0
	ErrFormat = 1 // the request cannot be decoded
	ErrLimit  = 2 // too many exchanges at a time
)

// Start tells a fresh guest which controller to be. It is the payload of the
// Start frame, as JSON.
type Start struct {
	// Controller is the upstream name, for example "deployment-controller".
	Controller string `json:"controller"`
	// Options are the controller's options, in a form the guest program knows.
	Options json.RawMessage `json:"options,omitempty"`
	// Seed differs for every fresh guest. The base image is shared, and with it
	// the state of its random number generators.
	Seed int64 `json:"seed"`
}
