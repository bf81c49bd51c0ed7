package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/dormouse-k8s/dormouse/cmd/dormouse/config"
)

func newConfigCommand() *cobra.Command {
	group := &cobra.Command{Use: "config", Short: "Look after the configuration", Args: cobra.ArbitraryArgs, RunE: needsSubcommand}
	c := config.Default()
	flags := c.Flags()
	validate := &cobra.Command{Use: "validate", Short: "Say whether a server would accept the configuration", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			notes, err := c.Load(flags, os.LookupEnv)
			if err != nil {
				return err
			}
			for _, n := range notes {
				fmt.Fprintln(cmd.ErrOrStderr(), "dormouse: "+n)
			}
			if err := serverConfig(c).Validate(); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the configuration is valid")
			return nil
		}}
	validate.Flags().AddFlagSet(flags)
	group.AddCommand(validate)
	return group
}

// localKubeconfig is where the server on this machine writes the administrator's kubeconfig, as far as the
// default configuration file says. A broken file is for the server to complain about.
func localKubeconfig() string {
	c := config.Default()
	if _, err := c.Load(c.Flags(), os.LookupEnv); err != nil {
		return config.Default().WriteKubeconfig
	}
	return c.WriteKubeconfig
}
