// Package options fills the flags of an upstream component from our defaults and the arguments a user
// gives for it.
package options

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// featureGates is a map: what a user says about one feature leaves the others as they are.
const featureGates = "feature-gates"

// Parse sets the flags in sets: to defaults, a map from flag name to value, and then to args, each of
// the form "name=value", or "name" alone for a flag that is true. An argument replaces the default of the same
// name altogether, except feature-gates, which are added to; given several times it accumulates where the
// component's flag does. flag is the name of our own flag that carries args, for messages.
func Parse(flag string, sets map[string]*pflag.FlagSet, defaults map[string]string, args []string) error {
	all := pflag.NewFlagSet(flag, pflag.ContinueOnError)
	for _, s := range sets {
		all.AddFlagSet(s)
	}
	given := map[string]bool{}
	for _, arg := range args {
		name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if all.Lookup(name) == nil {
			return fmt.Errorf("--%s %s: there is no such argument", flag, arg)
		}
		given[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(defaults)) {
		if given[name] && name != featureGates {
			continue
		}
		if err := all.Set(name, defaults[name]); err != nil {
			return fmt.Errorf("default of %s for --%s: %w", name, flag, err)
		}
	}
	for _, arg := range args {
		name, value, ok := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !ok {
			if value = all.Lookup(name).NoOptDefVal; value == "" {
				return fmt.Errorf("--%s %s: a value is needed, as in %s=VALUE", flag, arg, name)
			}
		}
		if err := all.Set(name, value); err != nil {
			return fmt.Errorf("--%s %s: %w", flag, arg, err)
		}
	}
	return nil
}
