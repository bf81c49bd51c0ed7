// Package node starts a Dormouse node for tests, in namespaces of its own: the
// machine it runs on keeps its network, mounts, processes, host name and kernel
// parameters, and nothing is left when the node is closed, or when the process
// that started it dies in whatever way.
//
// # How it works
//
// Start executes this program twice more:
//
//	the test ── keeper ── init (process 1 of the node's namespaces)
//	    └─ nsenter ── dormouse server ── shims, pods (orphans become init's)
//
// The keeper makes the node's control groups and its network link, and waits for
// the end of the test, which it sees on a pipe. Then it kills init: the kernel
// ends every process of that process namespace with it, and the mounts and the
// network go as nobody is left in their namespaces. What remains, the control
// groups and the directory, the keeper removes.
//
// It needs root, and the program nsenter of util-linux.
package node

import (
	"bufio"
	"bytes"
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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
)

// Paths inside the node.
const (
	Kubeconfig = "/etc/dormouse/dormouse.yaml"
	DataDir    = "/var/lib/dormouse"
)

// stopTimeout is how long a server may take to end after SIGTERM.
const stopTimeout = 45 * time.Second

// Config describes a node.
type Config struct {
	// Binary is the dormouse executable. Empty: the namespaces alone, no server.
	Binary string
	// Args follow "server" on the command line.
	Args []string
	// Images are image archives for the node's agent/images.
	Images []string
	// Name is the node's host name. Default "dormouse".
	Name string
	// Env is added to the server's environment, "NAME=value".
	Env []string
}

// Node is a running node. Its methods may be called concurrently, except those
// that start and stop the server.
type Node struct {
	// Dir is the node's directory on this machine: log/ is its /var/log, lib/
	// its /var/lib, server.log what the server printed.
	Dir string
	// IP is the node's address, reachable from this machine.
	IP net.IP

	config Config
	keeper *exec.Cmd
	alive  io.Closer // the keeper's standard input; closing it ends the node
	init   int       // process id of init, as this machine sees it
	notify *net.UnixConn
	server *serverProcess
	closed sync.Once
}

// serverProcess is one run of the server.
type serverProcess struct {
	nsenter *exec.Cmd
	ready   chan struct{}
	done    chan struct{} // closed when it has ended
	err     error         // valid once done is closed
}

// report is what the keeper says once the namespaces are there.
type report struct {
	Init  int    `json:"init"`
	IP    net.IP `json:"ip"`
	Error string `json:"error,omitempty"`
}

// Start makes the namespaces and, if there is a binary, starts the server in
// them and waits until it says that it is ready (READY=1, as to systemd). When
// ctx ends while it waits, the node is closed. The caller must call Close.
func Start(ctx context.Context, config Config) (_ *Node, err error) {
	if config.Name == "" {
		config.Name = "dormouse"
	}
	if config.Binary != "" {
		if config.Binary, err = filepath.Abs(config.Binary); err != nil {
			return nil, err
		}
		if _, err := os.Stat(config.Binary); err != nil {
			return nil, fmt.Errorf("start node: %w", err)
		}
	}
	dir, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		return nil, err
	}
	n := &Node{Dir: dir, config: config}
	if err := n.startKeeper(); err != nil {
		_ = os.RemoveAll(dir) // the keeper may not have come to it
		return nil, fmt.Errorf("start node: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if err := n.addImages(); err != nil {
		return nil, fmt.Errorf("start node: %w", err)
	}
	n.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify.sock"), Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("start node: %w", err)
	}
	if config.Binary != "" {
		if err := n.StartServer(ctx); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *Node) startKeeper() error {
	alive, stdin, err := pipe()
	if err != nil {
		return err
	}
	n.keeper = exec.Command("/proc/self/exe")
	n.keeper.Env = append(os.Environ(), roleVar+"="+roleKeeper, nameVar+"="+n.config.Name, dirVar+"="+n.Dir, binaryVar+"="+n.config.Binary)
	n.keeper.Stdin = stdin
	n.keeper.Stderr = os.Stderr
	// Ctrl-C is for the test. The keeper ends when the test has.
	n.keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdout, err := n.keeper.StdoutPipe()
	if err != nil {
		return err
	}
	if err := n.keeper.Start(); err != nil {
		return err
	}
	stdin.Close()
	n.alive = alive
	var r report
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		alive.Close()
		_ = n.keeper.Wait()
		return err
	}
	n.init, n.IP = r.Init, r.IP
	return nil
}

