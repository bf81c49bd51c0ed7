package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/dormouse-k8s/dormouse/cmd/dormouse/config"
	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

func newWasmCheckCommand() *cobra.Command {
	c := config.Default()
	flags := c.Flags()
	var repair bool
	cmd := &cobra.Command{Use: "check [FILE]", Short: "Check the snapshots of a stopped server",
		Long: "Check whether the controllers of a stopped server can come back from their snapshots.\nFILE is that of --data-dir unless it is given. Nothing is changed without --repair.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return noArguments(cmd, args[1:])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return checkSnapshots(cmd.OutOrStdout(), args[0], repair)
			}
			if _, err := c.Load(flags, os.LookupEnv); err != nil {
				return err
			}
			return checkSnapshots(cmd.OutOrStdout(), paths.Data(c.DataDir).WasmSnapshots(), repair)
		}}
	cmd.Flags().AddFlag(flags.Lookup("config"))
	cmd.Flags().AddFlag(flags.Lookup("data-dir"))
	cmd.Flags().BoolVar(&repair, "repair", false, "drop what is damaged")
	return cmd
}

// checkSnapshots prints what is in a snapshot store, and repairs it if asked to. It returns an error if
// something is wrong in the end.
func checkSnapshots(out io.Writer, file string, repair bool) error {
	entries, err := snapshot.Check(file, runtime.PageSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no snapshot store at %s; the first server in Wasm mode makes one", file)
	case errors.Is(err, snapshot.ErrInUse):
		return fmt.Errorf("%s is in use; stop the server first", file)
	case errors.Is(err, snapshot.ErrNoStore):
		return fmt.Errorf("%s is no snapshot store", file)
	case errors.Is(err, snapshot.ErrDamaged) && !repair:
		return fmt.Errorf("%s cannot be used: %w; a server puts it aside and starts every controller cold, --repair puts it aside now", file, err)
	case errors.Is(err, snapshot.ErrDamaged):
		if err := snapshot.Repair(file, runtime.PageSize); err != nil {
			return fmt.Errorf("repairing %s: %w", file, err)
		}
		fmt.Fprintf(out, "%s could not be used (%v) and was put aside; every controller starts cold\n", file, err)
		return nil
	case err != nil:
		return fmt.Errorf("checking %s: %w", file, err)
	}
	damaged, err := printSnapshots(out, entries)
	switch {
	case err != nil:
		return err
	case damaged == 0:
		fmt.Fprintf(out, "%d snapshots, none damaged\n", len(entries))
		return nil
	case !repair:
		return fmt.Errorf("%d of %d snapshots are damaged; a server starts their controllers cold, --repair drops them now", damaged, len(entries))
	}
	if err := snapshot.Repair(file, runtime.PageSize); err != nil {
		return fmt.Errorf("repairing %s: %w", file, err)
	}
	fmt.Fprintf(out, "%d of %d snapshots were damaged and are dropped; their controllers start cold\n", damaged, len(entries))
	return nil
}

// printSnapshots prints a line for each snapshot, and counts those that cannot be restored.
func printSnapshots(out io.Writer, entries []snapshot.Entry) (damaged int, err error) {
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tSIZE\tSTATE")
	for _, e := range entries {
		state := "ok"
		if e.Err != nil {
			damaged++
			state = e.Err.Error()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", e.Name, bytesText(e.Size), state)
	}
	return damaged, t.Flush()
}
