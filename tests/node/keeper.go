package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// The program executes itself again in these roles, told by the environment.
const (
	roleVar    = "DORMOUSE_TEST_NODE_ROLE"
	nameVar    = "DORMOUSE_TEST_NODE_NAME"
	dirVar     = "DORMOUSE_TEST_NODE_DIR"
	binaryVar  = "DORMOUSE_TEST_NODE_BINARY"
	roleKeeper = "keeper"
	roleInit   = "init"
)

// dirPrefix begins the name of every node's directory.
const dirPrefix = "dormouse-node-"

func init() {
	switch os.Getenv(roleVar) {
	case roleKeeper:
		os.Exit(keep())
	case roleInit:
		os.Exit(runInit())
	}
}

// keep is the keeper's main function: it makes the node, waits for the end of
// its standard input, and removes the node.
func keep() int {
	// The parent-death signal of init is bound to the thread that starts it.
	runtime.LockOSThread()
	k := keeper{name: os.Getenv(nameVar), dir: os.Getenv(dirVar)}
	ip, err := k.create()
	r := report{IP: ip}
	if err != nil {
		r.Error = err.Error()
	} else {
		r.Init = k.init.Process.Pid
		// For those who want to enter the node from another process.
		err = writeState(k.dir, state{Init: r.Init, Binary: os.Getenv(binaryVar)})
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	} else {
		_ = json.NewEncoder(os.Stdout).Encode(report{Error: err.Error()})
	}
	if err == nil {
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
	if err := k.remove(); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		return 1
	}
	return 0
}

type keeper struct {
	name, dir string
	cgroups   []cgroup
	init      *exec.Cmd
	link      string // the machine's end of the pair, once it exists
}

// create makes the control groups, the namespaces and the network, and returns
// the node's address.
func (k *keeper) create() (net.IP, error) {
	var err error
	if k.cgroups, err = findCgroups(filepath.Base(k.dir)); err != nil {
		return nil, err
	}
	if err := makeCgroups(k.cgroups); err != nil {
		return nil, err
	}
	prepared, err := k.startInit()
	if err != nil {
		return nil, err
	}
	ip, err := k.connect()
	if err != nil {
		return nil, fmt.Errorf("connect the node's network: %w", err)
	}
	// init closes the pipe when it is done, with a message if it failed.
	message, err := io.ReadAll(prepared)
	if err == nil && len(message) > 0 {
		err = errors.New(string(message))
	}
	return ip, err
}

// startInit starts the first process of the namespaces. The result is a stream
// that init ends when it has prepared the namespaces.
func (k *keeper) startInit() (io.Reader, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	k.init = exec.Command("/proc/self/exe")
	k.init.Env = append(os.Environ(), roleVar+"="+roleInit)
	k.init.Stderr = os.Stderr
	k.init.ExtraFiles = []*os.File{write}
	k.init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWCGROUP,
		Pdeathsig: syscall.SIGKILL,
	}
	// A control group namespace begins where the process is that makes it.
	home, err := joinCgroups(k.cgroups)
	if err == nil {
		err = k.init.Start()
	}
	err = errors.Join(err, leaveCgroups(home))
	write.Close()
	if err != nil {
		return nil, fmt.Errorf("make the node's namespaces: %w", err)
	}
	return read, nil
}

// connect joins the node's network namespace with the machine's by a pair of
// interfaces, in the first 10.99.N.0/24 that nobody uses.
func (k *keeper) connect() (net.IP, error) {
	inside, err := netns.GetFromPid(k.init.Process.Pid)
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	for n := range 255 {
		// The interface's name is what two nodes that start at once compete for.
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("dormouse%d", n)
		pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(inside)}
		err := netlink.LinkAdd(pair)
		if errors.Is(err, syscall.EEXIST) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("add interface %s: %w", attrs.Name, err)
		}
		k.link = attrs.Name
		outer, ip := net.IPv4(10, 99, byte(n), 1), net.IPv4(10, 99, byte(n), 2)
		if err := configure(&netlink.Handle{}, attrs.Name, outer); err != nil {
			return nil, err
		}
		return ip, configureInside(inside, ip, outer)
	}
	return nil, errors.New("no 10.99.N.0/24 is free")
}

// configureInside sets up the node's end.
func configureInside(inside netns.NsHandle, ip, gateway net.IP) error {
	h, err := netlink.NewHandleAt(inside)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := configure(h, "lo", nil); err != nil {
		return err
	}
	if err := configure(h, "eth0", ip); err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{Gw: gateway})
}

// configure gives an interface its address, if any, and switches it on.
func configure(h *netlink.Handle, name string, ip net.IP) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if ip != nil {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(24, 32)}}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("interface %s: add address %s: %w", name, ip, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}

// remove ends the node's processes and removes what outlives them. The interfaces
// go first: the kernel would remove them too, but some time after the last process
// of the network namespace, when the name may already be another node's.
func (k *keeper) remove() error {
	err := k.disconnect()
	if k.init != nil && k.init.Process != nil {
		_ = k.init.Process.Kill()
		_ = k.init.Wait()
	}
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	return errors.Join(err, removeCgroups(ctx, k.cgroups), os.RemoveAll(k.dir))
}

// disconnect removes the pair of interfaces.
func (k *keeper) disconnect() error {
	if k.link == "" {
		return nil
	}
	link, err := netlink.LinkByName(k.link)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove interface %s: %w", k.link, err)
	}
	return nil
}

// state is kept in the node's directory while the node exists.
type state struct {
	Init   int    `json:"init"`
	Binary string `json:"binary"`
}

func writeState(dir string, s state) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "node.json"), b, 0o600)
}

// Enter returns a command that runs a program inside the running node with the
// given directory, started by whatever process. An empty name stands for the
// node's dormouse.
func Enter(dir, name string, args ...string) (*exec.Cmd, error) {
	b, err := os.ReadFile(filepath.Join(dir, "node.json"))
	if err != nil {
		return nil, fmt.Errorf("find the node: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("find the node: %s: %w", dir, err)
	}
	if name == "" {
		name = s.Binary
	}
	return enter(s.Init, nil, name, args...), nil
}

// Running returns the directories of the nodes that exist on this machine.
func Running() ([]string, error) {
	states, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*", "node.json"))
	if err != nil {
		return nil, err
	}
	for i, s := range states {
		states[i] = filepath.Dir(s)
	}
	return states, nil
}