// pipe returns the write end and the read end of a pipe.
func pipe() (write io.Closer, read *os.File, err error) {
	r, w, err := os.Pipe()
	return w, r, err
}

// addImages puts the image archives where the server looks for them.
func (n *Node) addImages() error {
	images := filepath.Join(n.Dir, "lib", "dormouse", "agent", "images")
	if err := os.MkdirAll(images, 0o755); err != nil {
		return err
	}
	for _, archive := range n.config.Images {
		b, err := os.ReadFile(archive)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(images, filepath.Base(archive)), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Command returns a command that runs a program inside the node. Its standard
// streams can be set; it must be started by the caller.
func (n *Node) Command(name string, args ...string) *exec.Cmd {
	return enter(n.init, nil, name, args...)
}

// enter returns a command that runs a program in the namespaces and control
// groups of a node. The shell joins the groups: namespaces alone do not.
func enter(init int, env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(init),
		"--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--wd=/", "--",
		"/bin/sh", "-c", joinScript, "sh", name}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+Kubeconfig, "HOME=/root")
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// Exec runs a program inside the node and returns what it wrote to standard
// output. The error of a program that fails has what it wrote to standard error.
func (n *Node) Exec(ctx context.Context, name string, args ...string) (string, error) {
	cmd := n.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// nsenter waits for its child; a group lets ctx end both.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	err := cmd.Wait()
	stop()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), errors.Join(err, ctx.Err()), strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), err
}

// Kubectl runs the binary's built-in kubectl inside the node.
func (n *Node) Kubectl(ctx context.Context, args ...string) (string, error) {
	return n.Exec(ctx, n.config.Binary, append([]string{"kubectl"}, args...)...)
}

