// Package guest is what a controller links with to run under the plane: it
// brings the mailbox pump, an [http.RoundTripper] that reaches the API server
// through the host, and the entry points of package abi.
//
// A guest program registers its controllers from init functions and has an
// empty main:
//
//	func init() { guest.Register("deployment-controller", run) }
//	func main() {}
//
// and is built with GOOS=wasip1 GOARCH=wasm -buildmode=c-shared.
//
// The plane may put a guest to sleep whenever every goroutine is blocked; memory
// is all that survives, and the controller cannot tell. It needs no code for it.
package guest

import (
	"context"
	"fmt"
	"net/http"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

// Transport sends every request to the API server, under the identity that the
// host has given this guest. Scheme and host of the URL are ignored. It is safe
// for concurrent use.
var Transport http.RoundTripper = &exchanges

// RunFunc starts a controller and blocks until ctx is done. Returning earlier
// ends the guest.
type RunFunc func(ctx context.Context, s abi.Start) error

var controllers = map[string]RunFunc{}

// Register makes a controller known under its upstream name. It is called from
// init functions and panics if the name is taken.
func Register(name string, run RunFunc) {
	if _, taken := controllers[name]; taken {
		panic("guest: controller " + name + " is registered twice")
	}
	controllers[name] = run
}

// run runs the controller that s names and says why it ended; it always ends
// with an error.
func run(s abi.Start) error {
	r, ok := controllers[s.Controller]
	if !ok {
		return fmt.Errorf("this module has no controller %q", s.Controller)
	}
	if err := r(context.Background(), s); err != nil {
		return fmt.Errorf("controller %s: %w", s.Controller, err)
	}
	return fmt.Errorf("controller %s ended by itself", s.Controller)
}
