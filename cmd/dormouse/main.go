// Command dormouse is a Kubernetes node, or a cluster's control plane, in one process, and the tools to
// look after it. Called as kubectl it is kubectl.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dormouse-k8s/dormouse/internal/version"
)

func main() { os.Exit(doMain(os.Args, os.Stdin, os.Stdout, os.Stderr)) }

// doMain runs the command line args, the first of which is the name the program was called by, and
// returns the exit code.
func doMain(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		args = []string{"dormouse"}
	}
	if filepath.Base(args[0]) == "kubectl" {
		return kubectl(args[1:], stdin, stdout, stderr)
	}
	if len(args) > 1 && args[1] == "kubectl" {
		return kubectl(args[2:], stdin, stdout, stderr)
	}

	// Kubernetes' packages register flags for every program that links them.
	pflag.CommandLine = pflag.NewFlagSet(args[0], pflag.ContinueOnError)

	root := newRoot()
	root.SetArgs(args[1:])
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(stderr, "dormouse: "+oneLine(err))
		return 1
	}
	return 0
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "dormouse",
		Short:         "A Kubernetes distribution whose controllers sleep",
		Version:       version.Get(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate(fmt.Sprintf("dormouse version %s%s\ngo version %s\n", version.Get(), commit(), runtime.Version()))
	// cobra's own message for a flag suggests nothing.
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see \"%s --help\"", err, c.CommandPath())
	})
	root.AddCommand(newServerCommand(), newWasmCommand(), newConfigCommand(), newKubectlCommand())
	return root
}

func commit() string {
	c := version.Commit()
	if c == "" {
		return ""
	}
	return " (" + c[:min(len(c), 12)] + ")"
}

// noArguments refuses what follows a command that takes none.
func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q; see \"%s --help\"", args[0], c.CommandPath())
	}
	return nil
}

// needsSubcommand is what a command does that only groups others.
func needsSubcommand(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unknown command %q for %q; see \"%s --help\"", args[0], c.CommandPath(), c.CommandPath())
	}
	return c.Help()
}

// oneLine makes errors that were joined with newlines readable in a log.
func oneLine(err error) string {
	var lines []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
