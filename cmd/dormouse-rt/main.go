//go:build dormouse_rt

// Command dormouse-rt is what runs once per container, in one small ELF: the
// containerd shim, runc and the CNI plugins, chosen by the name it is called
// by (argv[0]). The main binary unpacks it and puts symbolic links beside it.
//
// It is built with -modfile=build/rt/rt.mod and -tags=dormouse_rt, see
// packaging/rt: runc and the plugins are programs, not libraries.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task/plugin"
	"github.com/containerd/containerd/v2/pkg/shim"
	hostlocal "github.com/containernetworking/plugins/plugins/ipam/host-local"
	"github.com/containernetworking/plugins/plugins/main/bridge"
	"github.com/containernetworking/plugins/plugins/main/loopback"
	"github.com/containernetworking/plugins/plugins/meta/firewall"
	"github.com/containernetworking/plugins/plugins/meta/portmap"
	"github.com/opencontainers/runc"
)

const shimName = "containerd-shim-runc-v2"

// programs are the names dormouse-rt answers to.
var programs = map[string]func(){
	shimName:     runShim,
	"runc":       runc.Main,
	"bridge":     bridge.Main,
	"host-local": hostlocal.Main,
	"loopback":   loopback.Main,
	"firewall":   firewall.Main,
	"portmap":    portmap.Main,
}

func main() {
	name := filepath.Base(os.Args[0])
	// The shim starts itself again as the file behind the link, so there is no
	// name to go by; its first argument tells.
	if len(os.Args) > 1 && os.Args[1] == "-namespace" {
		name = shimName
	}
	run, ok := programs[name]
	if !ok {
		var names []string
		for n := range programs {
			names = append(names, n)
		}
		slices.Sort(names)
		fmt.Fprintf(os.Stderr, "dormouse-rt: called as %q; call it by one of these names: %s\n", name, strings.Join(names, ", "))
		os.Exit(1)
	}
	run()
}

func runShim() {
	shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"))
}
