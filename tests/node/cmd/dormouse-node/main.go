// Command dormouse-node runs a Dormouse node in namespaces of its own, to try it
// out: nothing on the machine changes, and nothing is left after Ctrl-C.
//
//	dormouse-node run [-binary FILE] [-images DIR] [-- SERVER-ARGUMENT...]
//	dormouse-node enter [COMMAND...]     run a command, or a shell, inside the node
//	dormouse-node VERB...                run dormouse VERB inside the node, e.g. kubectl, wasm
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/dormouse-k8s/dormouse/tests/node"
)

// startTimeout is for the slowest of machines.
const startTimeout = 5 * time.Minute

const usage = `usage: dormouse-node run [-binary FILE] [-images DIR] [-- SERVER-ARGUMENT...]
       dormouse-node enter [COMMAND...]
       dormouse-node VERB...
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(doMain(ctx, os.Args, os.Stdout, os.Stderr))
}

func doMain(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) < 2 || strings.HasPrefix(args[1], "-") {
		fmt.Fprint(stderr, usage)
		return 2
	}
	var err error
	switch args[1] {
	case "run":
		err = run(ctx, args[0], args[2:], stdout, stderr)
	case "enter":
		command := args[2:]
		if len(command) == 0 {
			command = []string{"/bin/sh", "-i"}
		}
		err = enter(command)
	default:
		err = enter(append([]string{""}, args[1:]...))
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stderr, "dormouse-node:", err)
		return 1
	}
	return 0
}

// run starts a node and keeps it until ctx is done.
func run(ctx context.Context, self string, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("dormouse-node run", flag.ContinueOnError)
	fs.SetOutput(stderr)
	binary := fs.String("binary", "bin/dormouse", "the dormouse executable")
	images := fs.String("images", "build/images", "directory with image archives for the node")
	if err := fs.Parse(args); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(*images, "*.tar*"))
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, "Starting a node in namespaces of its own …")
	began := time.Now()
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	n, err := node.Start(starting, node.Config{Binary: *binary, Args: fs.Args(), Images: archives})
	cancel()
	if ctx.Err() != nil {
		return nil // interrupted while starting; the node is closed
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, `The node is Ready after %.1f s. Its address is %s, its log is %s.

Now, in another terminal:

  %[4]s kubectl create deployment web --image=docker.io/dormouse/web:v1 --replicas=3
  %[4]s kubectl expose deployment web --port=80 --target-port=8080
  %[4]s kubectl get pods,services -o wide
  %[4]s enter curl http://CLUSTER-IP
  %[4]s wasm list
  %[4]s enter            # a shell inside the node

Ctrl-C ends the node and removes every trace of it.
`, time.Since(began).Seconds(), n.IP, n.LogFile(), self)
	select {
	case <-ctx.Done():
		fmt.Fprintln(stdout, "\nEnding the node …")
		return errors.Join(n.StopServer(), n.Close())
	case <-n.ServerDone():
		err := n.StopServer() // says how it ended
		if err == nil {
			err = errors.New("the server has ended by itself")
		}
		return errors.Join(err, n.Close())
	}
}

// enter replaces this process by a command inside the running node. An empty
// command name stands for the node's dormouse.
func enter(command []string) error {
	dirs, err := node.Running()
	if err != nil {
		return err
	}
	switch len(dirs) {
	case 0:
		return errors.New("no node is running: start one with dormouse-node run")
	case 1:
	default:
		return fmt.Errorf("more than one node is running, end all but one: %s", strings.Join(dirs, ", "))
	}
	cmd, err := node.Enter(dirs[0], command[0], command[1:]...)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(cmd.Path)
	if err != nil {
		return fmt.Errorf("enter the node: %w", err)
	}
	return fmt.Errorf("enter the node: %w", syscall.Exec(path, cmd.Args, cmd.Env))
}
