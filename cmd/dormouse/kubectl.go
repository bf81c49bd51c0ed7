package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
)

// newKubectlCommand stands for kubectl in our help. doMain never lets cobra run it: kubectl parses its own
// arguments.
func newKubectlCommand() *cobra.Command {
	return &cobra.Command{Use: "kubectl", Short: "Kubernetes' command line, for this cluster", DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if code := kubectl(args, c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr()); code != 0 {
				return fmt.Errorf("kubectl: exit code %d", code)
			}
			return nil
		}}
}

// fatal is what kubectl's commands throw where they would exit.
type fatal struct{ code int }

// kubectl runs kubectl with args, without a program name, and returns its exit code. Its default
// kubeconfig is the one the server on this machine writes.
func kubectl(args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	cmdutil.BehaviorOnFatal(func(msg string, code int) {
		if msg != "" {
			fmt.Fprintln(stderr, strings.TrimSuffix(msg, "\n"))
		}
		panic(fatal{code})
	})
	defer cmdutil.DefaultBehaviorOnFatal()
	defer func() {
		switch r := recover().(type) {
		case nil:
		case fatal:
			code = r.code
		default:
			panic(r)
		}
	}()

	streams := genericiooptions.IOStreams{In: stdin, Out: stdout, ErrOut: stderr}
	flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50).WithWarningPrinter(streams)
	if os.Getenv("KUBECONFIG") == "" {
		flags.KubeConfig = new(localKubeconfig())
	}
	argv := append([]string{"kubectl"}, args...)
	// As in kubectl's own main: verbosity is needed before its command line is parsed.
	if _, err := logs.GlogSetter(kubectlcmd.GetLogVerbosity(argv)); err != nil {
		fmt.Fprintln(stderr, "dormouse: "+oneLine(err))
		return 1
	}
	c := kubectlcmd.NewDefaultKubectlCommandWithArgs(kubectlcmd.KubectlOptions{
		PluginHandler: kubectlcmd.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes),
		Arguments:     argv, ConfigFlags: flags, IOStreams: streams,
	})
	c.SetArgs(args)
	c.SetIn(stdin)
	c.SetOut(stdout)
	c.SetErr(stderr)
	if err := cli.RunNoErrOutput(c); err != nil {
		cmdutil.CheckErr(err) // pretty-prints, and throws
	}
	return 0
}