// Dial connects to an address, which is an IP address and a port, as a program
// inside the node would.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	// A thread that cannot go back to its network ends with its goroutine.
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		inside, err := netns.GetFromPid(n.init)
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer inside.Close()
		if err := netns.Set(inside); err != nil {
			done <- result{nil, err}
			return
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// LogFile is where the server's output goes, of all its runs.
func (n *Node) LogFile() string { return filepath.Join(n.Dir, "server.log") }

// StartServer starts the server and waits until it is ready. It fails when the
// server ends before, and when ctx does; then the server is killed.
func (n *Node) StartServer(ctx context.Context) error {
	if err := n.LaunchServer(); err != nil {
		return err
	}
	return n.AwaitServer(ctx)
}

// AwaitServer waits until the server that LaunchServer started is ready, and
// fails as StartServer does.
func (n *Node) AwaitServer(ctx context.Context) error {
	s := n.server
	select {
	case <-s.ready:
		return nil
	case <-s.done:
		return fmt.Errorf("the server ended before it was ready: %w\n%s", s.err, n.logTail())
	case <-ctx.Done():
		err := fmt.Errorf("the server is not ready: %w\n%s", context.Cause(ctx), n.logTail())
		return errors.Join(err, n.Kill9Server())
	}
}

// LaunchServer starts the server and does not wait for it.
func (n *Node) LaunchServer() error {
	if n.server != nil {
		return errors.New("start the server: it runs already")
	}
	log, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	n.drainNotify()
	cmd := enter(n.init, append([]string{"NOTIFY_SOCKET=" + n.notify.LocalAddr().String()}, n.config.Env...),
		n.config.Binary, append([]string{"server"}, n.config.Args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	s := &serverProcess{nsenter: cmd, ready: make(chan struct{}), done: make(chan struct{})}
	n.server = s
	listened := make(chan struct{})
	go func() {
		n.awaitReady(s)
		close(listened)
	}()
	go func() {
		s.err = cmd.Wait()
		// Ends awaitReady, if it still waits, before another server starts: the
		// socket is the same.
		_ = n.notify.SetReadDeadline(time.Now())
		<-listened
		close(s.done)
	}()
	return nil
}

// drainNotify drops what an earlier server may have said.
func (n *Node) drainNotify() {
	_ = n.notify.SetReadDeadline(time.Now())
	buf := make([]byte, 4096)
	for {
		if _, err := n.notify.Read(buf); err != nil {
			break
		}
	}
	_ = n.notify.SetReadDeadline(time.Time{})
}

// awaitReady closes s.ready when the server says READY=1.
func (n *Node) awaitReady(s *serverProcess) {
	buf := make([]byte, 4096)
	for {
		l, err := n.notify.Read(buf)
		if err != nil {
			return
		}
		for line := range strings.Lines(string(buf[:l])) {
			if strings.TrimSpace(line) == "READY=1" {
				close(s.ready)
				return
			}
		}
	}
}

// ServerPID returns the process id of the running server, as this machine sees it.
func (n *Node) ServerPID() (int, error) {
	if n.server == nil {
		return 0, errors.New("the server does not run")
	}
	return childOf(n.server.nsenter.Process.Pid)
}

// ServerDone is closed when the running server has ended.
func (n *Node) ServerDone() <-chan struct{} { return n.server.done }

// StopServer ends the server with SIGTERM and waits for it. The pods keep
// running. An exit status other than 0 is an error, as is one that does not come.
func (n *Node) StopServer() error {
	err := n.signalServer(syscall.SIGTERM)
	if err != nil {
		return fmt.Errorf("stop the server: %w\n%s", err, n.logTail())
	}
	return nil
}

// Kill9Server ends the server with SIGKILL. The pods keep running.
func (n *Node) Kill9Server() error {
	err := n.signalServer(syscall.SIGKILL)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

func (n *Node) signalServer(sig syscall.Signal) error {
	if n.server == nil {
		return errors.New("the server does not run")
	}
	s := n.server
	if err := n.kill(s, sig); err != nil {
		return err
	}
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-s.done:
		n.server = nil
		return s.err
	case <-timer.C:
		return fmt.Errorf("the server runs %v after %v", stopTimeout, sig)
	}
}

// kill sends a signal to a server that may have been launched so lately that
// nsenter has no child yet, or may have ended.
func (n *Node) kill(s *serverProcess, sig syscall.Signal) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	for {
		pid, err := n.ServerPID()
		if err == nil {
			if err = syscall.Kill(pid, sig); errors.Is(err, syscall.ESRCH) {
				return nil
			}
			return err
		}
		select {
		case <-tick.C:
		case <-s.done:
			return nil
		case <-timer.C:
			return err
		}
	}
}

// logTail returns the end of the server's log.
func (n *Node) logTail() string {
	const most = 4000
	b, err := os.ReadFile(n.LogFile())
	if err != nil {
		return err.Error()
	}
	if len(b) > most {
		b = b[len(b)-most:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return "the server's last lines:\n" + string(b)
}

// Close ends everything that runs in the node and removes every trace of it. It
// does not ask the server to stop first; StopServer does. Further calls do nothing.
func (n *Node) Close() error {
	var err error
	n.closed.Do(func() {
		if n.notify != nil {
			n.notify.Close()
		}
		n.alive.Close()
		if err = n.keeper.Wait(); err != nil {
			err = fmt.Errorf("clean up after the node: %w", err)
		}
		if n.server != nil {
			<-n.server.done
		}
	})
	return err
}

// childOf returns the only child of a process.
func childOf(parent int) (int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		// pid (name) state ppid …; the name may contain anything.
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, fmt.Errorf("process %d has no child", parent)
}
