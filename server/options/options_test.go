package options

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
)

type component struct {
	name  string
	list  []string
	on    bool
	every time.Duration
	gates map[string]string
}

func (c *component) sets() map[string]*pflag.FlagSet {
	a, b := pflag.NewFlagSet("a", pflag.ContinueOnError), pflag.NewFlagSet("b", pflag.ContinueOnError)
	a.StringVar(&c.name, "name", "upstream", "")
	a.StringSliceVar(&c.list, "list", nil, "")
	b.BoolVar(&c.on, "on", false, "")
	b.DurationVar(&c.every, "every", time.Second, "")
	b.Var(cliflag.NewMapStringString(&c.gates), "feature-gates", "")
	return map[string]*pflag.FlagSet{"a": a, "b": b}
}

func TestParse(t *testing.T) {
	defaults := map[string]string{"name": "ours", "list": "x,y"}
	for _, tc := range []struct {
		args []string
		want component
	}{
		{nil, component{name: "ours", list: []string{"x", "y"}, every: time.Second}},
		{[]string{"name=theirs", "on", "every=1m"}, component{name: "theirs", list: []string{"x", "y"}, on: true, every: time.Minute}},
		{[]string{"--list=z", "list=w", "on=false"}, component{name: "ours", list: []string{"z", "w"}, every: time.Second}},
		{[]string{"name=a=b"}, component{name: "a=b", list: []string{"x", "y"}, every: time.Second}},
		{[]string{"name="}, component{list: []string{"x", "y"}, every: time.Second}},
	} {
		var got component
		if err := Parse("x-arg", got.sets(), defaults, tc.args); err != nil {
			t.Errorf("%q: %v", tc.args, err)
		}
		if got.name != tc.want.name || !slices.Equal(got.list, tc.want.list) || got.on != tc.want.on || got.every != tc.want.every {
			t.Errorf("%q: got %+v, want %+v", tc.args, got, tc.want)
		}
	}
}

func TestFeatureGatesAreAdded(t *testing.T) {
	var c component
	if err := Parse("x-arg", c.sets(), map[string]string{"feature-gates": "A=false,B=false"}, []string{"feature-gates=B=true", "feature-gates=C=true"}); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"A": "false", "B": "true", "C": "true"}; !maps.Equal(c.gates, want) {
		t.Errorf("got %v, want %v", c.gates, want)
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	for arg, want := range map[string]string{
		"nonsense=1": "--x-arg nonsense=1: there is no such argument",
		"every=soon": `--x-arg every=soon: invalid argument "soon"`,
		"name":       "--x-arg name: a value is needed, as in name=VALUE",
		"":           "there is no such argument",
	} {
		var c component
		if err := Parse("x-arg", c.sets(), nil, []string{arg}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v", arg, err)
		}
	}
}
